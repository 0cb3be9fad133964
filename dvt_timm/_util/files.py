"""Files on disk: written whole or not at all, read with an error that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import RunError

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"  # of a saved head or model
PICKLED_WEIGHTS = "pytorch_model.bin"  # of old repositories, which timm reads
LAST = "last"  # folder within a run's, of its last weights
METRICS, VERDICT = "metrics.json", "verdict.json"  # beside what training leaves
LOCK = ".lock"
OF_SAFETENSORS = r"\.tmp[A-Za-z0-9]{6}"  # the file that it writes before it takes the one that was asked for
BLOCK = 1 << 20


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a scratch path beside `target` that takes its place once it is written whole; else nothing changes."""
    scratch = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: if it is no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def weights_file(place: str | Path) -> Path | None:
    """Give the file of weights that a folder or a file's path stands for; None if there is none."""
    path = Path(place, WEIGHTS_NAME) if Path(place).is_dir() else Path(place)
    return path if path.is_file() else None


def as_file_name(text: str) -> str:
    """Spell a text as the name of a file, UTF-8 on disk whatever the locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def remove_scratch(folder: Path, names: str) -> None:
    """Remove what `replacing`, or safetensors in it, leaves when it is killed; `names`: a regular expression."""
    for path in folder.iterdir():
        if _is_scratch(path, names):
            path.unlink()


def _is_scratch(path: Path, names: str) -> bool:
    return re.fullmatch(rf"\.[0-9a-f]{{8}}\.({names})|{OF_SAFETENSORS}", path.name) is not None


def write_text(target: Path, text: str) -> None:
    """Replace a file by a text, UTF-8; names of files in it need not be."""
    with replacing(target) as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(target: Path, value: Any) -> None:
    """Replace a file by a value as JSON."""
    write_text(target, json_text(value, indent=1) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Write a value as JSON that every reader takes: NaN and infinities, which JSON has no word for, are null."""
    return json.dumps(_strict(value), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; raise BlockingIOError if one is in it."""
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            yield
    except Timeout as error:
        raise BlockingIOError(f"another run is writing to {folder}; wait for it, or choose another folder") from error


@contextmanager
def alone_in(folder: Path, file: str, settings: dict[str, Any], *, own_files: str, kept: str) -> Iterator[None]:
    """Make the folder of a run, or take one up, for this process alone.

    Args:
        folder: where the run's results go.
        file: name of the file that holds the run's settings, and shows that the folder is a run's.
        settings: what two runs into one folder must agree on.
        own_files: a regular expression of the names of a run's files.
        kept: what is not lost if the run fails, in the plural.

    Raises:
        RunError: if the folder holds other things, or a run of other settings.
        BlockingIOError: if another process is in it.
        OSError: if it cannot be written, now or later.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_ours(folder, file, own_files)
        with locked(folder):
            remove_scratch(folder, own_files)
            _check_settings(folder / file, settings)
            yield
    except BlockingIOError:
        raise
    except OSError as error:
        failed = OSError(
            f"cannot write {folder}: {error}; mend that and call it again with the same arguments, {kept} are kept"
        )
        failed.errno = error.errno
        raise failed from error


def _check_ours(folder: Path, file: str, own_files: str) -> None:
    """Raise RunError if a folder is neither a run's nor empty, but for what a run leaves that is killed at once."""
    others = (path.name for path in folder.iterdir() if path.name != LOCK and not _is_scratch(path, own_files))
    if not (folder / file).exists() and next(others, None) is not None:
        raise RunError(
            f"{folder} is not empty and holds no run of dvt-timm (no {file}); choose another folder, or an empty one"
        )


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new run, compare those of one that goes on."""
    if not path.exists():
        write_json(path, settings)
        return
    try:
        stored = _flat(read_json(path))
    except ValueError as error:
        raise RunError(f"{error}; choose another folder") from error
    wanted = _flat(json.loads(json_text(settings)))
    differing = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    if differing:
        changes = ", ".join(f"{key} is {stored.get(key)!r}, not {wanted.get(key)!r}" for key in differing)
        raise RunError(f"{path.parent} was made with other settings: {changes}; choose another folder")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def sha1s_of(path: Path) -> list[str]:
    """Hash a small file as git does, with a header, and plainly, as some mirrors of the Hub do: two SHA-1s."""
    data = path.read_bytes()
    header = b"blob %d\0" % len(data)
    return [hashlib.sha1(text, usedforsecurity=False).hexdigest() for text in (header + data, data)]


def sha256_of(path: Path) -> str:
    """Hash a file: its SHA-256, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
