"""Stage 1 on many images, into a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from .._util.files import WEIGHTS_NAME, sha256_of
from .._util.images import ImageError, check_aspect, printable, read_image
from ..manifest import published_variants
from ..names import name_of
from .fit import ImageFitter, ViewPairs
from .solution import Decomposition
from .store import FORMAT, PAIRS_CLEAN, PAIRS_RAW, SHARD_BYTES, StoreWriter, done_in, finish, writing

Finished = Callable[[Path, Image.Image, Decomposition], None]  # image file, what was read from it, its decomposition

UNFIT = (MemoryError, RuntimeError, ValueError, AssertionError)  # the CPU's out-of-memory error is a RuntimeError
WAITING = timedelta(days=7)  # how long a process waits for the others: images take unequal times


class Team:
    """The processes that share the work: one, or those that `accelerate launch` started.

    Raises:
        ImportError: if there are several and accelerate is not installed.
    """

    def __init__(self, device: str | None = None) -> None:
        """Join the others; `device` "cpu" keeps off the GPUs."""
        self.rank, self.size, self._state = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise ImportError("several processes need accelerate; pip install 'dvt-timm[train]'") from error
            self._state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=WAITING)
            self.rank, self.size = self._state.process_index, self._state.num_processes

    @property
    def device(self) -> str | None:
        """The device of this process, None where it is alone."""
        return None if self._state is None else str(self._state.device)

    def wait(self) -> None:
        """Wait for all the others."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def gather(self, values: dict[str, str]) -> dict[str, str]:
        """Give every process what all of them have."""
        if self._state is None:
            return values
        from accelerate.utils import gather_object

        return {key: value for part in gather_object([values]) for key, value in part.items()}


def fit_store(
    fitter: ImageFitter,
    images: Sequence[str | PathLike[str]],
    folder: str | PathLike[str],
    *,
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
        images: files; one of the same content as another is taken once.
        folder: the store's, made if it does not exist.
        half: keep float16 rather than float32.
        shard_bytes: a shard is closed once it is as large.
        team: the processes that share the work, this one alone by default.
        finished: called with each image that is new, before it is stored.
        skipped: called with the reason, one line, for each image that cannot be processed.
        progress: whether to show a bar.

    Returns:
        Images that were skipped, and why.

    Raises:
        RunError: if the folder holds other things, a store of other settings, or a damaged one.
        BlockingIOError: if another run is writing to it.
        OSError: if it cannot be written.
    """
    team, folder = team or Team(), Path(folder)
    failures: dict[str, str] = {}

    def skip(path: Path, reason: str) -> None:
        failures[printable(path)] = reason
        if skipped is not None:
            skipped(reason)

    with ExitStack() as stack:
        if team.rank == 0:
            stack.enter_context(writing(folder, settings_of(fitter, half)))
        team.wait()
        done = done_in(folder)
        team.wait()  # all have seen the same before anything is added
        todo = _unique(map(Path, images), done, skip if team.rank == 0 else lambda *_: None)
        writer = StoreWriter(folder, shard_bytes)
        bar = tqdm(todo[team.rank :: team.size], unit="image", disable=None if progress else True)
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


def settings_of(fitter: ImageFitter, half: bool) -> dict[str, Any]:
    """Collect the settings on which two runs into one store must agree."""
    cfg = getattr(fitter.model, "pretrained_cfg", None) or {"architecture": type(fitter.model).__name__}
    return {
        "format": FORMAT,
        "model": name_of(cfg),
        "weights_sha256": fingerprint(fitter.model),
        **_weights_file(fitter.model),
        "stride": list(fitter.model.patch_embed.proj.stride),
        "dtype": "float16" if half else "float32",
        "solver": repr(fitter.solver),
        **_prior_artifact(fitter.solver),
        "views": fitter.settings,
        "view_pairs": fitter.view_pairs,
    }


def _prior_artifact(solver: Any) -> dict[str, str]:
    """Hash the artifact that a solver pulls to, if it has one."""
    prior = getattr(solver, "prior_artifact", None)
    if prior is None:
        return {}
    return {"prior_artifact_sha256": hashlib.sha256(prior.detach().double().cpu().numpy().tobytes()).hexdigest()}


def _weights_file(model: Any) -> dict[str, str]:
    """Hash the file that a model's weights were read from, if that is not what its name stands for."""
    file = (getattr(model, "pretrained_cfg", None) or {}).get("file")
    if not file:
        return {}
    path = Path(file, WEIGHTS_NAME) if Path(file).is_dir() else Path(file)
    if not path.is_file():
        return {}
    embedded = {variant.backbone.sha256 for variant in published_variants().values() if variant.backbone}
    return {} if (sha256 := sha256_of(path)) in embedded else {"weights_file_sha256": sha256}


def fingerprint(model: torch.nn.Module, skipped: tuple[str, ...] = ("denoiser.", "head.")) -> str:
    """Hash a backbone's weights (SHA-256); tensors whose names begin with `skipped` do not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(skipped):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _unique(images: Iterable[Path], done: set[str], skip: Callable[[Path, str], None]) -> list[tuple[Path, str]]:
    """Find the images that are not done, each content once, with its SHA-256."""
    todo: dict[str, Path] = {}
    for path in images:
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            skip(path, f"{path}: {'not found' if isinstance(error, FileNotFoundError) else error.strerror}")
            continue
        if sha256 not in done:
            todo.setdefault(sha256, path)
    return [(path, sha256) for sha256, path in todo.items()]


def _decompose(fitter: ImageFitter, path: Path, sha256: str) -> tuple[Image.Image, Decomposition, ViewPairs]:
    picture = read_image(path)
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
