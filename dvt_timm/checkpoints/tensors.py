"""Read the authors' `.pth` checkpoints; the only module that opens a pickle.

A denoiser file is `{"denoiser": state_dict, "optimizer": ..., "step": int}`, a distilled one `{"model": state_dict,
...}` with timm's own keys behind the prefix `model.`. The optimiser state holds a numpy float64 learning rate, which
is all that is admitted besides tensors and plain Python values.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from numpy._core.multiarray import scalar
except ImportError:  # numpy 1
    from numpy.core.multiarray import scalar  # type: ignore[no-redef]

# what torch.load raises on files that are no checkpoints
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, struct.error)
_FLOAT64_SCALAR: list[Any] = [
    (scalar, "numpy._core.multiarray.scalar"),
    (scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


def is_head(state: Mapping[str, Any]) -> bool:
    """Whether the keys are a denoiser head's, not a backbone's."""
    return any(key.startswith("denoiser.") for key in state)


def check_finite(state: dict[str, Tensor], source: object) -> dict[str, Tensor]:
    """The same tensors; ValueError if a value of theirs is not finite."""
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"{source}: values of {', '.join(bad)} are not finite; the file is damaged or badly trained")
    return state


def checkpoint_keys(path: Path | str) -> set[str]:
    """The names in a PyTorch checkpoint, `{"state_dict": ...}` and its like looked into; none if it cannot be read."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # in the checkpoints of timm's train.py
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (*UNREADABLE, OSError):
        return set()
    states = [checkpoint, *checkpoint.values()] if isinstance(checkpoint, dict) else []
    return {str(key) for state in states if isinstance(state, dict) for key in state}


def _reason(error: Exception) -> str:
    """Why torch cannot read a file, without its advice to read it unsafely."""
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds a {foreign[1]}, and nothing but tensors, plain values and numpy's float64 is read"
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The tensors of an authors' checkpoint, on the CPU, under the keys of `DenoiserHead` or of timm.

    Args:
        path: a denoised or distilled `.pth` file.

    Raises:
        ValueError: if the file is not such a checkpoint, is damaged, or would run code.
    """
    try:
        with torch.serialization.safe_globals(_FLOAT64_SCALAR):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {_reason(error)}") from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    for kind, prefix in (("denoiser", ""), ("model", "model.")):
        state = checkpoint.get(kind)
        if isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    raise ValueError(f"{path} holds neither 'denoiser' nor 'model' tensors, only {sorted(map(str, checkpoint))}")
