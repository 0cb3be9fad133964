"""The part of the artifacts that images share: found on some of them, kept in a file, and pulled to by all.

F and G of one image share slow gradients, which its views cannot tell apart. Images of different content can: a prior
on G that pulls it to the mean of their artifacts leaves the slow part of F to the image.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from .._util.errors import RunError
from .._util.files import remove_scratch
from .._util.images import check_aspect, read_hashed
from .._util.team import Team
from .._util.tensors import save_tensors
from .fit import ImageFitter
from .least_squares import LeastSquaresSolver
from .store import ARTIFACT

PARTS = "calibration"  # folder of the artifacts that are averaged, until they are
KEY = "artifact"
OWN_FILES = r"artifact\.safetensors|[0-9a-f]{64}\.safetensors"
NUM_IMAGES, PRIOR_VIEWS = 40, 8.0
FEWEST = 10  # images that can be fitted, where more are asked for
UNFIT = (MemoryError, RuntimeError, ValueError, AssertionError)  # the CPU's out-of-memory error is a RuntimeError


def shared_artifact(fitter: ImageFitter, images: Iterable[Image.Image | str | PathLike[str]]) -> Tensor:
    """Average the artifacts of some images: what the images of a model have in common, for `prior_artifact`.

    >>> shared = shared_artifact(ImageFitter(model), photos[:40])
    >>> fitter = ImageFitter(model, LeastSquaresSolver(prior_views=8, prior_artifact=shared))

    What F and G of one image cannot tell apart, slow gradients, averages out over images of different content.

    Args:
        fitter: in closed form; its solver's prior is left out.
        images: about forty, of any mode, or their paths.

    Returns:
        [h, w, C], of mean 0 over the patches.

    Raises:
        TypeError: if the fitter's solver is not the closed form.
        ValueError: if there are no images, or their grids differ (`keep_aspect`).
        ImageError, ...: as the fitter.
    """
    free = _without_prior(fitter)
    artifacts = [free(image).artifact for image in images]
    shapes = {tuple(artifact.shape) for artifact in artifacts}
    if len(shapes) != 1:
        raise ValueError(f"the artifacts of {len(artifacts)} images have the shapes {sorted(shapes)}; one is needed")
    return torch.stack(artifacts).mean(dim=0)


def images_to_calibrate_on(fitter: ImageFitter, available: int) -> int:
    """Say on how many images the shared artifact is found by default, 0 for none.

    40 if there are as many, the closed form has no prior of its own, and the views are jittered, on one grid.
    """
    views, solver = fitter.settings, fitter.solver
    fits = isinstance(solver, LeastSquaresSolver) and not solver.prior_views
    fits = fits and views["kind"].startswith("jitter") and not views["keep_aspect"]
    return NUM_IMAGES if fits and available >= NUM_IMAGES else 0


def pulling(fitter: ImageFitter, num_images: int) -> ImageFitter:
    """Give the fitter's solver a prior, of 8 views if it has none, if there are images to calibrate on.

    Raises:
        ValueError: if `num_images` is negative, the solver is not the closed form or has a prior artifact, or the grids
            of images differ.
    """
    if num_images < 0:
        raise ValueError(f"calibrate must be a number of images, 0 for none, got {num_images}")
    if not num_images:
        return fitter
    solver = fitter.solver
    if not isinstance(solver, LeastSquaresSolver):
        raise ValueError(f"calibrate is for the closed form, LeastSquaresSolver(), got {solver!r}; pass calibrate=0")
    if solver.prior_artifact is not None:
        raise ValueError("the solver has a prior_artifact, which calibrate would find anew; pass calibrate=0")
    if fitter.settings["keep_aspect"]:
        raise ValueError("with keep_aspect the grids of images differ and share no artifact; pass calibrate=0")
    return fitter.with_solver(replace(solver, prior_views=solver.prior_views or PRIOR_VIEWS))


def calibrated(
    fitter: ImageFitter, images: Sequence[tuple[Path, str]], num_images: int, folder: Path, team: Team, progress: bool
) -> ImageFitter:
    """Make the fitter pull to what some of the images share, which is found once and kept in the folder.

    A run that is stopped meanwhile keeps the artifacts it has. Images that cannot be fitted are left out, others take
    their place.

    Args:
        fitter: with a prior (`pulling`).
        images: files with their SHA-256, which choose among them: the least ones do.
        num_images: how many are averaged.
        folder: a run's, which the team's first process holds.
        team: the processes that share the work; each calls this.
        progress: whether to show a bar.

    Raises:
        RunError: if too few images can be fitted, or the file in the folder is damaged.
        OSError: if it cannot be written.
    """
    assert isinstance(fitter.solver, LeastSquaresSolver)
    if not (folder / ARTIFACT).exists():
        _find(_without_prior(fitter), images, num_images, folder, team, progress)
    team.wait()
    if team.rank == 0:
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    return fitter.with_solver(replace(fitter.solver, prior_artifact=_load(folder / ARTIFACT)))


def _find(
    free: ImageFitter, images: Sequence[tuple[Path, str]], num_images: int, folder: Path, team: Team, progress: bool
) -> None:
    """Write the mean of the artifacts, each process some of them."""
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    if team.rank == 0:
        remove_scratch(parts, OWN_FILES)
    team.wait()
    mine = team.part(sorted(images, key=lambda image: image[1]))
    wanted = len(team.part(range(num_images)))
    found = (None for path, sha256 in mine if _keep(free, path, sha256, parts))
    bar = tqdm(total=wanted, desc="calibrating", unit="image", disable=None if progress else True)
    for _ in islice(found, wanted):
        bar.update()
    bar.close()
    team.wait()
    every = (parts / f"{sha256}.safetensors" for sha256 in sorted(sha256 for _, sha256 in images))
    files = [file for file in every if file.exists()][:num_images]
    needed = min(num_images, FEWEST)
    team.wait()  # all have seen the same before anything goes
    if len(files) < needed:
        if team.rank == 0:
            shutil.rmtree(parts)
        raise RunError(
            f"{len(files)} of {len(images)} images can be fitted to calibrate on, {needed} are needed; give more, see "
            "that they are images, or pass calibrate=0 (--calibrate 0; to train, in another folder)"
        )
    if team.rank == 0:
        _save(folder / ARTIFACT, torch.stack([_load(file) for file in files]).mean(dim=0), images=str(len(files)))


def _keep(free: ImageFitter, path: Path, sha256: str, parts: Path) -> bool:
    """Write an image's artifact, unless it is there; False if it cannot be had, or the image has been replaced."""
    target = parts / f"{sha256}.safetensors"
    if target.exists():
        return True
    try:
        image, read = read_hashed(path)
        if read != sha256:
            return False
        check_aspect(path, image)
        artifact = free(image).artifact
    except UNFIT:
        return False
    _save(target, artifact)
    return True


def _without_prior(fitter: ImageFitter) -> ImageFitter:
    if not isinstance(fitter.solver, LeastSquaresSolver):
        raise TypeError(f"the shared artifact is that of LeastSquaresSolver, got {fitter.solver!r}")
    return fitter.with_solver(replace(fitter.solver, prior_views=0.0, prior_artifact=None))


def _save(target: Path, artifact: Tensor, **metadata: str) -> None:
    save_tensors({KEY: artifact.float().contiguous().cpu()}, target, metadata)


def _load(file: Path) -> Tensor:
    try:
        return load_file(file)[KEY]
    except (SafetensorError, KeyError) as error:
        raise RunError(f"{file} is damaged: {error}; delete its folder, or choose another") from error
