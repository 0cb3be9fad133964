"""Draws the panel of `viz.feature_panel`: tiles, labels, color bars. Knows nothing of features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .arrays import Pixels

TILE, MIN_COLUMN = 320, 170  # pixels: long side of a tile (about), narrowest column
MARGIN, GAP, HEADER, FOOTER, ROW_LABEL = 26, 14, 40, 44, 40  # pixels
BAR, BAR_MARGIN = 10, 8  # pixels: height of a color bar, space above and below it
LABEL_FONT, NOTE_FONT = 24, 17  # pixels
INK, GRAY = (25, 25, 25), (105, 105, 105)


@dataclass(frozen=True)
class Column:
    """Tiles of one kind, and what stands above and below them."""

    title: str
    tiles: list[Pixels]  # [h, w, 3] of every row
    note: str = ""  # below the tiles
    bar: Pixels | None = None  # [1, n, 3] color bar below the tiles
    ends: tuple[float, float] = (0.0, 0.0)  # values at its ends
    marked: bool = False  # whether the tiles show the patch


@dataclass(frozen=True)
class _Layout:
    """The places of things on the canvas, in pixels."""

    cell: tuple[int, int]  # (height, width) of a patch
    tile: tuple[int, int]  # (height, width)
    column: int  # width
    row: int  # height
    num_rows: int
    num_columns: int  # without the image's own

    @property
    def bottom(self) -> int:
        """The lower edge of the last row."""
        return self.row_y(self.num_rows - 1) + self.row - self.row // 2

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) of the canvas."""
        right = self.column_x(self.num_columns - 1) + self.column - self.column // 2
        return right + MARGIN, self.bottom + FOOTER + MARGIN - GAP

    def column_x(self, index: int) -> int:
        """Give the x of the middle of a column of tiles."""
        return MARGIN + ROW_LABEL + (index + 1) * (self.column + GAP) + self.column // 2

    def row_y(self, index: int) -> int:
        """Give the y of the middle of a row of tiles."""
        return MARGIN + HEADER + index * (self.row + GAP) + self.row // 2


def draw_panel(image: Pixels, rows: list[str], columns: list[Column], patch: tuple[int, int] | None = None) -> Pixels:
    """Draw the image, the patch marked if there is one, and beside it the columns of tiles, one row per label.

    Args:
        image: [H, W, 3] uint8.
        rows: labels.
        columns: each with as many tiles [h, w, 3] as there are rows.
        patch: (row, column) to mark, None for none.

    Returns:
        [height, width, 3] uint8 RGB.
    """
    layout = _lay_out(image.shape[:2], columns[0].tiles[0].shape[:2], rows, len(columns))
    canvas = Image.new("RGB", layout.size, "white")
    _draw_input(canvas, layout, image, patch)
    for i, row in enumerate(rows):
        middle = MARGIN + layout.column + GAP + (ROW_LABEL - GAP) // 2
        _text_upwards(canvas, row, (middle, layout.row_y(i)), LABEL_FONT)
    for i, column in enumerate(columns):
        _draw_column(canvas, layout, column, layout.column_x(i), patch)
    return np.asarray(canvas)


def _lay_out(image_size: tuple[int, ...], grid: tuple[int, ...], rows: list[str], num_columns: int) -> _Layout:
    cell = _cell_size(image_size, grid)
    tile = (cell[0] * grid[0], cell[1] * grid[1])
    row = max(tile[0], *(_text_width(label, LABEL_FONT) for label in rows))
    return _Layout(cell, tile, max(tile[1], MIN_COLUMN), row, len(rows), num_columns)


def _cell_size(image_size: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, int]:
    """Choose (height, width) in pixels of a patch, such that a tile has the image's aspect ratio."""
    aspect = (image_size[0] / grid[0]) / (image_size[1] / grid[1])
    width = TILE / max(grid[1], grid[0] * aspect)
    return max(1, round(width * aspect)), max(1, round(width))


