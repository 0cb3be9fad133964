"""Ways of denoising side by side: against a planted truth, on featureless backdrops, by key points, by leakage.

    python examples/benchmarks/denoising.py planted --camvid DIR --rows jitter:12 jitter@0.5:12 positions:8 head
    python examples/benchmarks/denoising.py backdrops --voc DIR --rows ...
    python examples/benchmarks/denoising.py keypoints --spair DIR --rows ...
    python examples/benchmarks/denoising.py leakage --photos DIR --rows ...
    python examples/benchmarks/denoising.py pictures --photos DIR --rows ... --out DIR

planted    the plaid of `evaluate.plant`, three times the spread of the position embedding, is planted in the embedded
           backbone; what it gives without is the truth. On random windows of CamVid frames: the share of the artifact
           that is left, the distance to the truth, the share of the loss in k-NN and linear mIoU that is won back, and
           the gain in mIoU where nothing is planted
backdrops  objects of VOC on grounds of one color, and on fine noise: variance of the maps three patches and more away
           from the object, over that of the photos' raw maps
keypoints  SPair-71k's pairs: share of key points whose nearest patch lies within .1 of the object's box (PCK@.10), mean
           over pairs
pictures   panels of every photo, as it is and with a plaid planted: raw features, the rows, and the truth
leakage    R2 with which a linear probe reads a patch's x, y and their distances to the center, on photos it was not
           fitted on. With --upside-down every photo has its upside-down copy beside it, so that y is not read from
           content, sky above and ground below

Rows are those of `rows.py`; raw features stand beside them. Figures of the first three have 95 % intervals over frames,
photos or pairs, and paired differences to the first row follow. Maps are kept in --cache, and a run that was stopped
goes on. A view of 518 x 518 pixels takes the embedded backbone some 0.3 to 0.5 s on two cores, one of 280 x 280 a sixth
of that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from photos import spread, turned
from PIL import Image
from rows import RAW, Rows
from stage1_downstream import TEST_FRAMES, TRAIN_FRAMES, VOID, frames, print_places
from tqdm import tqdm

from dvt_timm import viz
from dvt_timm._util.folders import images_in
from dvt_timm._util.images import read_image, save_picture
from dvt_timm.evaluate import (
    Estimate,
    Planted,
    backdrops,
    far_patches,
    match_points,
    patch_labels,
    plant,
    planted,
    position_leakage,
)
from dvt_timm.evaluate.estimates import mean_over

PROBES = {"knn": "k-NN", "linear": "linear"}
TEST_STRIDE = 3  # patches; neighbors say the same
OBJECT = (0.05, 0.3)  # share of a photo that an object on a backdrop takes
FAR_SHARE = 0.25  # of the patches, at least, are far from it
ALPHA = 0.1  # of PCK

Figures = dict[str, Estimate]


def measure_planted(rows: Rows, arguments: argparse.Namespace) -> None:
    photos, masks = zip(
        *frames(arguments.camvid, "train", arguments.train, 10_000 * arguments.draw),
        *frames(arguments.camvid, "val", arguments.test, 10_000 * arguments.draw),
        strict=True,
    )
    grid = rows.model.patch_embed.grid_size
    table = Table(
        f"{arguments.train} + {arguments.test} frames of draw {arguments.draw}, {grid[0]} x {grid[1]} patches, plants "
        f"{arguments.plants}"
    )
    planted(
        rows.model,
        photos,
        {row: rows.method(row) for row in dict.fromkeys((*arguments.rows, RAW))},
        raw=rows.method(RAW),
        labels=[patch_labels(mask, grid, void=VOID) for mask in masks],
        num_train=arguments.train,
        test_stride=TEST_STRIDE,
        seeds=arguments.plants,
        finished=lambda name, figures: table.add(name, figures_of(figures)),
        progress=True,
    )
    table.differences()


def figures_of(planted: Planted) -> Figures:
    scores = {PROBES[probe]: score for probe, score in planted.labels.items()}
    return {
        "artifact left": planted.left,
        "distance": planted.distance,
        **{f"{probe} won back": score.won_back for probe, score in scores.items()},
        **{f"{probe} gain": score.gain for probe, score in scores.items()},
        **{f"{probe} truth": score.truth for probe, score in scores.items()},
        **{f"{probe} raw": score.raw for probe, score in scores.items()},
        **{f"{probe} denoised": score.denoised for probe, score in scores.items()},
    }


def measure_backdrops(rows: Rows, arguments: argparse.Namespace) -> None:
    photos, masks = [], []
    for path in sorted((arguments.voc / "SegmentationClass").glob("*.png")):
        with Image.open(path) as labels:
            mask = ~np.isin(np.asarray(labels), (0, 255))
        far = far_patches(mask, rows.model.patch_embed.grid_size).float().mean()
        if len(photos) < (arguments.count or 20) and OBJECT[0] <= mask.mean() <= OBJECT[1] and far >= FAR_SHARE:
            photos.append(read_image(arguments.voc / "JPEGImages" / f"{path.stem}.jpg"))
            masks.append(mask)
    methods = {row: rows.method(row) for row in arguments.rows}
    results = {
        ground: backdrops(rows.model, photos, masks, methods, raw=rows.method(RAW), ground=ground, progress=True)
        for ground in ("plain", "noise")
    }
    table = Table(f"{len(photos)} photos: variance far from the object over that of the raw maps of photos")
    for row in (RAW, *arguments.rows):
        table.add(row, {ground: of_ground[row] for ground, of_ground in results.items()})
    table.differences()


def measure_keypoints(rows: Rows, arguments: argparse.Namespace) -> None:
    pairs = [json.loads(path.read_text()) for path in sorted((arguments.spair / "PairAnnotation/test").glob("*.json"))]
    count = min(arguments.count or len(pairs), len(pairs))
    pairs = [pairs[i * len(pairs) // count] for i in range(count)]
    table = Table(f"{len(pairs)} pairs: PCK@{ALPHA}")
    for row in dict.fromkeys((RAW, *arguments.rows)):
        bar = tqdm(pairs, row, leave=False, disable=None)
        table.add(row, {"PCK": mean_over(torch.tensor([correct(rows, row, arguments.spair, pair) for pair in bar]))})
    table.differences()


def correct(rows: Rows, row: str, folder: Path, pair: Mapping[str, object]) -> float:
    """The share of a pair's key points that are found."""
    pictures = [read_image(images_of(folder, pair) / str(pair[f"{side}_imname"])) for side in ("src", "trg")]
    source, target = (rows(row, picture) for picture in pictures)
    points = [torch.tensor(pair[f"{side}_kps"], dtype=torch.float32) for side in ("src", "trg")]
    sides = [torch.tensor(picture.size, dtype=torch.float32) for picture in pictures]
    found = match_points(source, target, (points[0] / sides[0]).clamp(0, 1)) * sides[1]
    left, top, right, bottom = torch.tensor(pair["trg_bndbox"], dtype=torch.float32)
    return float(((found - points[1]).norm(dim=1) <= ALPHA * torch.maximum(right - left, bottom - top)).float().mean())


