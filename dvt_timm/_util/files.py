"""Files on disk: written whole or not at all, read with an error that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"  # of a saved head or model
PICKLED_WEIGHTS = "pytorch_model.bin"  # of old repositories, which timm reads
METRICS = "metrics.json"  # beside what training leaves
LOCK = ".lock"
BLOCK = 1 << 20


class CommandError(Exception):
    """Nothing can be done; the text says why in one line."""

    status = 2  # of the process that it ends


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A scratch path beside `target` that takes its place once it is written whole; else nothing changes."""
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
    """The object in a JSON file.

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


def remove_scratch(folder: Path, names: str) -> None:
    """Remove what `replacing` leaves when it is killed; `names`: a regular expression of the files' own names."""
    scratch = re.compile(rf"\.[0-9a-f]{{8}}\.({names})")
    for path in folder.iterdir():
        if scratch.fullmatch(path.name):
            path.unlink()


def write_json(target: Path, value: Any) -> None:
    """Replace a file by a value as JSON."""
    with replacing(target) as path:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def alone_in(folder: Path, kept: str) -> Iterator[None]:
    """Make a folder, or take it up, for this process alone.

    Args:
        folder: of a run's results.
        kept: what is not lost if it fails, in the plural.

    Raises:
        CommandError: if the folder cannot be written, or another process is in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK).acquire(timeout=0):
            yield
    except Timeout as error:
        raise CommandError(f"another run is writing to {folder}; wait for it, or choose another --out") from error
    except OSError as error:
        raise CommandError(
            f"cannot write {folder}: {error}; mend that and run the same again, {kept} are kept"
        ) from error


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new run, compare those of one that goes on.

    Raises:
        CommandError: if they differ, or the file is damaged.
    """
    if not path.exists():
        write_json(path, settings)
        return
    try:
        stored = _flat(read_json(path))
    except ValueError as error:
        raise CommandError(f"{error}; choose another --out") from error
    wanted = _flat(json.loads(json.dumps(settings)))
    differing = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    if differing:
        changes = ", ".join(f"{key} is {stored.get(key)!r}, not {wanted.get(key)!r}" for key in differing)
        raise CommandError(f"{path.parent} was made with other settings: {changes}; choose another --out")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def sha1s_of(path: Path) -> list[str]:
    """What git calls a small file, its hash with a header, and its plain SHA-1, which some mirrors of the Hub name."""
    data = path.read_bytes()
    header = b"blob %d\0" % len(data)
    return [hashlib.sha1(text, usedforsecurity=False).hexdigest() for text in (header + data, data)]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
