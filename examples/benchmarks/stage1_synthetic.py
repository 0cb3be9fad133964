"""What `stage1.py` measures without photos: planted answers, and time and memory at full size."""

from __future__ import annotations

import argparse
import statistics
from collections import deque
from collections.abc import Iterator

import timm
import torch
from measuring import peak_memory, timed
from planted import PHOTO, plant

from dvt_timm.offline import ImageFitter, LeastSquaresSolver, NeuralFieldSolver, Views, sample_views
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.windows import sample_windows

REPEATS = 5


def planted(arguments: argparse.Namespace) -> None:
    """256 crops of 16 x 16 patches, 192 channels: error and time of both solvers."""
    truth = plant(256)
    solver = LeastSquaresSolver()
    solver.fit(truth.views)
    runs = [timed(lambda: solver.fit(truth.views)) for _ in range(REPEATS)]
    seconds = statistics.median(run[1] for run in runs)
    error = truth.error(runs[0][0].semantics)
    print("| method | error of F | seconds | error, ratio | seconds, ratio |\n| --- | --- | --- | --- | --- |")
    print(f"| raw features | {truth.error(truth.views.features[-1]):.3f} | | | |")
    print(f"| closed form | {error:.4f} | {seconds:.2f} | 1 | 1 |", flush=True)
    for steps in (50, 100, 150, 200, arguments.steps):
        solution, spent = timed(lambda n=steps: NeuralFieldSolver(num_steps=n).fit(truth.views))
        other = truth.error(solution.semantics)
        print(
            f"| released, {steps} steps | {other:.3f} | {spent:.1f} | {other / error:.1f} | {spent / seconds:.0f} |",
            flush=True,
        )


def size(arguments: argparse.Namespace) -> None:
    """768 crops of 37 x 37 patches, 768 channels, in batches: the fit alone, without forward passes."""
    grid = PatchGrid((518, 518), (14, 14), (14, 14))
    xy = patch_xy(sample_windows(767, "crops", 0, grid.image_size), *grid.centers()).to(arguments.device)
    batches = xy.split(arguments.batch_size)
    features = torch.randn(arguments.batch_size, 37, 37, 768, device=arguments.device)

    def stream() -> Iterator[Views]:
        for places in batches:
            yield Views(features[: len(places)], places)

    solver = LeastSquaresSolver()
    before = peak_memory(arguments.device)
    fits = [timed(lambda: solver.fit(stream()))[1] for _ in range(REPEATS)]
    peak = peak_memory(arguments.device) - before
    preparing = [timed(lambda: solver.prepare(xy)) for _ in range(REPEATS)]
    prepared = preparing[0][0]
    further = [timed(lambda: prepared.fit(stream()))[1] for _ in range(REPEATS)]
    print(f"{arguments.device}, batches of {arguments.batch_size}, medians of {REPEATS}\n")
    print("| | seconds |\n| --- | --- |")
    print(f"| first image | {statistics.median(fits):.3f} |")
    print(f"| preparing a set of views | {statistics.median(run[1] for run in preparing):.3f} |")
    print(f"| each further image | {statistics.median(further):.3f} |")
    print(f"\npeak memory above the features of one batch: {peak:.2f} GB")


def image(arguments: argparse.Namespace) -> None:
    """One photo from file to clean map: a ViT-B/14 of random weights, as many views as the kind has unless --count."""
    model = timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=arguments.pixels).eval()
    model = model.to(arguments.device)
    views = {"kind": arguments.kind, "num_views": arguments.count, "batch_size": arguments.batch_size}
    fitter = ImageFitter(model, **views)
    stream = sample_views(model, PHOTO, **views)
    first = timed(lambda: fitter(PHOTO))[1]
    further = [timed(lambda: fitter(PHOTO))[1] for _ in range(REPEATS)]
    passes = [timed(lambda: deque(stream, maxlen=0))[1] for _ in range(REPEATS)]
    print(
        f"{arguments.device}, {stream.num_views - 1} views of kind {arguments.kind} in batches of "
        f"{arguments.batch_size}, {stream.autocast}, ViT-B/14 at {arguments.pixels}\n"
    )
    print("| | seconds |\n| --- | --- |")
    print(f"| first image, everything cold | {first:.2f} |")
    print(f"| each further image, median of {REPEATS} | {statistics.median(further):.2f} |")
    print(f"| of that, views and forward passes | {statistics.median(passes):.2f} |")
