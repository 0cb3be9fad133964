"""Sheets: one color for a feature in all photos, labels that fit, and steps that end at the target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dvt_timm import viz
from dvt_timm.viz.canvas import NOTE, shortened, text_width, wrapped
from dvt_timm.viz.sheet import Cell, draw_sheet

PHOTOS = [np.full((40, 60, 3), 250, np.uint8), np.full((60, 40, 3), 250, np.uint8)]


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def area(sheet: NDArray[np.uint8], color: Any) -> int:
    return int((sheet == color).all(axis=2).sum())


def test_a_feature_has_one_color_in_all_photos() -> None:
    maps = [noise(4, 6, 8), noise(6, 4, 8, seed=1)]
    maps[1][2, 3] = maps[0][0, 0]
    sheet = viz.contact_sheet(PHOTOS, {"raw": maps})
    colors = (255 * viz.pca_rgb(maps)[0][0, 0]).round()
    assert area(sheet, colors) == 2 * 30 * 30  # 180 pixels are 6 patches


def test_each_kind_has_a_scale_and_a_mean_of_its_own() -> None:
    raw = [noise(4, 6, 8), noise(6, 4, 8, seed=1)]
    one = viz.contact_sheet(PHOTOS, {"raw": raw, "denoised": raw}, names=["a", "b"])
    other = viz.contact_sheet(PHOTOS, {"raw": raw, "denoised": [0.1 * each + 7 for each in raw]}, names=["a", "b"])
    assert one.dtype == np.uint8
    np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)


def test_names_overlay_smoothness_and_caption_are_drawn() -> None:
    maps = {"raw": [noise(4, 6, 8), noise(6, 4, 8, seed=1)]}
    bare = viz.contact_sheet(PHOTOS, maps)
    for options in ({"names": ["a", "b"]}, {"overlay": True}, {"smooth": True}):
        sheet = viz.contact_sheet(PHOTOS, maps, **options)
        assert sheet.shape == bare.shape
        assert (sheet != bare).any()
    assert viz.contact_sheet(PHOTOS, maps, caption="of a ViT").shape[0] > bare.shape[0]


@pytest.mark.parametrize(
    ("maps", "names", "message"),
    [
        ({"raw": [noise(4, 6, 8)]}, None, "got 2 images, 1 raw, 2 names"),
        ({}, None, "2 images, no maps"),
        ({"raw": [noise(4, 6, 8)] * 2}, ["a"], "1 names"),
        ({"raw": [noise(4, 6, 8)] * 2, "denoised": [noise(4, 6, 9)] * 2}, None, "same channels"),
    ],
)
def test_a_sheet_refuses(maps: Any, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        viz.contact_sheet(PHOTOS, maps, names=names)


def test_no_photos_are_no_sheet() -> None:
    with pytest.raises(ValueError, match="got 0 images"):
        viz.contact_sheet([], {})


def test_lines_are_as_long_as_they_may_be() -> None:
    cell = Cell(Image.new("RGB", (60, 40), "red"), "a label that is far too long for it")
    shapes = {count: draw_sheet([cell] * count, 3).shape for count in (1, 2, 3, 4)}
    assert shapes[1][1] < shapes[2][1] < shapes[3][1] == shapes[4][1]
    assert shapes[1][0] == shapes[3][0] < shapes[4][0]
    assert area(draw_sheet([cell] * 4, 3), (255, 0, 0)) == 4 * 60 * 40


def test_texts_fit() -> None:
    name = "n" * 200 + ".jpg"
    short = shortened(name, 120)
    assert text_width(short, NOTE) <= 120
    assert short.startswith("nn")
    assert short.endswith(".jpg")
    assert shortened("cat", 120) == "cat"
    lines = wrapped("one two " * 30 + name, 200)
    assert " ".join(lines).split() == ("one two " * 30 + name).split()
    assert all(text_width(line, NOTE) <= 200 for line in lines[:-1])
    assert lines[-1] == name


def test_a_strip_ends_at_the_target() -> None:
    raw, target = noise(4, 6, 8), noise(4, 6, 8, seed=1)
    done = viz.progress_tile(raw, target, target + 3)  # its mean is no part of it
    halfway = viz.progress_tile(raw, target, target + noise(4, 6, 8, seed=2))
    assert (halfway != done).any()
    np.testing.assert_array_equal(done, viz.progress_tile(raw, target, target))
    strip = viz.progress_strip(PHOTOS[0], raw, target, {"step 1": halfway, "step 2": done})
    colors = [color for color in done.reshape(-1, 3).tolist() if min(color) > 0 and max(color) < 255]
    assert all(area(strip, color) == 2 * 30 * 30 for color in colors)  # the last step's tile is the target's
    assert (strip != viz.progress_strip(PHOTOS[0], raw, target, {"step 1": done, "step 2": halfway})).any()