def images_of(folder: Path, pair: Mapping[str, object]) -> Path:
    return folder / "JPEGImages" / str(pair["category"])


def measure_leakage(rows: Rows, arguments: argparse.Namespace) -> None:
    count = arguments.fit + arguments.leak_test
    every = spread(arguments.photos, len(images_in(arguments.photos)))
    paths = [path for path in every if path not in rows.calibration][:count]
    print(f"R2 of position, fitted on {arguments.fit} photos, tested on {arguments.leak_test}\n")
    table = {}
    for row in dict.fromkeys((RAW, *arguments.rows)):
        bar = tqdm(paths, row, leave=False, disable=None)
        maps = [[rows(row, image) for image in turned(read_image(path), arguments.upside_down)] for path in bar]
        scores = position_leakage(chain(*maps[: arguments.fit]), chain(*maps[arguments.fit :]))
        table[row] = [f"{score:.2f}" for score in scores.values()]
    print_places(table)


def measure_pictures(rows: Rows, arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in images_in(arguments.photos):
        image = read_image(path)
        names = dict.fromkeys((RAW, *arguments.rows))
        shown = np.asarray(image.resize((rows.size, rows.size)))
        truth = rows(RAW, image)
        sheets = {path.stem: {name: rows(name, image) for name in names}}
        for seed in arguments.plants:
            with plant(rows.model, seed=seed):
                sheets[f"{path.stem}-plant-{seed}"] = {"truth": truth, **{name: rows(name, image) for name in names}}
        for name, maps in sheets.items():
            save_picture(viz.feature_panel(shown, maps), arguments.out / f"{name}.png")
            print(arguments.out / f"{name}.png", flush=True)


class Table:
    """Rows of estimates, printed as they come; then what each is more than the first."""

    def __init__(self, title: str) -> None:
        print(f"{title}\n")
        self.rows: dict[str, Figures] = {}

    def add(self, name: str, figures: Figures) -> None:
        if not self.rows:
            print(f"| features | {' | '.join(figures)} |\n" + "| --- " * (len(figures) + 1) + "|")
        self.rows[name] = figures
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures.values()) + " |", flush=True)

    def differences(self) -> None:
        (first, reference), *others = self.rows.items()
        print(
            f"\nmore than {first}, paired\n\n| features | {' | '.join(reference)} |\n"
            + "| --- " * (len(reference) + 1)
            + "|"
        )
        for name, figures in others:
            print(f"| {name} | " + " | ".join(f"{figures[key] - reference[key]:+.3f}" for key in reference) + " |")


