"""Stage 1 on many images, into a store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from .._util.errors import RunError
from .._util.files import sha256_of, weights_file
from .._util.folders import images_in
from .._util.images import ImageError, check_aspect, printable, read_hashed, reason_of
from .._util.team import Team
from ..manifest import published_variants
from ..names import name_of
from .calibration import UNFIT, calibrated, images_to_calibrate_on, pulling
from .fit import ImageFitter, ViewPairs
from .solution import Decomposition
from .store import (
    ARTIFACT,
    CALIBRATED_ON,
    FORMAT,
    PAIRS_CLEAN,
    PAIRS_RAW,
    SHARD_BYTES,
    StoreWriter,
    calibrated_on,
    done_in,
    finish,
    unmake,
    writing,
)

Finished = Callable[[Path, Image.Image, Decomposition], None]  # image file, what was read from it, its decomposition


def fit_store(
    fitter: ImageFitter,
    images: Sequence[str | PathLike[str]] | str | PathLike[str],
    folder: str | PathLike[str],
    *,
    calibrate: int | None = None,
    half: bool = False,
    shard_bytes: int = SHARD_BYTES,
    team: Team | None = None,
    finished: Finished | None = None,
    skipped: Callable[[str], None] | None = None,
    progress: bool = False,
) -> dict[str, str]:
    """Decompose images into a store; those that it holds already are left as they are.

    Args:
        fitter: model, views and solver.
        images: files, or a folder, whose JPEG, PNG and WebP files are taken, also of the folders in it; one of the same
            content as another is taken once.
        folder: the store's, made if it does not exist.
        calibrate: on how many of the images the artifact that all share is found first, to which the closed form then
            pulls each image's (`shared_artifact`); 0 for none. By default the store's number, and in a new one 40, if
            there are as many images, the solver is the closed form without a prior, and views are jittered squares.
        half: keep float16 rather than float32.
        shard_bytes: a shard is closed once it is as large.
        team: the processes that share the work, this one alone by default.
        finished: called with each image that is new, before it is stored.
        skipped: called with the reason, one line, for each image that cannot be processed.
        progress: whether to show a bar.

    Returns:
        Images that were skipped, and why.

    Raises:
        ValueError: if `calibrate` does not go with the fitter.
        NotADirectoryError: if `images` is a path, and no folder is there.
        RunError: if the folder holds other things, a store of other settings, or a damaged one.
        BlockingIOError: if another run is writing to it.
        OSError: if it cannot be written.
    """
    team, folder = team or Team(), Path(folder)
    images = images_in(images) if isinstance(images, str | PathLike) else images
    failures: dict[str, str] = {}
    if calibrate is None:
        calibrate = calibrated_on(folder)
    if calibrate is None:
        calibrate = images_to_calibrate_on(fitter, len(images))
    fitter = pulling(fitter, calibrate)

    def skip(path: Path, reason: str) -> None:
        failures[printable(path)] = reason
        if skipped is not None:
            skipped(reason)

    with ExitStack() as stack:
        if team.rank == 0:
            stack.enter_context(writing(folder, settings_of(fitter, half, calibrate)))
        team.wait()
        done = done_in(folder)
        team.wait()  # all have seen the same before anything is added
        todo = unique(map(Path, images), done, skip if team.rank == 0 else lambda *_: None)
        if calibrate:
            if done and not (folder / ARTIFACT).exists():
                raise RunError(f"{folder / ARTIFACT}, which the images of this store share, is gone; fit another store")
            try:
                fitter = calibrated(fitter, todo, calibrate, folder, team, progress and team.rank == 0)
            except RunError:
                if team.rank == 0 and not (folder / ARTIFACT).exists():  # too few images: another run may do without
                    unmake(folder)
                raise
        writer = StoreWriter(folder, shard_bytes)
        bar = tqdm(team.part(todo), unit="image", disable=None if progress else True)
        for path, sha256 in bar:
            try:
                picture, decomposition, pairs = _decompose(fitter, path, sha256)
                maps = {"raw": decomposition.raw, "clean": decomposition.semantics}
                if fitter.view_pairs:
                    maps |= {PAIRS_RAW: pairs.raw, PAIRS_CLEAN: pairs.clean}
                maps = {part: _stored(path, features, half) for part, features in maps.items()}
            except ImageError as error:
                skip(path, " ".join(str(error).split()))
                continue
            if finished is not None:
                finished(path, picture, decomposition)
            writer.add(sha256, path, maps, decomposition.stats)
        failures = team.gather(failures)
        if team.rank == 0:
            finish(folder, failures, shard_bytes)
    team.wait()
    return failures


def settings_of(fitter: ImageFitter, half: bool, calibrate: int = 0) -> dict[str, Any]:
    """Collect the settings on which two runs into one store must agree; those of calibration before it was done."""
    cfg = getattr(fitter.model, "pretrained_cfg", None) or {"architecture": type(fitter.model).__name__}
    return {
        "format": FORMAT,
        "model": name_of(cfg),
        "weights_sha256": fingerprint(fitter.model),
        **({"weights_file_sha256": own} if (own := own_weights_sha256(fitter.model)) else {}),
        "stride": list(fitter.model.patch_embed.proj.stride),
        "dtype": "float16" if half else "float32",
        "solver": repr(fitter.solver),
        **_prior_artifact(fitter.solver),
        "views": fitter.settings,
        "view_pairs": fitter.view_pairs,
        **({CALIBRATED_ON: calibrate} if calibrate else {}),
    }


def _prior_artifact(solver: Any) -> dict[str, str]:
    """Hash the artifact that a solver pulls to, if it has one."""
    prior = getattr(solver, "prior_artifact", None)
    if prior is None:
        return {}
    return {"prior_artifact_sha256": hashlib.sha256(prior.detach().double().cpu().numpy().tobytes()).hexdigest()}


def own_weights_sha256(model: Any) -> str | None:
    """Hash the file that a model's weights were read from; None if it is what the name stands for."""
    file = (getattr(model, "pretrained_cfg", None) or {}).get("file")
    path = weights_file(file) if file else None
    if path is None:
        return None
    embedded = {variant.backbone.sha256 for variant in published_variants().values() if variant.backbone}
    return None if (sha256 := sha256_of(path)) in embedded else sha256


