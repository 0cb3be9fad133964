"""k-means: planted clusters come out, and the seed alone decides."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dvt_timm import viz
from dvt_timm.viz.clusters import best_assignment


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def planted(grid: tuple[int, int], directions: NDArray[np.float64], seed: int) -> tuple[Any, Any]:
    """Labels [h, w] and a map [h, w, C] of noisy, differently long tokens along the direction of their label."""
    random = np.random.default_rng(seed)
    labels = random.integers(len(directions), size=grid)
    lengths = random.uniform(0.5, 20, size=(*grid, 1))
    return labels, lengths * (directions[labels] + 0.02 * random.normal(size=(*grid, directions.shape[1])))


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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_the_best_assignment_is_the_best_of_all(size: int) -> None:
    random = np.random.default_rng(size)
    for levels in (2, 9, 1000):  # few of them make ties
        gain = random.integers(0, levels, (size, size)).astype(float)
        columns = best_assignment(gain)
        assert sorted(columns) == list(range(size))
        best = max(gain[np.arange(size), list(order)].sum() for order in permutations(range(size)))
        assert gain[np.arange(size), columns].sum() == best


def test_large_assignments_are_best_too() -> None:
    gain = np.random.default_rng(0).random((40, 40))
    optimize = pytest.importorskip("scipy.optimize")
    rows, columns = optimize.linear_sum_assignment(-gain)
    assert gain[np.arange(40), best_assignment(gain)].sum() == pytest.approx(gain[rows, columns].sum())


def test_matched_labels_undo_a_permutation() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (7, 9))
    np.testing.assert_array_equal(viz.matched_labels(np.array([3, 0, 4, 1, 2])[labels], labels, 5), labels)


def test_labels_that_cannot_be_matched() -> None:
    zeros = np.zeros((2, 2), dtype=np.int64)
    with pytest.raises(ValueError, match="one shape"):
        viz.matched_labels(np.zeros((2, 3), dtype=np.int64), zeros, 4)
    with pytest.raises(ValueError, match=r"labels must be 0\.\.3, got 0\.\.4"):
        viz.matched_labels(zeros + 4, zeros, 4)
