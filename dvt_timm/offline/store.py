"""A store of many images' raw and clean features on disk: writing it, and reading it.

A store is a folder:
- `store.json`: the settings; a run with others is refused.
- `artifact.safetensors`: what the artifacts of all images were pulled to, if the run was calibrated (`calibration`).
- `shard-<hash>.safetensors`: for each of some images `<sha256>.raw` and `<sha256>.clean` [h, w, C], with N view pairs
  also `<sha256>.pairs.raw` and `<sha256>.pairs.clean` [1 + N, h, w, C]; and in the metadata, as JSON, where the images
  lay and what the solver says of them.
- `pending/<sha256>.safetensors`: finished images that are in no shard yet, each like a shard of one.
- `index.json`: all images and their shards, and those that were skipped; written when a run ends.

An image is known by the SHA-256 of its file. Files appear whole or not at all, so that a run may be killed at any
point: the next one goes on with the images that are in no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._util.errors import RunError
from .._util.files import alone_in, json_text, read_json, remove_scratch, sha256_of, write_json
from .._util.images import printable
from .._util.tensors import save_tensors
from .._version import __version__

SETTINGS, INDEX, PENDING = "store.json", "index.json", "pending"
ARTIFACT = "artifact.safetensors"
CALIBRATED_ON = "calibrated_on"  # of the settings: a number of images
OWN_FILES = r"(store|index)\.json|artifact\.safetensors|shard-[0-9a-f]+\.safetensors|[0-9a-f]{64}\.safetensors"
PAIRS_RAW, PAIRS_CLEAN = "pairs.raw", "pairs.clean"
FORMAT = 2
SHARD_BYTES = 256 << 20  # a shard is closed once it is as large


@dataclass(frozen=True)
class Entry:
    """One image of a store."""

    sha256: str  # the image file's
    image: str  # its path, as given
    stats: dict[str, Any]  # the solver's figures
    file: Path  # where its maps are


class FeatureStore:
    """A map-style dataset of (raw, clean) feature maps; made by `open_store`.

    Files are mapped into memory and only what is asked for is read. It may be sent to other processes (data workers).

    Attributes:
        folder: where the store lies.
        settings: model, views and solver that its features come from.
        entries: for each image its SHA-256, its path as given (`entries[i].image`) and the solver's figures.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], entries: Sequence[Entry]) -> None:
        self.folder, self.settings, self.entries = folder, settings, list(entries)
        self._files: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Read (raw, clean) of image i: [h, w, C] each, in the store's dtype."""
        return self.raw(i), self.clean(i)

    @property
    def num_pairs(self) -> int:
        """How many pairs each image has: its own, and one of each of some views."""
        return 1 + int(self.settings.get("view_pairs", 0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, C) of the first image's maps; those of others may have another h and w."""
        h, w, C = self.raw(0).shape
        return h, w, C

    def pair(self, i: int, k: int) -> tuple[Tensor, Tensor]:
        """Read (raw, target) of image i (k = 0) or of one of its views (1 <= k < num_pairs): [h, w, C] each.

        Raises:
            IndexError: if the store has no such pair.
        """
        check_pair(k, self.num_pairs)
        if self.num_pairs == 1:
            return self[i]
        return self._read(i, PAIRS_RAW, k), self._read(i, PAIRS_CLEAN, k)

    def raw(self, i: int) -> Tensor:
        """Read the model's features of image i: [h, w, C]."""
        return self._read(i, "raw")

    def clean(self, i: int) -> Tensor:
        """Read the semantics of image i: [h, w, C]."""
        return self._read(i, "clean")

    def path(self, i: int) -> Path:
        """Say which file image i was when it was decomposed."""
        return Path(self.entries[i].image)

    def _read(self, i: int, part: str, row: int | None = None) -> Tensor:
        check_index(i)
        if not self.entries[i].file.exists():  # a run that is going on has put it into a shard
            now = {entry.sha256: entry for entry in _entries_in(self.folder)}
            self.entries = [now.get(entry.sha256, entry) for entry in self.entries]
        entry = self.entries[i]
        if entry.file not in self._files:
            try:
                self._files[entry.file] = _open(entry.file)
            except FileNotFoundError as error:
                raise RunError(f"{entry.file} is gone; `fit_store` computes its images again") from error
        file, key = self._files[entry.file], f"{entry.sha256}.{part}"
        tensor: Tensor = file.get_tensor(key) if row is None else file.get_slice(key)[row]
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def check_index(i: Any) -> None:
    """Raise TypeError unless i is the number of one image."""
    if not hasattr(i, "__index__"):
        raise TypeError(f"images are read one at a time, got {i!r}; give a whole number")


def check_pair(k: int, num_pairs: int) -> None:
    """Raise IndexError unless an image has a pair k."""
    if not 0 <= k < num_pairs:
        raise IndexError(f"pair must be 0..{num_pairs - 1}, got {k}; fit with a larger view_pairs for more")


def open_store(folder: str | Path) -> FeatureStore:
    """Open the images of a store, finished or not, in the order of their paths.

    Raises:
        ValueError: if the folder holds no store.
        RunError: if one of its files is damaged.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} holds no feature store (no {SETTINGS}); `fit_store` writes one")
    settings = read_json(folder / SETTINGS)
    if settings.get("format") != FORMAT:
        raise ValueError(
            f"{folder} is a store of format {settings.get('format')}, and this version reads {FORMAT}; "
            "`fit_store` makes it anew in another folder"
        )
    if (folder / ARTIFACT).is_file():
        settings["shared_artifact_sha256"] = sha256_of(folder / ARTIFACT)
    entries = {entry.sha256: entry for entry in _entries_in(folder)}
    return FeatureStore(folder, settings, sorted(entries.values(), key=lambda entry: (entry.image, entry.sha256)))


@dataclass
class StoreWriter:
    """Fills a store for one process; several may write at once."""

    folder: Path
    shard_bytes: int = SHARD_BYTES
    _pending: list[Path] = field(default_factory=list)  # what this process has finished

    def add(self, sha256: str, image: Path, maps: dict[str, Tensor], stats: dict[str, Any]) -> None:
        """Keep one image's maps, named as in a shard; closes a shard when it is full.

        Raises:
            OSError: if they cannot be written.
        """
        maps = {f"{sha256}.{part}": features.contiguous().cpu() for part, features in maps.items()}
        record = {sha256: {"image": printable(image), "stats": stats}}
        path = self.folder / PENDING / f"{sha256}.safetensors"
        _write(path, maps, record)
        self.take(path)

    def take(self, pending: Path) -> None:
        """Put a pending file into the open shard; closes it when it is full."""
        self._pending.append(pending)
        if sum(file.stat().st_size for file in self._pending) >= self.shard_bytes:
            self.close()

    def close(self) -> None:
        """Write the open shard."""
        _merge(self.folder, self._pending)
        self._pending = []


@contextmanager
def writing(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Make a store, or take an unfinished one up, for this run alone.

    Raises:
        RunError: if the folder holds other things, a store of other settings, or a damaged one.
        BlockingIOError: if another run is writing to it.
        OSError: if it cannot be written.
    """
    with alone_in(folder, SETTINGS, settings, own_files=OWN_FILES, kept="finished images"):
        (folder / PENDING).mkdir(exist_ok=True)
        _tidy(folder)
        yield


def unmake(folder: Path) -> None:
    """Take the settings off a store that holds no image, so that the folder takes others."""
    (folder / PENDING).rmdir()
    (folder / SETTINGS).unlink()


def finish(folder: Path, skipped: dict[str, str], shard_bytes: int = SHARD_BYTES) -> None:
    """Put all pending files into shards, and list all images with theirs, and the skipped ones with the reason."""
    writer = StoreWriter(folder, shard_bytes)
    for file in _pending_in(folder):
        writer.take(file)
    writer.close()
    entries = open_store(folder).entries
    images = [{"image": entry.image, "sha256": entry.sha256, "shard": entry.file.name} for entry in entries]
    write_json(folder / INDEX, {"images": images, "skipped": skipped})


def calibrated_on(folder: Path) -> int | None:
    """Read on how many images the shared artifact of a store is found, 0 for none; None if there is no store."""
    try:
        return int(read_json(folder / SETTINGS).get(CALIBRATED_ON, 0))
    except (OSError, ValueError, TypeError):
        return None


def done_in(folder: Path) -> set[str]:
    """Collect the SHA-256 of every image that a store holds.

    Raises:
        RunError: if one of its files is damaged.
    """
    return {entry.sha256 for entry in _entries_in(folder)}


def _entries_in(folder: Path) -> list[Entry]:
    """List all images; the shards come last, since a run that is going on turns pending files into shards meanwhile."""
    pending = [entry for file in _pending_in(folder) for entry in _entries_of(file)]
    return pending + [entry for file in _shards_of(folder) for entry in _entries_of(file)]


def _pending_in(folder: Path) -> list[Path]:
    return sorted((folder / PENDING).glob("[!.]*.safetensors"))  # none that is being written


def _shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "pt").__enter__()
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file} is damaged: {error}; delete it, and `fit_store` computes its images again") from error


