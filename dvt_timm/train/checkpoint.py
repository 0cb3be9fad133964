"""A run's state on disk (weights, optimizer, step): written whole or not at all, read without running code of it."""

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
    except RuntimeError as error:  # a full disk, for one
        raise OSError(f"{path}: {error}") from error


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read the state of a run, None if it has none yet.

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
