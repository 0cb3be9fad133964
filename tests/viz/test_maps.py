"""Maps -> colors: planted structure comes out, and scales are shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dvt_timm import viz


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def test_pca_gives_a_feature_the_same_color_in_every_map() -> None:
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
def test_pca_of_what_does_not_vary_is_gray(channels: int) -> None:
    np.testing.assert_array_equal(viz.pca_rgb([np.full((3, 4, channels), 7.1)])[0], np.full((3, 4, 3), 0.5))


def test_pca_of_one_varying_direction_leaves_the_other_colors_gray() -> None:
    (colors,) = viz.pca_rgb([noise(6, 6, 1) * noise(1, 1, 12, seed=2) + 3])
    assert colors[..., 0].std() > 0.1
    np.testing.assert_array_equal(colors[..., 1:], 0.5)


def test_pca_rows_have_the_axes_of_the_first_map_and_their_own_means_and_scales() -> None:
    first = noise(9, 8, 6) * [9, 5, 3, 0.1, 0.1, 0.1]
    rows = viz.pca_rows([first, 0.1 * first + noise(6, seed=1), first + [0, 0, 0, 50, 0, 0] * noise(9, 8, 1, seed=2)])
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-9)
    np.testing.assert_allclose(rows[2], rows[0], atol=0.2)  # what varies elsewhere has no color
    assert min(row.min() for row in rows) == 0
    assert max(row.max() for row in rows) == 1


def test_the_salient_patch_stands_out_in_every_map() -> None:
    first, second = (0.1 * noise(5, 7, 8, seed=seed) for seed in (0, 1))
    first[0, 0] += 6  # an artifact of the first map alone
    for features in (first, second):
        features[3, 2] += 4
    assert viz.salient_patch([first]) == (0, 0)
    assert viz.salient_patch([first, second]) == viz.salient_patch([second, 7 * first]) == (3, 2)
    assert viz.salient_patch([np.ones((3, 4, 5))]) == (0, 0)
    with pytest.raises(ValueError, match="share one grid"):
        viz.salient_patch([first, second[:2]])


def test_norm_map() -> None:
    np.testing.assert_allclose(viz.norm_map(np.array([[[3.0, 4.0], [0.0, 0.0]]])), [[5, 0]])


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
