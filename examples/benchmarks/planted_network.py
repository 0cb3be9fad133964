"""What denoising wins back of labels that an artifact of position costs: planted in a real network, the truth known.

    python examples/benchmarks/planted_network.py --camvid DIR --rows jitter:12 jitter@0.5:12 positions:8 head

The plaid of `evaluate.plant`, of three times the spread of the position embedding, is planted in the embedded backbone;
what the backbone gives without it is the truth. Rows are those of `rows.py`. For random windows of CamVid frames the
table has, with 95 % intervals over test frames: the share of the artifact that is left, the distance to the truth, the
share of the loss in k-NN and linear mIoU that is won back, and the gain in mIoU (percent) where nothing is planted.
Differences to the first row, paired, follow.

Maps are kept in --cache, and a run that was stopped goes on. A view of 518 x 518 pixels takes the embedded backbone
some 0.3 to 0.5 s on two cores, one of 280 x 280 a quarter of that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rows import RAW, Rows
from stage1_downstream import TEST_FRAMES, TRAIN_FRAMES, VOID, frames

from dvt_timm.evaluate import Planted, patch_labels, planted

TEST_STRIDE = 3  # patches; neighbors say the same
HEADER = [
    "features",
    "artifact left",
    "distance",
    *(f"{p} {c}" for c in ("won back", "gain") for p in ("k-NN", "linear")),
]


def cells(figures: Planted) -> list[str]:
    probes = [figures.labels[probe] for probe in ("knn", "linear")]
    gains = [
        f"{100 * probe.gain.value:+.1f}" + f" [{', '.join(f'{100 * end:.1f}' for end in probe.gain.interval)}]"
        for probe in probes
    ]
    return [f"{figures.left:.2f}", f"{figures.distance:.2f}", *(f"{probe.won_back:.2f}" for probe in probes), *gains]


def print_line(name: str, values: list[str]) -> None:
    print(f"| {name} | " + " | ".join(values) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--camvid", type=Path, required=True, help="its folder, with train/, trainannot/, val/, valannot/"
    )
    parser.add_argument("--rows", nargs="+", default=["jitter:12", "jitter@0.5:12", "positions:8"], metavar="ROW")
    parser.add_argument("--plants", type=int, nargs="+", default=[0], help="seeds of planted plaids")
    parser.add_argument("--draw", type=int, default=0, help="of windows")
    parser.add_argument("--train", type=int, default=TRAIN_FRAMES, help="frames")
    parser.add_argument("--test", type=int, default=TEST_FRAMES, help="frames")
    parser.add_argument("--size", type=int, default=518, help="pixels")
    parser.add_argument("--autocast", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cache", type=Path, default=Path("planted-cache"))
    arguments = parser.parse_args()
    rows = Rows(arguments.rows, arguments.cache, arguments.size, getattr(torch, arguments.autocast))
    photos, masks = zip(
        *frames(arguments.camvid, "train", arguments.train, 10_000 * arguments.draw),
        *frames(arguments.camvid, "val", arguments.test, 10_000 * arguments.draw),
        strict=True,
    )
    grid = rows.model.patch_embed.grid_size
    print(
        f"{arguments.train} + {arguments.test} frames of draw {arguments.draw}, {grid[0]} x {grid[1]} patches, "
        f"plants {arguments.plants}\n"
    )
    print("| " + " | ".join(HEADER) + " |\n" + "| --- " * len(HEADER) + "|", flush=True)
    results = planted(
        rows.model,
        photos,
        {row: rows.method(row) for row in arguments.rows},
        raw=rows.method(RAW),
        labels=[patch_labels(mask, grid, void=VOID) for mask in masks],
        num_train=arguments.train,
        test_stride=TEST_STRIDE,
        seeds=arguments.plants,
        finished=lambda name, figures: print_line(name, cells(figures)),
        progress=True,
    )
    print_details(results)


def print_details(results: dict[str, Planted]) -> None:
    """mIoU behind the shares, and differences to the first row."""
    first, *others = results
    print("\nmIoU in percent, k-NN and linear: truth, raw with the artifact, then each row with it and without\n")
    scores = results[first].labels.values()
    print("| truth | " + " | ".join(f"{100 * probe.truth.value:.1f} |" for probe in scores) + " |")
    print("| raw | " + " | ".join(f"{100 * probe.raw.value:.1f} |" for probe in scores) + " |")
    for name, figures in results.items():
        print_line(
            name, [f"{100 * e.value:.1f}" for p in figures.labels.values() for e in (p.denoised, p.denoised_truth)]
        )
    print(
        f"\nmore than {first}, the same frames: artifact left, distance, won back (k-NN, linear), gain (k-NN, linear)\n"
    )
    for name in others:
        a, b = results[name], results[first]
        pairs = [(a.labels[probe], b.labels[probe]) for probe in a.labels]
        won = [f"{x.won_back - y.won_back:+.2f}" for x, y in pairs]
        gain = [f"{x.gain - y.gain:+.3f}" for x, y in pairs]
        print_line(name, [f"{a.left - b.left:+.2f}", f"{a.distance - b.distance:+.2f}", *won, *gain])


if __name__ == "__main__":
    main()
