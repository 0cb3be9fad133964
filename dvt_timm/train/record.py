"""Which images a run was begun with: their names, in its folder; some may be gone when it is taken up."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .._util.errors import RunError
from .._util.files import read_json, write_json
from .stage import Stage

IMAGES, VALIDATION = "images", "validation"  # samples to train on, and others to measure on
SETTINGS, RECORD = "train.json", "images.json"  # the latter is {"images" or "validation": [name, ...]}


def begun_with(run: Path, paths: Sequence[Path]) -> list[Path]:
    """Give the images that a run was begun with, if these are what is left of them; of a new run, these.

    Images that are gone count as such that cannot be read: every position of the run keeps its sample.

    Raises:
        RunError: if it was begun with others.
    """
    before = _names_in(run, IMAGES)
    if before is None:
        return list(paths)
    _check_same(run, before, list(map(str, paths)), may_lack=lambda name: not os.path.lexists(name))
    return [Path(name) for name in before]


def check_begun_with(run: Path, stage: Stage) -> None:
    """Raise RunError if a run was begun with other samples than a stage's."""
    for part, names in _names_of(stage).items():
        before = _names_in(run, part)
        if before is not None:
            _check_same(run, before, names, may_lack=lambda name: False)


def record(run: Path, stage: Stage) -> None:
    """Write down which images a new run is begun with."""
    if not (run / RECORD).exists():
        write_json(run / RECORD, _names_of(stage))


def _names_of(stage: Stage) -> dict[str, list[str]]:
    parts = {IMAGES: stage.samples, VALIDATION: stage.validation}
    return {part: [str(of.path(i)) for i in range(len(of))] for part, of in parts.items() if of is not None}


def _names_in(run: Path, part: str) -> list[str] | None:
    """Read the names, None if nothing was written down."""
    if not ((run / SETTINGS).is_file() and (run / RECORD).is_file()):
        return None
    try:
        names: list[str] | None = read_json(run / RECORD).get(part)
    except ValueError as error:
        raise RunError(f"{error}; remove it if the images are the same, or choose another folder") from error
    return names


def _check_same(run: Path, before: list[str], now: list[str], may_lack: Callable[[str], bool]) -> None:
    new, lost = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    lost = [name for name in lost if not may_lack(name)]
    changes = [
        f"{what}: {len(names)}, first {names[0]}" for names, what in ((lost, "not named now"), (new, "new")) if names
    ]
    if changes:
        raise RunError(
            f"{run} was made with {len(before)} images, now others are named ({'; '.join(changes)}); name the "
            "same, or choose another folder"
        )
