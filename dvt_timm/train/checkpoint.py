"""The state of a run on disk, whole or not at all: weights, optimizer, step; read without running any code of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from .._util.errors import RunError
from .._util.files import replacing

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint.

    Raises:
        OSError: if it cannot be written; the one before stays.
    """
    try:
        with replacing(path) as scratch:
            torch.save(state, scratch)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{path}: {error}") from error


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state of a run, None if it has none yet.

    Raises:
        RunError: if the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}); remove it to begin anew") from error
    return state
