"""What is shown of maps as they are: colors on scales of their own, clusters of matching colors, norms."""

from __future__ import annotations

import numpy as np
from exploring import maps

from dvt_timm.explore.pictures import CLUSTERS, color_steps, farthest, matched_clusters, pca_colors


def test_colors_are_the_components_of_the_first_map_each_scaled_by_itself() -> None:
    _, clean = maps(0)
    first, moved, larger = pca_colors([clean, clean + 7.0, 3 * clean])
    assert first.shape == (9, 12, 3)
    assert np.abs(first.astype(int) - moved).max() <= 1
    assert np.abs(first.astype(int) - larger).max() <= 1
    values = np.zeros((9, 12, 64))
    values[..., 5], values[..., 9] = np.arange(108).reshape(9, 12), 1e-3 * np.random.default_rng(0).normal(size=(9, 12))
    red = pca_colors([values])[0][..., 0].ravel().astype(int)
    assert (np.diff(red) >= 0).all()
    assert red[0] == 0
    assert red[-1] == 255


def test_a_map_of_one_feature_is_gray() -> None:
    (colors,) = pca_colors([np.ones((2, 3, 64))])
    assert (colors == 128).all()


def test_clusters_of_the_same_patches_have_one_name() -> None:
    random = np.random.default_rng(0)
    kinds = np.repeat(np.arange(CLUSTERS), 12).reshape(8, 9)
    features = random.normal(size=(CLUSTERS, 64))
    fmap = features[kinds] + 0.01 * random.normal(size=(8, 9, 64))
    other = -5 * features[::-1][kinds] + 0.01 * random.normal(size=(8, 9, 64))
    one, two = matched_clusters([fmap, other])
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one)) == CLUSTERS
    assert matched_clusters([fmap[:1, :3], other[:1, :3]])[0].shape == (1, 3)  # fewer patches than clusters


def test_the_maps_of_a_tall_photo() -> None:
    fmap = np.random.default_rng(0).normal(size=(72, 4, 64))
    fmap[70, 2] += 9
    assert pca_colors([fmap])[0].shape == (72, 4, 3)
    assert matched_clusters([fmap])[0].shape == (72, 4)
    assert farthest([fmap]) == 70 * 4 + 2


def test_steps_of_a_scale_that_maps_share() -> None:
    values = [np.linspace(1, 2, 1000).reshape(20, 50), np.full((20, 50), 1.5)]
    (steps, flat), (low, high) = color_steps(values)
    assert 1 < low < 1.02
    assert 1.98 < high < 2
    np.testing.assert_allclose(low + steps[10, 25] / 255 * (high - low), values[0][10, 25], atol=0.003)
    assert (flat == 128).all() or (flat == 127).all()
    assert color_steps([np.ones((2, 2))], lowest=0.0)[1] == (0.0, 1.0)
    assert color_steps([np.zeros((2, 2))])[1] == (0.0, 1.0)