def _entries_of(file: Path) -> list[Entry]:
    """List the images of one file; none if it is gone."""
    try:
        metadata = _open(file).metadata() or {}
    except FileNotFoundError:
        return []
    try:
        records = json.loads(metadata["images"])
        return [Entry(sha256, record["image"], record["stats"], file) for sha256, record in records.items()]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is no part of a feature store; move it elsewhere") from error


def _write(target: Path, maps: dict[str, Tensor], records: dict[str, Any]) -> None:
    metadata = {"version": __version__, "images": json_text(records)}
    save_tensors(maps, target, metadata)


def _merge(folder: Path, files: list[Path]) -> None:
    """Put pending files into one shard, and remove them once it is written."""
    if not files:
        return
    maps: dict[str, Tensor] = {}
    records: dict[str, Any] = {}
    for file in files:
        maps.update({key: opened.get_tensor(key) for opened in [_open(file)] for key in opened.keys()})  # noqa: SIM118
        records.update({e.sha256: {"image": e.image, "stats": e.stats} for e in _entries_of(file)})
    name = hashlib.sha256("".join(sorted(records)).encode()).hexdigest()[:16]
    _write(folder / f"shard-{name}.safetensors", maps, records)
    for file in files:
        file.unlink()


def _tidy(folder: Path) -> None:
    """Remove pending files that a killed run left half written, and those that a shard holds already."""
    remove_scratch(folder / PENDING, OWN_FILES)
    for entry in [entry for file in _shards_of(folder) for entry in _entries_of(file)]:  # all are read before any goes
        (folder / PENDING / f"{entry.sha256}.safetensors").unlink(missing_ok=True)