def _draw_input(canvas: Image.Image, layout: _Layout, image: Pixels, patch: tuple[int, int] | None) -> None:
    """Draw the image as large as a tile, half-way between the first and the last row."""
    height, width = layout.tile
    x, y = MARGIN + layout.column // 2, (layout.row_y(0) + layout.row_y(layout.num_rows - 1)) // 2
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    _paste(canvas, picture, (x, y), patch, layout.cell)
    _text(canvas, "input", (x, y - height // 2 - HEADER // 2), LABEL_FONT)
    if patch is not None:
        _text(canvas, f"patch ({patch[0]}, {patch[1]})", (x, y + height // 2 + FOOTER // 2), NOTE_FONT, GRAY)


def _draw_column(canvas: Image.Image, layout: _Layout, column: Column, x: int, patch: tuple[int, int] | None) -> None:
    _text(canvas, column.title, (x, MARGIN + HEADER // 2), LABEL_FONT)
    for i, pixels in enumerate(column.tiles):
        enlarged = pixels.repeat(layout.cell[0], axis=0).repeat(layout.cell[1], axis=1)
        marked = patch if column.marked else None
        _paste(canvas, Image.fromarray(enlarged), (x, layout.row_y(i)), marked, layout.cell)
    _draw_legend(canvas, column, (x, layout.bottom), layout.column)


def _draw_legend(canvas: Image.Image, column: Column, top: tuple[int, int], width: int) -> None:
    """Draw the note, or the color bar between its two values; `top` is the (x, y) of the middle of its upper edge."""
    x, y = top
    if column.bar is None:
        _text(canvas, column.note, (x, y + FOOTER // 2), NOTE_FONT, GRAY)
        return
    low, high = (f"{end:.3g}" for end in column.ends)
    left = x - width // 2 + _text_width(low, NOTE_FONT) + BAR_MARGIN
    right = x + width // 2 - _text_width(high, NOTE_FONT) - BAR_MARGIN
    bar = Image.fromarray(column.bar).resize((right - left, BAR), Image.Resampling.BILINEAR)
    canvas.paste(bar, (left, y + FOOTER // 2 - BAR // 2))
    _text(canvas, low, (x - width // 2, y + FOOTER // 2), NOTE_FONT, GRAY, anchor="lm")
    _text(canvas, high, (x + width // 2, y + FOOTER // 2), NOTE_FONT, GRAY, anchor="rm")


def _paste(
    canvas: Image.Image,
    tile: Image.Image,
    center: tuple[int, int],  # (x, y)
    patch: tuple[int, int] | None,
    cell: tuple[int, int],
) -> None:
    """Put a tile on the canvas, with a white box in a dark outline around the patch, if any."""
    left, top = center[0] - tile.width // 2, center[1] - tile.height // 2
    canvas.paste(tile, (left, top))
    if patch is None:
        return
    x, y = left + patch[1] * cell[1], top + patch[0] * cell[0]
    draw = ImageDraw.Draw(canvas)
    for spread, color, thickness in ((4, INK, 4), (3, (255, 255, 255), 2)):
        box = (x - spread, y - spread, x + cell[1] - 1 + spread, y + cell[0] - 1 + spread)
        draw.rectangle(box, outline=color, width=thickness)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _text_width(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _text(
    canvas: Image.Image,
    text: str,
    position: tuple[int, int],  # (x, y) of the anchor
    size: int,
    color: tuple[int, int, int] = INK,
    anchor: str = "mm",
) -> None:
    ImageDraw.Draw(canvas).text(position, text, fill=color, font=_font(size), anchor=anchor)


def _text_upwards(canvas: Image.Image, text: str, center: tuple[int, int], size: int) -> None:
    """Draw a text that reads from bottom to top."""
    label = Image.new("RGB", (_text_width(text, size) + 2, size + 8), "white")
    _text(label, text, (label.width // 2, label.height // 2), size)
    label = label.rotate(90, expand=True)
    canvas.paste(label, (center[0] - label.width // 2, center[1] - label.height // 2))