MEASURES: dict[str, tuple[str, Callable[[Rows, argparse.Namespace], None]]] = {
    "planted": ("camvid", measure_planted),
    "backdrops": ("voc", measure_backdrops),
    "keypoints": ("spair", measure_keypoints),
    "leakage": ("photos", measure_leakage),
    "pictures": ("photos", measure_pictures),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--rows", nargs="+", default=["jitter:12", "jitter@0.5:12", "positions:8"], metavar="ROW")
    parser.add_argument("--camvid", type=Path, help="its folder, with train/, trainannot/, val/, valannot/")
    parser.add_argument("--voc", type=Path, help="VOCdevkit/VOC2012")
    parser.add_argument("--spair", type=Path, help="SPair-71k")
    parser.add_argument("--photos", type=Path, help="a folder of photos")
    parser.add_argument("--calibrate", type=Path, metavar="DIR", help="photos, the last of which calibrate sharedN")
    parser.add_argument("--calibrating", type=int, default=40, help="how many of them")
    parser.add_argument("--count", type=int, help="photos of backdrops (default: 20), or pairs (default: all)")
    parser.add_argument("--plants", type=int, nargs="+", default=[0], help="seeds of planted plaids")
    parser.add_argument("--draw", type=int, default=0, help="of windows")
    parser.add_argument("--train", type=int, default=TRAIN_FRAMES, help="frames")
    parser.add_argument("--test", type=int, default=TEST_FRAMES, help="frames")
    parser.add_argument("--fit", type=int, default=60, help="photos that fit the leakage probe")
    parser.add_argument("--leak-test", type=int, default=30, help="photos that test it")
    parser.add_argument("--upside-down", action="store_true", help="of leakage: with an upside-down copy of each photo")
    parser.add_argument("--size", type=int, default=518, help="pixels")
    parser.add_argument("--autocast", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="of pictures")
    parser.add_argument("--cache", type=Path, default=Path("denoising-cache"))
    arguments = parser.parse_args()
    folder, measure = MEASURES[arguments.measure]
    if getattr(arguments, folder) is None:
        parser.error(f"{arguments.measure} needs --{folder} DIR")
    calibration = images_in(arguments.calibrate)[-arguments.calibrating :] if arguments.calibrate else []
    autocast = getattr(torch, arguments.autocast)
    measure(Rows(arguments.rows, arguments.cache, arguments.size, autocast, calibration), arguments)


if __name__ == "__main__":
    main()
