"""Draws panels: an image, and beside it columns of tiles with labels and color bars. Knows nothing of features."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from .arrays import Pixels
from .canvas import (
    GAP,
    GRAY,
    MARGIN,
    NOTE,
    TITLE,
    cell_size,
    enlarged,
    fitted,
    mark,
    new_canvas,
    paste,
    shortened,
    text_width,
    with_caption,
    write,
    write_upwards,
)

TILE, MIN_COLUMN = 250, 170  # pixels: long side of a tile (about), narrowest column
HEADER, FOOTER, ROW_LABEL, ROW_NOTE = 40, 36, 40, 26  # pixels
BAR, BAR_MARGIN = 10, 8  # pixels: height of a color bar, space beside it


@dataclass(frozen=True)
class Column:
    """Tiles of one kind, and what stands above and below them."""

    title: str
    tiles: list[Pixels]  # [h, w, 3] of every row
    notes: list[str] = field(default_factory=list)  # below each tile; none at all if empty
    note: str = ""  # below the column
    bar: Pixels | None = None  # [1, n, 3] color bar below the column
    ends: tuple[str, str] = ("", "")  # what stands at its ends
    marked: bool = False  # whether the tiles show the patch
    named: bool = False  # whether colors are names, which never mix


@dataclass(frozen=True)
class Style:
    """How tiles are drawn."""

    overlay: bool = False  # over the photo, in gray
    smooth: bool = False  # interpolated, where colors may mix
    caption: str = ""  # a line below all


@dataclass(frozen=True)
class _Layout:
    """The places of things on the canvas, in pixels."""

    cell: tuple[int, int]  # (height, width) of a patch
    tile: tuple[int, int]  # (height, width)
    column: int  # width
    row: int  # height
    step: int  # from one row to the next
    num_rows: int
    num_columns: int  # without the image's own

    @property
    def bottom(self) -> int:
        """The lower edge of the last row and its notes."""
        return MARGIN + HEADER + self.num_rows * self.step - GAP

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
        return MARGIN + HEADER + index * self.step + self.row // 2


def draw_panel(
    image: Pixels,
    rows: list[str],
    columns: list[Column],
    patch: tuple[int, int] | None = None,
    style: Style = Style(),
) -> Pixels:
    """Draw the image, the patch marked if there is one, and beside it the columns of tiles, one row per label.

    Args:
        image: [H, W, 3] uint8.
        rows: labels.
        columns: each with as many tiles [h, w, 3] as there are rows.
        patch: (row, column) to mark, None for none.
        style: how tiles are drawn.

    Returns:
        [height, width, 3] uint8 RGB.
    """
    rows = [shortened(row, TILE, TITLE) for row in rows]
    layout = _lay_out(image.shape[:2], rows, columns)
    canvas = new_canvas(layout.size)
    _draw_input(canvas, layout, image, patch)
    for i, row in enumerate(rows):
        middle = MARGIN + layout.column + GAP + (ROW_LABEL - GAP) // 2
        write_upwards(canvas, row, (middle, layout.row_y(i)), TITLE)
    for i, column in enumerate(columns):
        _draw_column(canvas, layout, column, layout.column_x(i), patch if column.marked else None, image, style)
    return with_caption(canvas, style.caption)


def _lay_out(image_size: tuple[int, ...], rows: list[str], columns: list[Column]) -> _Layout:
    grid = columns[0].tiles[0].shape[:2]
    cell = cell_size(image_size, grid, TILE)
    tile = (cell[0] * grid[0], cell[1] * grid[1])
    row = max(tile[0], *(text_width(label, TITLE) for label in rows))
    notes = [note for column in columns for note in column.notes]
    width = max(tile[1], MIN_COLUMN, *(text_width(note, NOTE) for note in [*notes, ""]))
    step = row + GAP + (ROW_NOTE if notes else 0)
    return _Layout(cell, tile, width, row, step, len(rows), len(columns))


def _draw_input(canvas: Image.Image, layout: _Layout, image: Pixels, patch: tuple[int, int] | None) -> None:
    """Draw the image as large as a tile, half-way between the first and the last row."""
    height, _ = layout.tile
    x, y = MARGIN + layout.column // 2, (layout.row_y(0) + layout.row_y(layout.num_rows - 1)) // 2
    paste(canvas, fitted(image, layout.tile), (x, y))
    write(canvas, "input", (x, y - height // 2 - HEADER // 2), TITLE)
    if patch is not None:
        mark(canvas, layout.tile, (x, y), patch, layout.cell)
        write(canvas, f"patch ({patch[0]}, {patch[1]})", (x, y + height // 2 + ROW_NOTE // 2), NOTE, GRAY)


def _draw_column(
    canvas: Image.Image,
    layout: _Layout,
    column: Column,
    x: int,
    patch: tuple[int, int] | None,
    image: Pixels,
    style: Style,
) -> None:
    write(canvas, column.title, (x, MARGIN + HEADER // 2), TITLE)
    photo, smooth = image if style.overlay else None, style.smooth and not column.named
    for i, tile in enumerate(column.tiles):
        center = (x, layout.row_y(i))
        paste(canvas, enlarged(tile, layout.tile, smooth=smooth, photo=photo), center)
        if patch is not None:
            mark(canvas, layout.tile, center, patch, layout.cell)
        if column.notes:
            write(canvas, column.notes[i], (x, center[1] + layout.tile[0] // 2 + ROW_NOTE // 2), NOTE, GRAY)
    _draw_legend(canvas, column, (x, layout.bottom + FOOTER // 2), layout.column)


def _draw_legend(canvas: Image.Image, column: Column, center: tuple[int, int], width: int) -> None:
    """Draw the note, or the color bar between its two ends."""
    x, y = center
    if column.bar is None:
        write(canvas, column.note, (x, y), NOTE, GRAY)
        return
    low, high = column.ends
    left = x - width // 2 + text_width(low, NOTE) + BAR_MARGIN
    right = x + width // 2 - text_width(high, NOTE) - BAR_MARGIN
    bar = Image.fromarray(column.bar).resize((right - left, BAR), Image.Resampling.BILINEAR)
    paste(canvas, bar, ((left + right) // 2, y))
    write(canvas, low, (x - width // 2, y), NOTE, GRAY, anchor="lm")
    write(canvas, high, (x + width // 2, y), NOTE, GRAY, anchor="rm")