def fingerprint(model: torch.nn.Module, skipped: tuple[str, ...] = ("denoiser.", "head.")) -> str:
    """Hash a backbone's weights (SHA-256); tensors whose names begin with `skipped` do not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(skipped):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def unique(images: Iterable[Path], done: set[str], skip: Callable[[Path, str], None]) -> list[tuple[Path, str]]:
    """Find the images that are not done, each content once, with its SHA-256."""
    todo: dict[str, Path] = {}
    for path in images:
        try:
            sha256 = sha256_of(path)
        except (OSError, ValueError) as error:  # ValueError: a name with NUL in it
            skip(path, f"{path}: {'not found' if isinstance(error, FileNotFoundError) else reason_of(error)}")
            continue
        if sha256 not in done:
            todo.setdefault(sha256, path)
    return [(path, sha256) for sha256, path in todo.items()]


def _decompose(fitter: ImageFitter, path: Path, sha256: str) -> tuple[Image.Image, Decomposition, ViewPairs]:
    picture, read = read_hashed(path)
    if read != sha256:
        raise ImageError(f"{path}: replaced since the run began; run the same again")
    check_aspect(path, picture)
    try:
        return picture, *fitter.with_pairs(picture, seed_of(sha256))
    except UNFIT as error:
        raise ImageError(f"{path}: {str(error) or type(error).__name__}") from error


def seed_of(sha256: str) -> int:
    """Derive the seed of an image's own draws, which its content decides and its name does not."""
    return int(sha256[:16], 16)


def _stored(path: Path, features: torch.Tensor, half: bool) -> torch.Tensor:
    stored = features.half() if half else features.float()
    if not bool(stored.isfinite().all()):
        out = ", or pass half=False" if half else ""
        raise ImageError(f"{path}: features hold NaN or Inf; check the model's weights{out}")
    return stored
