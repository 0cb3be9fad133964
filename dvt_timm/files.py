"""Files on disk: written whole or not at all, read with an error that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLOCK = 1 << 20


class CommandError(Exception):
    """Nothing can be done; the text says why in one line."""


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
