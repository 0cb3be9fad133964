"""What the pixels of masks mean: indices or colors of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probes import VOID
from .listed import read_list, read_png

NO_CLASS = "void"  # in classes.txt


@dataclass(frozen=True)
class Encoding:
    """What the pixels of a mask mean.

    Attributes:
        labels: class, or 255 to ignore, by value: an index, or 65536 r + 256 g + b.
        num_classes: K.
        colors: whether values are colors.
    """

    labels: dict[int, int]
    num_classes: int
    colors: bool = False

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Read a mask: [H, W], classes 0..K-1, 255 to ignore.

        Raises:
            ImageError: if it is no PNG.
            ValueError: if a pixel has a value that means nothing.
        """
        pixels = self._values(path)
        distinct, places = np.unique(pixels, return_inverse=True)
        values = distinct.tolist()
        unknown = [value for value in values if value not in self.labels]
        if unknown:
            what = tuple(unknown[0].to_bytes(3, "big")) if self.colors else unknown[0]
            raise ValueError(f"{path}: a pixel has the value {what}, which is none of the {self.num_classes} classes")
        return np.array([self.labels[value] for value in values], dtype=np.uint8)[places].reshape(pixels.shape)

    def _values(self, path: Path) -> NDArray[Any]:  # [H, W]
        image = read_png(path)
        if self.colors:
            return np.asarray(image.convert("RGB")).astype(np.int64) @ np.array([65536, 256, 1])
        pixels = np.asarray(image)
        if pixels.ndim != 2:
            raise ValueError(f'{path}: an {image.mode} mask needs a classes.txt of "red green blue name" lines')
        return pixels


def read_classes(path: Path) -> tuple[list[str], Encoding]:
    """Read the names, and how masks encode them."""
    if not path.is_file():
        raise ValueError(f'{path} not found; write a name a line, or "red green blue name" for colors')
    lines = read_list(path)
    rows = [_color(line) for line in lines]
    if any(rows) and not all(rows):
        odd = lines[rows.index(None)]
        raise ValueError(f'{path}: {odd!r} is no "red green blue name" of 0 to 255, other lines are')
    pairs = [row or (index, name) for index, (row, name) in enumerate(zip(rows, lines, strict=True))]
    if len({value for value, _ in pairs}) < len(pairs):
        raise ValueError(f"{path}: two classes have the same color")
    classes = [name for _, name in pairs if name.lower() != NO_CLASS]
    if not 0 < len(classes) <= VOID:
        raise ValueError(f"{path} names {len(classes)} classes, there may be 1 to {VOID}")
    numbers = iter(range(len(classes)))
    labels = {value: VOID if name.lower() == NO_CLASS else next(numbers) for value, name in pairs}
    if not any(rows):
        labels[VOID] = VOID
    return classes, Encoding(labels, len(classes), colors=any(rows))


def _color(line: str) -> tuple[int, str] | None:
    """Take a line "red green blue name" apart; None if it is none."""
    parts = line.split(maxsplit=3)
    if len(parts) < 4 or not all(part.isdecimal() and int(part) <= 255 for part in parts[:3]):
        return None
    red, green, blue = map(int, parts[:3])
    return red << 16 | green << 8 | blue, parts[3]
