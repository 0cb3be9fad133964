"""What stage 1 wins back of labels that an artifact of position costs: planted in a real network, whose truth is known.

    python examples/benchmarks/planted_network.py --camvid DIR --rows jitter:12 jitter@0.5:12 positions:8

The plaid of `evaluate.plant`, of three times the spread of the position embedding, is planted in the embedded backbone;
what the backbone gives without it is the truth. Rows are KIND:VIEWS or KIND@SHIFT:VIEWS of stage 1, and "head", the
embedded one. For each plant and each draw of windows the script prints k-NN and linear mIoU of patches of random
windows of CamVid frames (percent), the share of their loss that is won back, the share of the artifact that is left and
the distance to the truth (mean over test frames); then the same labels where nothing is planted. With several draws,
mean and standard error of the paired differences to raw follow.

Maps are kept in --cache, and a run that was stopped goes on. A view of 518 x 518 pixels takes the embedded backbone
some 0.3 to 0.5 s on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from photos import MODEL, kept
from PIL import Image
from stage1_downstream import TEST_FRAMES, TRAIN_FRAMES, VOID, frames, patch_labels
from torch import Tensor
from tqdm import tqdm

import dvt_timm
from dvt_timm.evaluate import artifact_left, distance_to_truth, knn_probe, linear_probe, mean_iou, plant, won_back
from dvt_timm.offline import ImageFitter

RAW, HEAD = "raw", "head"
NEIGHBORS = 20


class Maps:
    """Maps of frames by row, with and without a plant; computed once."""

    def __init__(self, folder: Path, size: int, autocast: torch.dtype) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.autocast = folder, size, autocast
        self.model = timm.create_model(MODEL, pretrained=True, num_classes=0).eval()
        self.fitters: dict[str, ImageFitter] = {}

    def of(self, image: Image.Image, row: str, seed: int | None) -> Tensor:  # [h, w, C]
        """The map of an image; seed: of the plant, None for none."""
        name = f"{row} {seed} {self.size} {self.autocast} {image.size}"
        key = hashlib.sha256(name.encode() + image.tobytes()).hexdigest()[:20]
        return kept(self.folder / f"{key}.safetensors", lambda: self._computed(image, row, seed))

    def _computed(self, image: Image.Image, row: str, seed: int | None) -> Tensor:
        with nullcontext() if seed is None else plant(self.model, seed=seed):
            if row in (RAW, HEAD):
                squeezed = dvt_timm.preprocess(self.model, image.resize((self.size, self.size)), self.size)
                with torch.inference_mode():
                    maps = dvt_timm.feature_maps(self.model, squeezed)
                chosen = maps.raw if row == RAW else maps.denoised
                return chosen[0].permute(1, 2, 0)
            return self._fitter(row)(image).semantics

    def _fitter(self, row: str) -> ImageFitter:
        if row not in self.fitters:
            kind, _, num_views = row.partition(":")
            kind, _, shift = kind.partition("@")
            options: dict[str, Any] = {"shift": float(shift)} if shift else {}
            self.fitters[row] = ImageFitter(
                self.model, kind=kind, num_views=int(num_views), size=self.size, autocast=self.autocast, **options
            )
        return self.fitters[row]


def scores(maps: Maps, parts: Sequence[Any], row: str, seed: int | None, draws: Sequence[int]) -> tuple[float, float]:
    """(k-NN, linear) mIoU in percent, the latter the mean of several seeds."""
    stacks, labels = [], []
    for part in parts:
        of_part = [maps.of(image, row, seed) for image, _ in progress(part, f"{row}, plant {seed}")]
        of_patches = torch.stack([patch_labels(mask, of_part[0].shape[:2]) for _, mask in part]).flatten()
        stacks.append(torch.cat([fmap.flatten(0, 1) for fmap in of_part])[of_patches != VOID])
        labels.append(of_patches[of_patches != VOID])
    near = mean_iou(knn_probe(stacks[0], labels[0], stacks[1], NEIGHBORS), labels[1])
    linear = [mean_iou(linear_probe(stacks[0], labels[0], stacks[1], draw), labels[1]) for draw in draws]
    return 100 * near, 100 * statistics.mean(linear)


def artifacts(maps: Maps, test: Sequence[Any], row: str, seed: int) -> tuple[float, float]:
    """(share of the artifact left, distance to the truth), the mean over test frames."""
    left, distance = [], []
    for image, _ in test:
        truth, raw = maps.of(image, RAW, None), maps.of(image, RAW, seed)
        planted, clean = maps.of(image, row, seed), maps.of(image, row, None)
        left.append(artifact_left(planted, clean, raw, truth))
        distance.append(distance_to_truth(planted, truth))
    return statistics.mean(left), statistics.mean(distance)


def share_won(score: float, planted: float, truth: float) -> str:
    """Text of `won_back`, "-" where the plant costs nothing."""
    return f"{won_back(score, planted, truth):.2f}" if truth > planted else "-"


def progress(items: Sequence[Any], name: str) -> Iterator[Any]:
    return iter(tqdm(items, desc=name, leave=False, disable=None))


def table(maps: Maps, arguments: argparse.Namespace, draw: int) -> dict[str, tuple[float, float]]:
    """Print the table of one draw of windows; the differences to raw where nothing is planted, by row."""
    parts = [
        frames(arguments.camvid, split, count, seed=10_000 * draw)
        for split, count in (("train", arguments.train), ("val", arguments.test))
    ]
    print(f"\ndraw {draw}, {arguments.train} + {arguments.test} frames, {arguments.size} x {arguments.size}\n")
    print("| plant | row | k-NN | linear | k-NN won back | linear won back | artifact left | distance to the truth |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    truth = scores(maps, parts, RAW, None, arguments.seeds)
    print(f"| none | raw | {truth[0]:.1f} | {truth[1]:.1f} | | | | 0 |", flush=True)
    gains = {}
    for seed in arguments.plants:
        raw = scores(maps, parts, RAW, seed, arguments.seeds)
        left, distance = artifacts(maps, parts[1], RAW, seed)
        print(f"| {seed} | raw | {raw[0]:.1f} | {raw[1]:.1f} | 0 | 0 | {left:.2f} | {distance:.3f} |", flush=True)
        for row in arguments.rows:
            score = scores(maps, parts, row, seed, arguments.seeds)
            won = [share_won(*each) for each in zip(score, raw, truth, strict=True)]
            left, distance = artifacts(maps, parts[1], row, seed)
            print(
                f"| {seed} | {row} | {score[0]:.1f} | {score[1]:.1f} | {won[0]} | {won[1]} | {left:.2f} | "
                f"{distance:.3f} |",
                flush=True,
            )
    for row in arguments.rows:
        score = scores(maps, parts, row, None, arguments.seeds)
        gains[row] = (score[0] - truth[0], score[1] - truth[1])
        print(f"| none | {row} | {score[0]:.1f} | {score[1]:.1f} | | | | |", flush=True)
    return gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--camvid", type=Path, required=True, help="its folder, with train/, trainannot/, val/, valannot/"
    )
    parser.add_argument("--rows", nargs="+", default=["jitter:12", "jitter@0.5:12", "positions:8"], metavar="ROW")
    parser.add_argument("--plants", type=int, nargs="*", default=[0], help="seeds of planted plaids")
    parser.add_argument("--draws", type=int, nargs="+", default=[0], help="of windows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the linear probe")
    parser.add_argument("--train", type=int, default=TRAIN_FRAMES, help="frames")
    parser.add_argument("--test", type=int, default=TEST_FRAMES, help="frames")
    parser.add_argument("--size", type=int, default=518, help="pixels")
    parser.add_argument("--autocast", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cache", type=Path, default=Path("planted-cache"))
    arguments = parser.parse_args()
    maps = Maps(arguments.cache, arguments.size, getattr(torch, arguments.autocast))
    gains = [table(maps, arguments, draw) for draw in arguments.draws]
    if len(gains) > 1:
        print("\ndifference to raw where nothing is planted, mean and standard error over draws: k-NN, linear\n")
        for row in arguments.rows:
            for name, values in zip(("k-NN", "linear"), zip(*(gain[row] for gain in gains), strict=True), strict=True):
                error = statistics.stdev(values) / len(values) ** 0.5
                print(f"| {row} | {name} | {statistics.mean(values):+.1f} +- {error:.1f} |")


if __name__ == "__main__":
    main()
