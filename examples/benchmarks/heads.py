"""Heads of the embedded backbone measured side by side, on photos and frames that none of them was trained on.

    python examples/benchmarks/heads.py error --photos DIR --heads jitter=RUN1 crops=RUN2
    python examples/benchmarks/heads.py passed --photos DIR --heads ...
    python examples/benchmarks/heads.py targets --photos DIR
    python examples/benchmarks/heads.py leakage --photos DIR --fit 250 --test 100 --heads ...
    python examples/benchmarks/heads.py leakage --photos DIR --fit 100 --test 50 --folds 3 --upside-down --heads ...
    python examples/benchmarks/heads.py information --photos DIR --heads ...
    python examples/benchmarks/heads.py camvid --camvid DIR --heads ...
    python examples/benchmarks/heads.py pictures --photos DIR --out DIR --heads ...

error        squared error to F over the variance of F, from 24 views of each kind; and the power of fine detail, lines
             included, over that of F from jittered views
passed       share of raw's artifacts that is left, by their width: 1 for all, 0 for none; and the squared error. Two
             halves of the jittered views, neither with the whole image, stand for F, so that their own errors cancel,
             at smoothness 0.1, which blurs little. F of a half and the image shows what a target that holds its own
             view lets pass
targets      what F of few views keeps of F's own detail, by its width: 1 for all; needs no heads
leakage      R2 with which a linear probe reads a patch's place: fitted on some photos, tested on others. With
             --upside-down every photo has its upside-down copy beside it, so that y is not read from content, sky above
             and ground below. Folds test on other photos each, and are compared with those of the last head
information  the paper's artifact measure: the largest coefficient of a channel with x and y
camvid       mIoU of patches of random windows, six draws of them: k-NN and linear probe; every fourth patch is tested
pictures     panels of raw features and every head's, of ten photos

Photos are taken as `photos.spread` takes them, the first ones first; keep those out of the training. Raw features stand
beside the heads in every table. They are kept in the cache, as float16, so that another head is measured at no pass.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from photos import ClosedForm, ViewCache, spread, turned
from PIL import Image
from stage1_downstream import VOID, frames, patch_labels, print_places
from torch import Tensor
from tqdm import tqdm

import dvt_timm
from dvt_timm import viz
from dvt_timm._util.images import read_image
from dvt_timm.evaluate import knn_probe, largest_coefficients, linear_probe, mean_iou, position_leakage
from dvt_timm.offline import Views

SEEDS = range(6)
TARGET_VIEWS = 24
TRAIN_FRAMES, TEST_FRAMES = 60, 40
TEST_STRIDE = 4  # patches; neighbors say the same
NUM_PICTURES = 10

Limits = tuple[int, int | None]
BANDS: dict[str, Limits] = {"fine": (1, 3), "middle": (3, 9), "broad": (9, None)}  # as `band` takes them
EVERY_WIDTH: Limits = (1, None)
COUNTS, SMOOTHNESS = (4, 12), (1.0, 0.1)  # of targets
TRUTH_SMOOTHNESS, LEAST_SMOOTHNESS = 0.1, 0.01  # where errors of two estimates cancel, noise matters less than blur

Maps = dict[str, Tensor]  # name -> [h, w, C]


class Contenders:
    """The backbone without a head, and with each."""

    def __init__(self, heads: Sequence[str], cache: ViewCache) -> None:
        self.heads = {name: dvt_timm.load_head(source) for name, _, source in (item.partition("=") for item in heads)}
        self.cache = cache

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> Maps:
        raw = self.cache.raw(image)
        return {"raw": raw, **{name: head(raw[None])[0] for name, head in self.heads.items()}}


def error(contenders: Contenders, arguments: argparse.Namespace) -> None:
    solvers = {kind: ClosedForm() for kind in ("jitter", "crops")}
    sums: dict[str, dict[str, list[float]]] = {}
    detail: dict[str, list[float]] = {}
    photos = spread(arguments.photos, arguments.count or 40)
    for path in tqdm(photos, unit="photo", disable=None):
        image = read_image(path)
        maps = contenders(image)
        for kind, solver in solvers.items():
            target = solver.fit(contenders.cache.take(image, kind, TARGET_VIEWS)).semantics
            power = (target - target.mean(dim=(0, 1))).square().sum()
            for name, fmap in maps.items():
                share = ((fmap - target).square().sum() / power).item()
                sums.setdefault(name, {}).setdefault(kind, []).append(share)
                if kind == "jitter":
                    detail.setdefault(name, []).append((detail_power(fmap) / detail_power(target)).item())
    print(f"squared error over the variance of F from {TARGET_VIEWS} views, {len(photos)} photos\n")
    print("| features | F from jitter | F from crops | detail |\n| --- | --- | --- | --- |")
    for name, kinds in sums.items():
        print(f"| {name} | " + " | ".join(map(mean_and_error, [*kinds.values(), detail[name]])) + " |")


def detail_power(fmap: Tensor) -> Tensor:
    """Of what the mean of 3 x 3 patches leaves of a map [h, w, C]."""
    return band(fmap, *BANDS["fine"]).square().sum()


def band(fmap: Tensor, narrow: int, wide: int | None) -> Tensor:
    """Of a map [h, w, C] the means over so many patches each way, less those over more; None for all patches."""
    return smoothed(fmap, narrow) - (fmap.mean(dim=(0, 1)) if wide is None else smoothed(fmap, wide))


def smoothed(fmap: Tensor, patches: int) -> Tensor:
    channels = F.avg_pool2d(fmap.permute(2, 0, 1), patches, 1, patches // 2, count_include_pad=False)
    return channels.permute(1, 2, 0)


def targets(contenders: Contenders, arguments: argparse.Namespace) -> None:
    half = TARGET_VIEWS // 2
    solvers = {(count, smoothness): ClosedForm(smoothness) for count in COUNTS for smoothness in SMOOTHNESS}
    truth_solvers = ClosedForm(LEAST_SMOOTHNESS), ClosedForm(LEAST_SMOOTHNESS)
    rows: dict[str, list[list[float]]] = {}
    photos = spread(arguments.photos, arguments.count or NUM_PICTURES)
    for path in tqdm(photos, unit="photo", disable=None):
        views = contenders.cache.take(read_image(path), "jitter", TARGET_VIEWS)
        halves = Views(views.features[:half], views.xy[:half]), Views(views.features[half:-1], views.xy[half:-1])
        place = views.xy[-1]
        first, second = (s.fit(h).semantics_at(place) for s, h in zip(truth_solvers, halves, strict=True))
        power = product(first, second, EVERY_WIDTH)
        for (count, smoothness), solver in solvers.items():
            target = solver.fit(Views(views.features[:count], views.xy[:count])).semantics_at(place)
            kept = [product(target, second, limits) / product(first, second, limits) for limits in BANDS.values()]
            noise = product(target, target, EVERY_WIDTH) - 2 * product(target, second, EVERY_WIDTH) + power
            values = [*map(float, kept), float(noise / power)]
            rows.setdefault(f"{count} views, smoothness {smoothness}", []).append(values)
    print(f"F of jittered views, {len(photos)} photos: share that is kept of F by its width, squared error\n")
    print_bands("F of", rows, "error")


def passed(contenders: Contenders, arguments: argparse.Namespace) -> None:
    half = TARGET_VIEWS // 2
    parts = [list(range(half)), list(range(half, TARGET_VIEWS))]
    parts += [[*part, TARGET_VIEWS] for part in parts]  # and the whole image
    solvers = [ClosedForm(TRUTH_SMOOTHNESS) for _ in parts]
    left: dict[str, list[list[float]]] = {}
    errors: dict[str, list[list[float]]] = {}
    photos = spread(arguments.photos, arguments.count or NUM_PICTURES)
    for path in tqdm(photos, unit="photo", disable=None):
        image = read_image(path)
        views = contenders.cache.take(image, "jitter", TARGET_VIEWS)
        raw, place = views.features[-1], views.xy[-1]
        *truths, first, second = (
            solver.fit(Views(views.features[part], views.xy[part])).semantics_at(place)
            for solver, part in zip(solvers, parts, strict=True)
        )
        power = product(*truths, EVERY_WIDTH)
        artifacts = [raw - truth for truth in truths]
        maps = {name: (fmap, fmap) for name, fmap in contenders(image).items()}
        maps[f"F of {half} views and it"] = (first, second)
        for name, fmaps in maps.items():
            rests = [fmap - truth for fmap, truth in zip(fmaps, truths, strict=True)]
            left.setdefault(name, []).append([float(share_left(rests, artifacts, b)) for b in BANDS.values()])
            error_by_width = [float(product(*rests, b) / power) for b in (*BANDS.values(), EVERY_WIDTH)]
            errors.setdefault(name, []).append(error_by_width)
    print(f"share of raw's artifacts that is left, by their width, {len(photos)} photos\n")
    print_bands("features", left)
    print("\nsquared error over the variance of F, by width\n")
    print_bands("features", errors, "all")


def print_bands(first: str, rows: dict[str, list[list[float]]], *more: str) -> None:
    """A table: means over photos of a value for each width, and of more."""
    header = [first, *BANDS, *more]
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    for name, photos in rows.items():
        print(f"| {name} | " + " | ".join(mean_and_error(list(column)) for column in zip(*photos, strict=True)) + " |")


def product(first: Tensor, second: Tensor, limits: Limits) -> Tensor:
    """Sum over a band of two maps [h, w, C] of their product."""
    return (band(first, *limits) * band(second, *limits)).sum()


def share_left(rests: Sequence[Tensor], artifacts: Sequence[Tensor], limits: Limits) -> Tensor:
    """Of raw - F in fmap - F; two of each, with two estimates of F, one in either factor."""
    crossed = product(rests[0], artifacts[1], limits) + product(rests[1], artifacts[0], limits)
    return crossed / 2 / product(*artifacts, limits)


def leakage(contenders: Contenders, arguments: argparse.Namespace) -> None:
    photos = spread(arguments.photos, arguments.fit + arguments.test)
    maps = [
        [contenders(image) for image in turned(read_image(path), arguments.upside_down)]
        for path in tqdm(photos, unit="photo", disable=None)
    ]
    scores: dict[str, list[list[float]]] = {}  # of every fold: x, y, |x|, |y|
    for fold in range(arguments.folds):
        start = fold * arguments.test
        order = maps[start:] + maps[:start]
        for name in maps[0][0]:
            fit, test = ([m[name] for m in chain(*part)] for part in (order[: arguments.fit], order[arguments.fit :]))
            scores.setdefault(name, []).append(list(position_leakage(fit, test).values()))
    print(f"R2 of position, fitted on {arguments.fit} photos, tested on {arguments.test}; of every fold\n")
    places = {name: zip(*folds, strict=True) for name, folds in scores.items()}
    print_places({name: [" ".join(f"{r2:.2f}" for r2 in place) for place in row] for name, row in places.items()})
    if arguments.folds > 1 and contenders.heads:
        last, reference = scores.popitem()
        print(f"\nmore than {last}, the same photos: mean and standard error over the folds\n")
        more = {name: (torch.tensor(f) - torch.tensor(reference)).T.tolist() for name, f in scores.items()}
        print_places({name: [mean_and_error(place) for place in row] for name, row in more.items()})


def information(contenders: Contenders, arguments: argparse.Namespace) -> None:
    photos = spread(arguments.photos, arguments.count or 100)
    scores: dict[str, list[float]] = {}
    for path in tqdm(photos, unit="photo", disable=None):
        for name, fmap in contenders(read_image(path)).items():
            scores.setdefault(name, []).append(largest_coefficients(fmap).mean().item())
    print(f"maximal information coefficient with x and y, {len(photos)} photos, and standard error\n")
    print("| features | mean |\n| --- | --- |")
    for name, values in scores.items():
        print(f"| {name} | {mean_and_error(values)} |")


def camvid(contenders: Contenders, arguments: argparse.Namespace) -> None:
    knn: dict[str, list[float]] = {}
    linear: dict[str, list[float]] = {}
    for seed in SEEDS:
        train, test = (
            labeled(contenders, frames(arguments.camvid, split, count, seed * 1000), stride)
            for split, count, stride in (("train", TRAIN_FRAMES, 1), ("val", TEST_FRAMES, TEST_STRIDE))
        )
        for name in train[0]:
            features, labels, unseen, truth = train[0][name], train[1], test[0][name], test[1]
            knn.setdefault(name, []).append(100 * mean_iou(knn_probe(features, labels, unseen), truth))
            linear.setdefault(name, []).append(100 * mean_iou(linear_probe(features, labels, unseen, seed), truth))
    print(f"mIoU in percent, {TRAIN_FRAMES} and {TEST_FRAMES} frames; for each draw of windows, and the mean\n")
    print("| features | k-NN | | linear probe | |\n| --- | --- | --- | --- | --- |")
    for name in knn:
        print(f"| {name} | " + " | ".join(each_and_mean(scores[name]) for scores in (knn, linear)) + " |")
    print("\ngain over raw, the same windows: mean and standard error over the draws\n")
    for name in list(knn)[1:]:
        gains = ([a - b for a, b in zip(scores[name], scores["raw"], strict=True)] for scores in (knn, linear))
        print(f"| {name} | " + " | ".join(map(mean_and_error, gains)) + " |")


def labeled(contenders: Contenders, part: list[tuple[Image.Image, Image.Image]], stride: int) -> tuple[Maps, Tensor]:
    """Every so many patches [N, C] of all contenders, and their labels [N]; void ones left out."""
    maps = [contenders(image) for image, _ in tqdm(part, unit="frame", disable=None)]
    grid = maps[0]["raw"].shape[:2]
    labels = torch.stack([patch_labels(mask, grid) for _, mask in part]).flatten()
    kept = (labels != VOID) & (torch.arange(len(labels)) % stride == 0)
    return {name: torch.cat([m[name].flatten(0, 1) for m in maps])[kept] for name in maps[0]}, labels[kept]


def pictures(contenders: Contenders, arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in spread(arguments.photos, arguments.count or NUM_PICTURES):
        image = read_image(path)
        maps = {name: fmap.numpy() for name, fmap in contenders(image).items()}
        Image.fromarray(viz.feature_panel(np.asarray(image), maps)).save(arguments.out / f"{path.stem}.png")


def mean_and_error(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ±{statistics.stdev(values) / len(values) ** 0.5:.3f}"


def each_and_mean(values: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values) + f" | {statistics.mean(values):.1f}"


MEASURES: dict[str, Callable[[Contenders, argparse.Namespace], None]] = {
    "error": error,
    "passed": passed,
    "targets": targets,
    "leakage": leakage,
    "information": information,
    "camvid": camvid,
    "pictures": pictures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--heads", nargs="+", default=[], metavar="NAME=HEAD", help="as load_head takes them")
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--camvid", type=Path, metavar="DIR", help="train, trainannot, val, valannot")
    parser.add_argument("--count", type=int, help="photos (default: what the docs report)")
    parser.add_argument("--fit", type=int, default=250, help="photos that fit the leakage probe (default: %(default)s)")
    parser.add_argument("--test", type=int, default=100, help="photos that test it (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=1, help="of leakage, each with other test photos")
    parser.add_argument("--upside-down", action="store_true", help="leakage with every photo's copy beside it")
    parser.add_argument(
        "--cache", type=Path, default=Path("stage1-cache"), help="of views and raw maps (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    folder = "camvid" if arguments.measure == "camvid" else "photos"
    if getattr(arguments, folder) is None:
        parser.error(f"{arguments.measure} needs --{folder} DIR")
    most = (arguments.fit + arguments.test) // max(arguments.test, 1)
    if not 1 <= arguments.folds <= most:
        parser.error(f"--fit {arguments.fit} --test {arguments.test} allows --folds 1 to {most}, got {arguments.folds}")
    MEASURES[arguments.measure](Contenders(arguments.heads, ViewCache(arguments.cache)), arguments)


if __name__ == "__main__":
    main()
