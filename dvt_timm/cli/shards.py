"""What `dvt-timm features --shards` leaves: many images' maps in a file, and beside it what is in it.

A folder of shards:
- `features.json`: the settings; a run with others is refused.
- `shard-<hash>.safetensors`: `<sha256>.<map>` [h, w, C] of some images; or `.parquet`, a row for each.
- `shard-<hash>.jsonl`: a line for each image of the shard: its name, where it lay, its SHA-256, sizes.

Files appear whole or not at all, a shard before its index. A shard without one is not taken for finished.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from .._util.errors import RunError
from .._util.files import alone_in, json_text, replacing, sha256_of, write_text
from .._util.images import printable
from .._util.team import Team
from .._util.tensors import MOST_TENSORS, TensorFile
from ..extraction import Extracted
from .console import CommandError
from .results import Recipe

SETTINGS = "features.json"
FORMAT = 1
OWN_FILES = r"features\.json|shard-[0-9a-f]{16}\.(safetensors|parquet|jsonl)"
OF_THE_RUN = ("version", "weights")  # metadata on which runs into one folder need not agree


class ShardFile(Protocol):
    """A shard that is being written."""

    def add(self, row: Mapping[str, Any], maps: Mapping[str, Tensor]) -> None:
        """Write an image's maps [h, w, C]."""

    def finish(self) -> None:
        """Write what is left: the file is whole now."""

    def close(self) -> None:
        """Let go of the file."""


class SafetensorsShard:
    """A shard of maps by the SHA-256 of their images; those of one content are there once."""

    def __init__(self, path: Path, recipe: Recipe, most: int) -> None:
        self._file = TensorFile(path, most * len(recipe.names), recipe.metadata)
        self.finish, self.close = self._file.finish, self._file.close

    def add(self, row: Mapping[str, Any], maps: Mapping[str, Tensor]) -> None:
        """Write an image's maps [h, w, C]."""
        for name, fmap in maps.items():
            if (key := f"{row['sha256']}.{name}") not in self._file:
                self._file.add(key, fmap)


def check_shards(recipe: Recipe, arguments: Namespace) -> None:
    """Raise CommandError if a shard would have more maps than a file takes, ImportError if pyarrow is missing."""
    if arguments.format == "parquet":
        from .parquet import check_pyarrow

        check_pyarrow()
    elif arguments.shards * len(recipe.names) > MOST_TENSORS:
        most = MOST_TENSORS // len(recipe.names)
        raise CommandError(f"--shards {arguments.shards}: a file takes at most {most:,} images of these maps")


@contextmanager
def shards_in(
    folder: Path, recipe: Recipe, arguments: Namespace, targets: Mapping[Path, Path], team: Team
) -> Iterator[Shards]:
    """Make a folder of shards, or go on with one, for the processes of this run alone.

    Raises:
        RunError: if the folder holds other things, or shards of other settings.
        BlockingIOError: if another run is writing to it.
        OSError: if it cannot be written.
    """
    settings = {key: value for key, value in recipe.metadata.items() if key not in OF_THE_RUN}
    settings |= {"format": FORMAT, "files": arguments.format}
    with ExitStack() as stack:
        if team.rank == 0:
            stack.enter_context(alone_in(folder, SETTINGS, settings, own_files=OWN_FILES, kept="finished shards"))
            _remove_unfinished(folder, arguments.format)
        team.wait()
        with Shards(folder, recipe, arguments, targets, team) as shards:
            yield shards
        team.wait()  # the first process has the folder until all have closed theirs


