"""`dvt-timm fit`: stage 1 on many images, into a store."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import viz
from .._util.files import CommandError, replacing
from ..offline import Decomposition, ImageFitter, LeastSquaresSolver, NeuralFieldSolver, Solver, fit_store, open_store
from ..offline.run import Team
from . import features as extract
from .console import no_images, quiet_hub, report_skipped

PANELS = "panels"  # folder of the pictures, within the store
LIST = ".txt"  # suffix of lists of images


def run(arguments: argparse.Namespace) -> int:
    """Fill the store; the exit status."""
    quiet_hub()
    team = Team(arguments.device)
    missing, targets = _find(arguments.paths, arguments.out / PANELS)
    model = extract.load_model(arguments.model, arguments.checkpoint, arguments.device or team.device)
    failures = fit_store(
        fitter_of(model, arguments, progress=len(targets) == 1),
        [*missing, *targets],
        arguments.out,
        half=arguments.half,
        team=team,
        finished=_panel_writer(targets) if arguments.panel else None,
        skipped=report_skipped,
        progress=len(targets) > 1 and team.rank == 0,
    )
    if team.rank == 0:
        print(f"{arguments.out}: {len(open_store(arguments.out))} images")
        if failures:
            print(f"dvt-timm: {len(failures)} of {len(targets) + len(missing)} inputs skipped", file=sys.stderr)
    return 1 if failures and team.rank == 0 else 0  # another rank's would end the first one before it is done


def images_of(paths: list[Path], out: Path) -> list[Path]:
    """The images at files, in folders and in lists; those of the folder of results left aside.

    Raises:
        CommandError: if there is none, or something that is named does not exist.
    """
    missing, targets = _find(paths, out)
    if missing:
        raise CommandError(f"{len(missing)} of the images named do not exist, first {missing[0]}; name others")
    return list(targets)


def _find(paths: list[Path], out: Path) -> tuple[list[Path], dict[Path, Path]]:
    """(what is named and does not exist, images in the rest -> where their results go)."""
    given = {image: os.path.exists(image) for path in paths for image in _listed(path)}  # False for too long a name
    targets = dict(extract.find_images([path for path, exists in given.items() if exists], out))
    if not targets:
        raise no_images(paths)
    return [path for path, exists in given.items() if not exists], targets


def _listed(path: Path) -> list[Path]:
    """The paths that a list names, one a line, relative to its own folder; of anything else, that itself."""
    if path.suffix.lower() != LIST or not path.is_file():
        return [path]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read the list {path}: {error}") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def fitter_of(model: Any, arguments: argparse.Namespace, progress: bool) -> ImageFitter:
    """Stage 1 as the command line's options say it.

    Raises:
        CommandError: if they are out of range.
    """
    try:
        return ImageFitter(
            model,
            _solver(arguments),
            num_views=arguments.views,
            view_pairs=arguments.view_pairs,
            kind=arguments.kind,
            seed=arguments.seed,
            layer=arguments.layer,
            size=arguments.size,
            keep_aspect=arguments.keep_aspect,
            edge_to_edge=arguments.edge_to_edge,
            batch_size=arguments.view_batch,
            autocast=None if arguments.autocast is None else getattr(torch, arguments.autocast),
            progress=progress,
        )
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error


def _solver(arguments: argparse.Namespace) -> Solver:
    """With the options that the command line names; the others keep the solver's own defaults."""
    closed = {"density": arguments.density, "smoothness": arguments.smoothness}
    closed = {name: value for name, value in closed.items() if value is not None}
    steps = {} if arguments.field_steps is None else {"num_steps": arguments.field_steps}
    if arguments.solver == "neural-field":
        if closed:
            raise ValueError("--smoothness and --density are of --solver least-squares")
        return NeuralFieldSolver(seed=arguments.seed, progress=True, **steps)
    if steps:
        raise ValueError("--field-steps is of --solver neural-field")
    return LeastSquaresSolver(**closed)


def _panel_writer(targets: dict[Path, Path]) -> Callable[[Path, Image.Image, Decomposition], None]:
    def write(path: Path, picture: Image.Image, decomposition: Decomposition) -> None:
        parts = (decomposition.raw, decomposition.semantics, decomposition.artifact, decomposition.residual)
        panel = viz.decomposition_panel(np.asarray(picture), *parts)
        target = targets[path].with_name(f"{targets[path].name}.png")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as scratch:
                Image.fromarray(panel).save(scratch)
        except OSError as error:
            raise CommandError(
                f"cannot write {target}: {error}; finished images are kept, run the same again"
            ) from error

    return write
