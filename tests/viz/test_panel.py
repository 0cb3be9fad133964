"""Panels: rows, scales and marks are where they belong, and what cannot be shown is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dvt_timm import viz

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
