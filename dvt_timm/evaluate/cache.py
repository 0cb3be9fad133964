"""Maps of images kept on disk, so that a run that was stopped goes on, and another head costs no pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .._util.tensors import save_tensors

MOST_BYTES = 20 << 30


class MapCache:
    """A folder of maps in half precision, up to a size; what is damaged, or larger than that holds, is made again.

    Args:
        folder: made if it does not exist.
        most_bytes: beyond them nothing more is kept.
        writers: processes that fill the folder together, each its part of the room.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, writers: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.most_bytes, self.writers = folder, most_bytes, writers
        files = folder.glob("[!.]*.safetensors")  # without those that another process is writing
        self._bytes = sum(file.stat().st_size for file in files)

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Read the tensors of a key, float32; None if there are none."""
        try:
            return {name: value.float() for name, value in load_file(self._file(key)).items()}
        except (FileNotFoundError, SafetensorError):
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep tensors while there is room; give them as they would be read, so that a second run has the same."""
        halves = {name: value.half().contiguous().cpu() for name, value in tensors.items()}
        if not all(bool(half.isfinite().all()) for half in halves.values()):
            return dict(tensors)  # beyond half precision: made again each time
        if self._bytes < self.most_bytes:
            save_tensors(halves, self._file(key))
            self._bytes += self.writers * self._file(key).stat().st_size  # the others write as much
        return {name: value.float() for name, value in halves.items()}

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
