"""viz: planted structure comes out, scales are shared, and what cannot be shown is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dvt_timm import viz

IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def planted(grid: tuple[int, int], directions: NDArray[np.float64], seed: int) -> tuple[Any, Any]:
    """Labels [h, w] and a map [h, w, C] of noisy, differently long tokens along the direction of their label."""
    random = np.random.default_rng(seed)
    labels = random.integers(len(directions), size=grid)
    lengths = random.uniform(0.5, 20, size=(*grid, 1))
    return labels, lengths * (directions[labels] + 0.02 * random.normal(size=(*grid, directions.shape[1])))


def test_public_names_are_sorted() -> None:
    assert viz.__all__ == sorted(viz.__all__)


def test_pca_gives_a_feature_the_same_colour_in_every_map() -> None:
    first, second = noise(6, 5, 16), noise(4, 7, 16, seed=1)
    second[2, 3] = first[4, 1]
    one, two = viz.pca_rgb([first, second])
    assert one.shape == (6, 5, 3)
    assert two.shape == (4, 7, 3)
    np.testing.assert_allclose(one[4, 1], two[2, 3])
    assert min(one.min(), two.min()) == 0
    assert max(one.max(), two.max()) == 1


def test_pca_finds_the_planted_axes_in_order_of_variance() -> None:
    coordinates = noise(20, 30, 3) * [9.0, 3.0, 1.0]
    axes = np.linalg.qr(noise(24, 3, seed=3))[0].T  # [3, 24]
    (colors,) = viz.pca_rgb([coordinates @ axes + 5])
    inside = ((colors > 0) & (colors < 1)).all(axis=2)
    for i in range(3):
        assert abs(np.corrcoef(colors[inside][:, i], coordinates[inside][:, i])[0, 1]) > 0.98


def test_pca_ignores_a_few_huge_tokens() -> None:
    calm = noise(20, 20, 8) * np.array([8, 4, 2, 1, 0.1, 0.1, 0.1, 0.1])
    wild = calm.copy()
    wild[0, :6] = 1000 * np.eye(8)[7]
    expected, got = viz.pca_rgb([calm])[0], viz.pca_rgb([wild])[0]
    np.testing.assert_allclose(got[1:], expected[1:], atol=0.15)


def test_pca_is_deterministic_and_takes_tensors_of_any_dtype() -> None:
    features = noise(5, 5, 8).astype(np.float32)
    tensor = torch.tensor(features, requires_grad=True)
    np.testing.assert_array_equal(viz.pca_rgb([features])[0], viz.pca_rgb([tensor])[0])
    assert np.isfinite(viz.pca_rgb([tensor.bfloat16()])[0]).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_pca_of_what_does_not_vary_is_grey(channels: int) -> None:
    np.testing.assert_array_equal(viz.pca_rgb([np.full((3, 4, channels), 7.1)])[0], np.full((3, 4, 3), 0.5))


def test_pca_of_one_varying_direction_leaves_the_other_colours_grey() -> None:
    (colors,) = viz.pca_rgb([noise(6, 6, 1) * noise(1, 1, 12, seed=2) + 3])
    assert colors[..., 0].std() > 0.1
    np.testing.assert_array_equal(colors[..., 1:], 0.5)


def test_norm_map() -> None:
    np.testing.assert_allclose(viz.norm_map(np.array([[[3.0, 4.0], [0.0, 0.0]]])), [[5, 0]])


def test_kmeans_recovers_planted_clusters_in_all_maps() -> None:
    directions = np.linalg.qr(noise(16, 4))[0].T  # [4, 16]
    truths, maps = zip(*(planted(grid, directions, seed) for seed, grid in enumerate([(12, 9), (7, 15)])), strict=True)
    labels = viz.kmeans_labels(maps, num_clusters=4)
    assert [label.shape for label in labels] == [(12, 9), (7, 15)]
    pairs = set(zip(np.concatenate([t.ravel() for t in truths]), np.concatenate([x.ravel() for x in labels])))  # noqa: B905
    assert len(pairs) == 4
    sizes = np.bincount(np.concatenate([label.ravel() for label in labels]))
    assert list(sizes) == sorted(sizes, reverse=True)


def test_kmeans_depends_on_its_seed_alone() -> None:
    maps = [noise(9, 9, 8)]
    np.testing.assert_array_equal(viz.kmeans_labels(maps, seed=3), viz.kmeans_labels(maps, seed=3))
    assert (viz.kmeans_labels(maps, seed=3)[0] != viz.kmeans_labels(maps, seed=4)[0]).any()


def test_kmeans_of_a_constant_map_is_one_cluster() -> None:
    np.testing.assert_array_equal(viz.kmeans_labels([np.ones((3, 4, 5))])[0], 0)
    np.testing.assert_array_equal(viz.kmeans_labels([np.zeros((3, 4, 5))])[0], 0)


def test_similarity() -> None:
    features = np.array([[[2.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [-3.0, 0.0]]])
    np.testing.assert_allclose(viz.similarity(features, (0, 0)), [[1, 0.5**0.5], [0, -1]])


def test_colorize() -> None:
    colors = viz.colorize(np.array([[-5.0, 0.0, 1.0, 2.0, 9.0]]), 0, 2)
    assert colors.dtype == np.uint8
    assert colors.shape == (1, 5, 3)
    assert colors[0, 0].tolist() == colors[0, 1].tolist() == [0x44, 0x01, 0x54]
    assert colors[0, 3].tolist() == colors[0, 4].tolist() == [0xFD, 0xE7, 0x25]
    np.testing.assert_array_equal(viz.colorize(np.full((1, 1), 3.0), 3, 3), colors[:, 2:3])


def test_colorize_brightens_evenly() -> None:
    luminance = viz.colorize(np.linspace(0, 1, 50)[None], 0, 1)[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()


@pytest.mark.parametrize(
    ("values", "low", "high", "message"),
    [
        (np.zeros((2, 2, 2)), 0, 1, r"shape \(h, w\)"),
        (np.array([[np.nan]]), 0, 1, "finite"),
        (np.zeros((2, 2)), 1, 0, "low must not exceed high"),
        (np.zeros((2, 2)), float("nan"), 0, "low must not exceed high"),
    ],
)
def test_colorize_refuses(values: Any, low: float, high: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        viz.colorize(values, low, high)


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
    assert min(areas) >= 2 * 40 * 40  # once per row, and every patch a full block of one colour


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (20, 400), (400, 20)])
def test_panel_tiles_have_the_aspect_ratio_of_the_image(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), (200, 10, 60), dtype=np.uint8)
    panel = viz.feature_panel(image, {"features": noise(5, 5, 8)})
    rows, columns = np.nonzero((panel == (200, 10, 60)).all(axis=2))
    aspect = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    assert aspect == pytest.approx(size[0] / size[1], rel=0.1)


def test_panel_marks_the_chosen_patch() -> None:
    features = {"features": noise(4, 6, 8)}
    centre = viz.feature_panel(IMAGE, features)
    np.testing.assert_array_equal(centre, viz.feature_panel(IMAGE, features, patch=(2, 3)))
    assert (centre != viz.feature_panel(IMAGE, features, patch=(0, 5))).any()


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
        ({"raw": noise(1, 4, 6, 8)}, {}, r"feature map is \(h, w, C\), got shape \(1, 4, 6, 8\)"),
        ({"raw": noise(0, 6, 8)}, {}, r"got shape \(0, 6, 8\)"),
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


@pytest.mark.parametrize("image", [IMAGE[..., :1], IMAGE[0], IMAGE.astype(np.float32), IMAGE[:0]])
def test_panel_refuses_other_images(image: Any) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        viz.feature_panel(image, {"raw": noise(4, 6, 8)})


def test_every_function_refuses_bad_maps() -> None:
    bad = with_value(np.nan)
    for call in (viz.pca_rgb, viz.kmeans_labels):
        with pytest.raises(ValueError, match="NaN"):
            call([bad])
        with pytest.raises(ValueError, match="no feature maps"):
            call([])
    for single in (viz.norm_map, lambda features: viz.similarity(features, (0, 0))):
        with pytest.raises(ValueError, match="NaN"):
            single(bad)
        with pytest.raises(ValueError, match="got shape"):
            single(noise(4, 6))
    with pytest.raises(ValueError, match=r"num_clusters must be 1\.\.24"):
        viz.kmeans_labels([noise(4, 6, 8)], num_clusters=25)
    with pytest.raises(ValueError, match="outside"):
        viz.similarity(noise(4, 6, 8), (1, 6))


def test_a_decomposition_panel_shows_four_maps_in_one_projection() -> None:
    semantics, artifact = noise(6, 9, 16), noise(6, 9, 16, seed=1)
    residual = 0.1 * noise(6, 9, 16, seed=2)
    raw = semantics + artifact + residual
    panel = viz.decomposition_panel(IMAGE, raw, semantics, artifact, residual)
    assert panel.dtype == np.uint8
    again = viz.decomposition_panel(IMAGE, raw + 5, semantics + 5, artifact, residual)  # a constant has no colour
    pca = slice(0, panel.shape[1] * 2 // 3)
    np.testing.assert_allclose(panel[:, pca].astype(int), again[:, pca].astype(int), atol=1)
    with pytest.raises(ValueError, match="must share one grid"):
        viz.decomposition_panel(IMAGE, raw[:3], semantics, artifact, residual)
    with pytest.raises(ValueError, match="uint8"):
        viz.decomposition_panel(IMAGE.astype(float), raw, semantics, artifact, residual)