class Shards:
    """Results in shards; each process fills its own.

    Args:
        folder: of the shards.
        recipe: of the results.
        arguments: of the command line.
        targets: image -> path of its results, which names it within the folder.
        team: the processes of the run.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, arguments: Namespace, targets: Mapping[Path, Path], team: Team
    ) -> None:
        self.folder, self.recipe, self.team = folder, recipe, team
        self.most, self.suffix = arguments.shards, arguments.format
        self.names = {path: printable(target.relative_to(folder)) for path, target in targets.items()}
        self._done = rows_in(folder)
        self._open: _OpenShard | None = None
        self._is_writing = False

    def is_done(self, path: Path) -> bool:
        """Whether the maps of an image of these bytes are in a shard."""
        row = self._done.get(self.names[path])
        try:
            return row is not None and row["sha256"] == sha256_of(path)
        except OSError:
            return False

    def todo(self, missing: Sequence[Path]) -> list[Path]:
        """Give up the shards that hold an image which has changed; the images that are missing then, in their order."""
        names = {self.names[path] for path in missing}
        given_up = {row["shard"] for name, row in self._done.items() if name in names}
        names |= {name for name, row in self._done.items() if row["shard"] in given_up}
        if others := names - set(self.names.values()):
            raise CommandError(
                f"an image has changed, or another one has its name, and its shard holds {len(others)} images that are "
                f"not among those named, {min(others)!r} say; name them too, or choose another --out"
            )
        if self.team.rank == 0:
            for shard in given_up:
                (self.folder / shard).with_suffix(".jsonl").unlink()
                (self.folder / shard).unlink()
        self.team.wait()
        return [path for path, name in self.names.items() if name in names or name not in self._done]

    def add(self, features: Extracted) -> None:
        """Write the maps of an image into the open shard; closes it when it is full."""
        assert features.path is not None
        row = {
            "name": self.names[features.path],
            "path": printable(features.path),
            "sha256": features.sha256,
            "original_size": list(features.original_size),
            "image_size": list(features.pixels.shape[:2]),
            "grid_size": list(features.raw.shape[:2]),
            "dim": features.raw.shape[2],
        }
        with self._writing():
            if self._open is None:
                self._open = _OpenShard(self.folder, self.recipe, self.suffix, self.most, row)
            self._open.add(row, self.recipe.maps(features))
            if len(self._open.rows) == self.most:
                self.close()

    def close(self) -> None:
        """Write the open shard, if there is one."""
        if self._open is not None:
            with self._writing():
                shard, self._open = self._open, None
                shard.finish()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Write the open shard, after Ctrl-C too unless that came in the midst of writing; drop it after an error."""
        if kind is None or (issubclass(kind, KeyboardInterrupt) and not self._is_writing):
            self.close()
        elif self._open is not None:
            self._open.scratch.__exit__(kind, error, at)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._is_writing = True
        try:
            yield
        except OSError as error:
            raise CommandError(
                f"cannot write {self.folder}: {error}; finished shards are kept, run the same again"
            ) from error
        self._is_writing = False


class _OpenShard:
    """The shard in work, under a scratch name; named by its first image."""

    def __init__(self, folder: Path, recipe: Recipe, suffix: str, most: int, first: Mapping[str, Any]) -> None:
        name = hashlib.sha256(f"{first['sha256']} {first['name']}".encode()).hexdigest()[:16]
        self.path = folder / f"shard-{name}.{suffix}"
        self.rows: list[dict[str, Any]] = []
        with ExitStack() as stack:
            path = stack.enter_context(replacing(self.path))
            self._file = stack.enter_context(closing(_file_at(path, recipe, suffix, most)))
            self.scratch = stack.pop_all()

    def add(self, row: Mapping[str, Any], maps: Mapping[str, Tensor]) -> None:
        """Write an image's maps."""
        self._file.add(row, maps)
        self.rows.append({**row, "shard": self.path.name})

    def finish(self) -> None:
        """Write what is left, then the index."""
        with self.scratch:
            self._file.finish()
        write_text(self.path.with_suffix(".jsonl"), "".join(json_text(row) + "\n" for row in self.rows))


def _file_at(path: Path, recipe: Recipe, suffix: str, most: int) -> ShardFile:
    if suffix == "safetensors":
        return SafetensorsShard(path, recipe, most)
    from .parquet import ParquetShard

    return ParquetShard(path, recipe)


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the lines of all finished shards, by the images' names; raise RunError if one is damaged."""
    rows: dict[str, dict[str, Any]] = {}
    for index in sorted(folder.glob("shard-*.jsonl")):
        for line in index.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                rows[row["name"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{index} is damaged; delete it, and its images are made again") from error
    return rows


def _remove_unfinished(folder: Path, suffix: str) -> None:
    """Remove what a killed run left: a shard without its index; and an index whose shard is gone."""
    shards, indices = ({path.stem: path for path in folder.glob(f"shard-*.{kind}")} for kind in (suffix, "jsonl"))
    for name in shards.keys() ^ indices.keys():
        (shards.get(name) or indices[name]).unlink()
