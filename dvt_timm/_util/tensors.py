"""Writing tensors to files."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .files import replacing


def save_tensors(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; raise OSError if it cannot be written."""
    with replacing(target) as path:
        try:
            save_file(tensors, path, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"cannot write {target}: {error}") from error
