"""Puts tiles and texts on a canvas: what panels, sheets and films are drawn with. Knows nothing of features."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .arrays import Pixels

MARGIN, GAP = 26, 14  # pixels: around all, between tiles
TITLE, NOTE = 24, 17  # pixels: sizes of the font
INK, GRAY = (25, 25, 25), (105, 105, 105)
PHOTO_SHARE = 0.4  # of a gray photo in a tile that lies over it


def new_canvas(size: tuple[int, int]) -> Image.Image:
    """Make a white picture of (width, height) pixels."""
    return Image.new("RGB", size, "white")


def cell_size(image_size: tuple[int, ...], grid: tuple[int, ...], long_side: int) -> tuple[int, int]:
    """Choose (height, width) in pixels of a patch, such that a tile has the image's aspect ratio."""
    aspect = (image_size[0] / grid[0]) / (image_size[1] / grid[1])
    width = long_side / max(grid[1], grid[0] * aspect)
    return max(1, round(width * aspect)), max(1, round(width))


def fitted(image: Pixels, size: tuple[int, int]) -> Image.Image:
    """Resize a photo to (height, width)."""
    return Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)


def enlarged(tile: Pixels, size: tuple[int, int], *, smooth: bool = False, photo: Pixels | None = None) -> Image.Image:
    """Enlarge a tile to (height, width): every patch a block of one color, or smoothly; over the gray photo, if any."""
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    large = Image.fromarray(tile).resize(size[::-1], way)
    if photo is None:
        return large
    return Image.blend(large, fitted(photo, size).convert("L").convert("RGB"), PHOTO_SHARE)


def paste(canvas: Image.Image, tile: Image.Image, center: tuple[int, int]) -> None:  # (x, y)
    """Put a tile on the canvas."""
    canvas.paste(tile, (center[0] - tile.width // 2, center[1] - tile.height // 2))


def mark(
    canvas: Image.Image, tile: tuple[int, int], center: tuple[int, int], patch: tuple[int, int], cell: tuple[int, int]
) -> None:
    """Draw a box around a patch (row, column) of cells (height, width) in a tile (height, width) at a center (x, y)."""
    x, y = center[0] - tile[1] // 2 + patch[1] * cell[1], center[1] - tile[0] // 2 + patch[0] * cell[0]
    draw = ImageDraw.Draw(canvas)
    for spread, color, thickness in ((4, INK, 4), (3, (255, 255, 255), 2)):
        box = (x - spread, y - spread, x + cell[1] - 1 + spread, y + cell[0] - 1 + spread)
        draw.rectangle(box, outline=color, width=thickness)


def text_width(text: str, size: int) -> int:
    """Measure a text in pixels."""
    return round(_font(size).getlength(text))


def write(
    canvas: Image.Image,
    text: str,
    position: tuple[int, int],  # (x, y) of the anchor
    size: int,
    color: tuple[int, int, int] = INK,
    anchor: str = "mm",
) -> None:
    """Write a line; the anchor is Pillow's."""
    ImageDraw.Draw(canvas).text(position, text, fill=color, font=_font(size), anchor=anchor)


def write_upwards(canvas: Image.Image, text: str, center: tuple[int, int], size: int) -> None:
    """Write a line that reads from bottom to top."""
    label = new_canvas((text_width(text, size) + 2, size + 8))
    write(label, text, (label.width // 2, label.height // 2), size)
    paste(canvas, label.rotate(90, expand=True), center)


def shortened(text: str, width: int, size: int = NOTE) -> str:
    """Cut the middle out of a text that is wider than so many pixels."""
    short, kept = text, len(text)
    while kept and text_width(short, size) > width:
        kept -= 1
        short = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
    return short


def wrapped(text: str, width: int, size: int = NOTE) -> list[str]:
    """Break a text into lines of at most so many pixels, at spaces; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def with_caption(picture: Image.Image, caption: str) -> Pixels:
    """Write a caption below a picture, in as many lines as it takes; [height, width, 3]."""
    lines = wrapped(caption, picture.width - 2 * MARGIN)
    if not lines:
        return np.asarray(picture)
    step = NOTE + 6
    canvas = new_canvas((picture.width, picture.height + GAP + len(lines) * step))
    canvas.paste(picture, (0, 0))
    for i, line in enumerate(lines):
        write(canvas, line, (MARGIN, picture.height + i * step), NOTE, GRAY, anchor="lt")
    return np.asarray(canvas)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)
