"""Panels as they are drawn: tiles, labels, bars and marks are where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dvt_timm.viz.panel import Column, Style, draw_panel

RED, GREEN = np.full((40, 60, 3), (200, 0, 0), np.uint8), np.full((4, 6, 3), (0, 200, 0), np.uint8)


def right_of_the_input(panel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part with the columns."""
    (columns,) = np.nonzero((panel == RED[0, 0]).all(axis=2).any(axis=0))
    return panel[:, columns.max() + 20 :]


def test_the_patch_is_marked_in_the_input_and_in_the_columns_that_say_so() -> None:
    panels = {
        (patch, marked): draw_panel(RED, ["a", "b"], [Column("x", [GREEN, GREEN], marked=marked)], patch)
        for patch in (None, (1, 2))
        for marked in (False, True)
    }
    np.testing.assert_array_equal(panels[None, False], panels[None, True])
    unmarked, marked = (right_of_the_input(panels[(1, 2), marked]) for marked in (False, True))
    np.testing.assert_array_equal(unmarked, right_of_the_input(panels[None, False]))
    assert (panels[(1, 2), False] != panels[None, False]).any()
    hidden = np.flatnonzero((marked != unmarked).any(axis=(1, 2)))
    assert (np.diff(hidden) > 1).sum() == 1  # once a row


def test_tiles_titles_notes_and_bars_are_drawn() -> None:
    tile = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    bar = np.linspace((0, 0, 90), (0, 0, 220), 64).round().astype(np.uint8)[None]
    bare = draw_panel(RED, ["a"], [Column("", [tile])])
    blue = {"bar": bar, "ends": ("0", "1")}
    for options in ({"title": "x"}, {"title": "", "note": "x"}, {"title": "", **blue}):
        panel = draw_panel(RED, ["a"], [Column(tiles=[tile], **options)])
        assert panel.shape == bare.shape
        assert (right_of_the_input(panel) != right_of_the_input(bare)).any()
    drawn = (panel[..., 2] >= 90) & (panel[..., :2] == 0).all(axis=2)
    (columns,) = np.nonzero(drawn.any(axis=0))
    values = panel[drawn.any(axis=1).nonzero()[0][0], columns[0] : columns[-1] + 1, 2].astype(int)
    assert (np.diff(values) >= 0).all()
    assert (values[0], values[-1]) == (90, 220)
    for color in tile.reshape(-1, 3):
        assert (bare == color).all(axis=2).sum() > 80 * 80


def test_notes_stand_below_each_tile() -> None:
    bare, noted = (draw_panel(RED, ["a", "b"], [Column("x", [GREEN, GREEN], notes)]) for notes in ([], ["one", "two"]))
    assert noted.shape[0] > bare.shape[0]
    other = draw_panel(RED, ["a", "b"], [Column("x", [GREEN, GREEN], ["one", "three"])])
    changed = np.flatnonzero((other != noted).any(axis=(1, 2)))
    assert changed.min() > noted.shape[0] // 2


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (20, 400), (400, 20)])
def test_tiles_have_the_aspect_ratio_of_the_image(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), (200, 10, 60), dtype=np.uint8)
    panel = draw_panel(image, ["a"], [Column("x", [np.zeros((5, 5, 3), np.uint8)])])
    rows, columns = np.nonzero((panel == (200, 10, 60)).all(axis=2))
    aspect = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    assert aspect == pytest.approx(size[0] / size[1], rel=0.25)  # patches are whole pixels


def colors_of(panel: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    saturated = panel.max(axis=2).astype(int) - panel.min(axis=2) > 100  # no letter and no frame
    return set(map(tuple, panel[saturated].tolist()))


def test_smooth_tiles_mix_their_colors_and_names_never_do() -> None:
    tile = np.zeros((4, 6, 3), np.uint8)
    tile[:, ::2, 0] = tile[:, 1::2, 2] = 255
    white = np.full((40, 60, 3), 255, np.uint8)
    drawn = {
        (smooth, named): colors_of(
            draw_panel(white, ["a"], [Column("x", [tile], named=named)], style=Style(smooth=smooth))
        )
        for smooth in (False, True)
        for named in (False, True)
    }
    assert len(drawn[True, False]) > 10
    assert drawn[False, False] == drawn[False, True] == drawn[True, True] == {(255, 0, 0), (0, 0, 255)}


def test_an_overlay_shows_the_photo_in_gray_through_the_tiles() -> None:
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:, 30:] = (255, 255, 255)
    panel = draw_panel(photo, ["a"], [Column("x", [GREEN])], style=Style(overlay=True))
    colors = np.unique(panel[(panel[..., 1] > panel[..., 0]) & (panel[..., 1] >= 100)], axis=0)
    assert colors[0].tolist() == [0, 120, 0]  # where the photo is black
    assert colors[-1].tolist() == [102, 222, 102]  # where it is white


def test_a_caption_stands_below_all_and_wraps() -> None:
    bare, short, long = (
        draw_panel(RED, ["a"], [Column("x", [GREEN])], style=Style(caption=caption))
        for caption in ("", "model", "model " * 40)
    )
    assert bare.shape[1] == short.shape[1] == long.shape[1]
    assert bare.shape[0] < short.shape[0] < long.shape[0]
    np.testing.assert_array_equal(short[: bare.shape[0] - 10], bare[:-10])
    for panel in (short, long):
        assert (panel[bare.shape[0] - 5 :] < 200).any()
        border = np.concatenate([panel[:8].ravel(), panel[-8:].ravel(), panel[:, :8].ravel(), panel[:, -8:].ravel()])
        assert (border == 255).all()


def test_long_names_of_rows_are_cut() -> None:
    image, column = np.zeros((40, 60, 3), np.uint8), Column("x", [np.zeros((4, 6, 3), np.uint8)])
    long, short = (draw_panel(image, [name], [column]).shape for name in ("features" * 40, "features" * 4))
    assert long[0] <= short[0] + 40
