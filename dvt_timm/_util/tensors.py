"""Writing tensors to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .files import replacing

ENTRY = 256  # bytes that are reserved for what a header says of a tensor
MOST_TENSORS = 100_000_000 // ENTRY  # a header of more bytes is refused by those who read it
DTYPES = {torch.float16: "F16", torch.float32: "F32"}


def save_tensors(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; raise OSError if it cannot be written."""
    with replacing(target) as path:
        try:
            save_file(tensors, path, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"cannot write {target}: {error}") from error


class TensorFile:
    """A safetensors file that is written tensor by tensor, in the memory of one.

    The header of the format comes first and says where every tensor lies. Room for it is reserved, and filled up with
    spaces, as the format allows (https://github.com/huggingface/safetensors#format).

    Args:
        path: of the file.
        most: how many tensors it may hold, up to `MOST_TENSORS`.
        metadata: of the file.

    Raises:
        OSError: if it cannot be written, as from all methods.
    """

    def __init__(self, path: Path, most: int, metadata: Mapping[str, str]) -> None:
        self._header: dict[str, Any] = {"__metadata__": dict(metadata)}
        self._room = (len(json.dumps(self._header)) + ENTRY * most + 7) // 8 * 8
        self._end = 0
        self._file = path.open("wb")
        self._file.seek(8 + self._room)

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, float16 or float32 on the CPU; its name takes at most 100 bytes."""
        array = tensor.contiguous().numpy()
        offsets = [self._end, self._end + array.nbytes]
        self._header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        self._file.write(array.data)
        self._end = offsets[1]

    def finish(self) -> None:
        """Write the header: the file is whole now."""
        header = json.dumps(self._header).encode().ljust(self._room)
        assert len(header) == self._room
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
