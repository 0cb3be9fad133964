"""Panels: rows, scales and marks are where they belong, and what cannot be shown is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dvt_timm import viz
from dvt_timm.viz.panel import Column, draw_panel

IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def test_panel_has_a_row_per_map_on_white() -> None:
    one = viz.feature_panel(IMAGE, {"features": noise(4, 6, 8)})
    two = viz.feature_panel(IMAGE, {"raw": noise(4, 6, 8), "denoised": noise(4, 6, 8, seed=1)})
    assert one.dtype == two.dtype == np.uint8
    assert one.shape[1] == two.shape[1]
    assert two.shape[0] > 1.5 * one.shape[0]
    for panel in (one, two):
        border = np.concatenate([panel[:8].ravel(), panel[-8:].ravel(), panel[:, :8].ravel(), panel[:, -8:].ravel()])
        assert (border == 255).all()


def test_panel_keeps_patches_sharp_and_equal_maps_alike() -> None:
    features = noise(4, 6, 8)
    panel = viz.feature_panel(IMAGE, {"a": features, "b": features})
    colors = {tuple(color) for color in (255 * viz.pca_rgb([features, features])[0]).round().reshape(-1, 3)}
    drawn, counts = np.unique(panel.reshape(-1, 3), axis=0, return_counts=True)
    areas = [counts[(drawn == color).all(axis=1)].sum() for color in colors]
    assert min(areas) >= 2 * 40 * 40  # once per row, and every patch a full block of one color


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (20, 400), (400, 20)])
def test_panel_tiles_have_the_aspect_ratio_of_the_image(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), (200, 10, 60), dtype=np.uint8)
    panel = viz.feature_panel(image, {"features": noise(5, 5, 8)})
    rows, columns = np.nonzero((panel == (200, 10, 60)).all(axis=2))
    aspect = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    assert aspect == pytest.approx(size[0] / size[1], rel=0.1)


def test_panel_marks_the_chosen_patch() -> None:
    features = {"features": noise(4, 6, 8)}
    center = viz.feature_panel(IMAGE, features)
    np.testing.assert_array_equal(center, viz.feature_panel(IMAGE, features, patch=(2, 3)))
    assert (center != viz.feature_panel(IMAGE, features, patch=(0, 5))).any()


@pytest.mark.parametrize("features", [np.zeros((3, 4, 8)), np.ones((3, 4, 8)), np.ones((1, 1, 2))])
def test_panel_of_constant_maps(features: Any) -> None:
    with np.errstate(all="raise"):
        assert viz.feature_panel(IMAGE, {"raw": features, "denoised": features}).size


def with_value(value: float) -> NDArray[np.float64]:
    features = noise(4, 6, 8)
    features[1, 2, 3] = value
    return features


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({}, {}, "no feature maps"),
        ({"raw": with_value(np.nan)}, {}, "1 of 24 patches hold NaN or Inf"),
        ({"raw": with_value(np.inf)}, {}, "NaN or Inf"),
        ({"raw": noise(4, 6, 8), "denoised": noise(4, 6, 9)}, {}, "same channels"),
        ({"raw": noise(4, 6, 8), "denoised": noise(4, 5, 8)}, {}, "share one grid"),
        ({"raw": noise(4, 6, 8)}, {"patch": (4, 0)}, r"patch \(4, 0\) is outside the 4 x 6 grid"),
        ({"raw": noise(4, 6, 8)}, {"patch": (0, -1)}, "outside"),
        ({"raw": noise(4, 6, 8)}, {"num_clusters": 0}, "num_clusters must be 1..24"),
    ],
)
def test_panel_refuses(features: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        viz.feature_panel(IMAGE, features, **options)


def test_a_decomposition_panel_shows_four_maps_in_one_projection() -> None:
    semantics, artifact = noise(6, 9, 16), noise(6, 9, 16, seed=1)
    residual = 0.1 * noise(6, 9, 16, seed=2)
    raw = semantics + artifact + residual
    panel = viz.decomposition_panel(IMAGE, raw, semantics, artifact, residual)
    assert panel.dtype == np.uint8
    again = viz.decomposition_panel(IMAGE, raw + 5, semantics + 5, artifact, residual)  # a constant has no color
    pca = slice(0, panel.shape[1] * 2 // 3)
    np.testing.assert_allclose(panel[:, pca].astype(int), again[:, pca].astype(int), atol=1)
    with pytest.raises(ValueError, match="must share one grid"):
        viz.decomposition_panel(IMAGE, raw[:3], semantics, artifact, residual)
    with pytest.raises(ValueError, match="uint8"):
        viz.decomposition_panel(IMAGE.astype(float), raw, semantics, artifact, residual)


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
    hidden = (marked != unmarked).any(axis=2)
    height = hidden.shape[0] // 2
    assert hidden[:height].sum() == hidden[height:].sum() > 0  # once a row


def test_tiles_titles_notes_and_bars_are_drawn() -> None:
    tile = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    bar = np.linspace((0, 0, 90), (0, 0, 220), 64).round().astype(np.uint8)[None]
    bare = draw_panel(RED, ["a"], [Column("", [tile])])
    blue = {"bar": bar, "ends": (0.0, 1.0)}
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
        assert (bare == color).all(axis=2).sum() > 100 * 100
