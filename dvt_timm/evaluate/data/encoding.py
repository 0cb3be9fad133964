"""What the pixels of masks mean: indices or colors of classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._util.images import ImageError
from ..probes import VOID
from .listed import read_colors, read_list, read_png

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

    @classmethod
    def of_indices(cls, num_classes: int) -> Encoding:
        """Take indices 0..K-1 for classes, 255 to ignore."""
        return cls({**{i: i for i in range(num_classes)}, VOID: VOID}, num_classes)

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
        if self.colors:
            return np.asarray(read_colors(path)).astype(np.int64) @ np.array([65536, 256, 1])
        return _indices(path)


def found_classes(masks: Iterable[Path]) -> tuple[list[str], Encoding]:
    """Count the classes up to the largest index below 255 that any mask has, and name them "0", "1" and so on.

    Masks that cannot be read are left out, as they are later.

    Raises:
        ValueError: if a mask has colors or an index above 255, or there are fewer than two classes.
    """
    largest = 0
    for path in masks:
        try:
            pixels = _indices(path)
        except ImageError:
            continue
        if pixels.max() > VOID:
            raise ValueError(f"{path}: without a classes.txt indices are 0 to 255, got {pixels.max()}; number them so")
        largest = max(largest, int(pixels[pixels < VOID].max(initial=0)))
    if largest == 0:
        raise ValueError(
            "without a classes.txt masks must have two classes or more, got no pixel with an index of 1 to 254; 255 is "
            "ignored, so save what is not background as 1"
        )
    return [str(i) for i in range(largest + 1)], Encoding.of_indices(largest + 1)


def _indices(path: Path) -> NDArray[Any]:  # [H, W]
    """Read the pixels of a gray or palette PNG as they are; raise ValueError if they are colors."""
    image = read_png(path)
    pixels = np.asarray(image)
    if pixels.ndim != 2:
        raise ValueError(
            f'{path}: an {image.mode} mask needs a classes.txt of "red green blue name" lines beside the folder of '
            "masks; or save it as a gray or palette PNG, whose indices are the classes"
        )
    return pixels


def read_classes(path: Path) -> tuple[list[str], Encoding]:
    """Read the names, and how masks encode them; raise ValueError if they cannot be understood."""
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
    if twice := next((name for i, name in enumerate(classes) if name in classes[:i]), None):
        raise ValueError(f"{path}: two classes are named {twice!r}; give each a name of its own")
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
