"""What `stage1.py` measures without photos: planted answers, and time and memory at full size."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from planted import plant

from dvt_timm.offline import LeastSquaresSolver, NeuralFieldSolver, Views
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.views import sample_windows

REPEATS = 5


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the seconds it takes."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


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


def size(_: argparse.Namespace) -> None:
    """768 crops of 37 x 37 patches, 768 channels, in batches of 8: the fit alone, without forward passes."""
    grid = PatchGrid((518, 518), (14, 14), (14, 14))
    xy = patch_xy(sample_windows(767, "crops", 0, grid.image_size), *grid.centres())
    features = torch.randn(8, 37, 37, 768)

    def stream() -> Iterator[Views]:
        for start in range(0, len(xy), 8):
            yield Views(features, xy[start : start + 8])

    solver = LeastSquaresSolver()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fits = [timed(lambda: solver.fit(stream()))[1] for _ in range(3)]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    prepared, preparing = timed(lambda: solver.prepare(xy))
    further = [timed(lambda: prepared.fit(stream()))[1] for _ in range(3)]
    print("| | seconds |\n| --- | --- |")
    print(f"| first image | {statistics.median(fits):.1f} |")
    print(f"| preparing a set of views | {preparing:.1f} |")
    print(f"| each further image | {statistics.median(further):.1f} |")
    print(f"\npeak memory above the features of one batch: {peak:.2f} GB")
