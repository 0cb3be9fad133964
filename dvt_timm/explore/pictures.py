"""What the page shows of a photo's maps as it is: colors, clusters and norms of every patch.

Letters: h x w patches, C channels, k clusters.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ..viz import Pixels, kmeans_labels
from ..viz.arrays import Floats
from .encoding import principal_axes

CLUSTERS = 6
# Okabe's and Ito's colors, which color-blind eyes tell apart
PALETTE = ("0072b2", "e69f00", "009e73", "d55e00", "cc79a7", "56b4e9")
COLOR_QUANTILES = (0.02, 0.98)  # of each principal component: 0 and 1 of its color
NORM_QUANTILES = (0.005, 0.995)  # of norms: the ends of their color scale


def pca_colors(maps: list[Floats]) -> list[Pixels]:  # [h, w, C] each -> [h, w, 3] each
    """Color the patches of maps by the first three principal components of the first map.

    The mean is taken off each map, and each has a scale of its own: what differs from patch to patch shows, not what
    all patches share. A component without variance is gray.
    """
    centered = [fmap - fmap.mean(axis=(0, 1)) for fmap in maps]
    tokens = centered[0].reshape(-1, centered[0].shape[2])
    axes = principal_axes(tokens.T @ tokens, 3)
    return [_scaled(fmap @ axes) for fmap in centered]


def matched_clusters(maps: list[Floats]) -> list[NDArray[np.uint8]]:  # [h, w, C] each -> [h, w] each
    """Cluster each map by direction, and name the clusters of the others as those of the first that they share most."""
    first, *others = (_clusters(fmap) for fmap in maps)
    return [first, *(_renamed(labels, first) for labels in others)]


def color_steps(values: list[Floats], lowest: float | None = None) -> tuple[list[Pixels], tuple[float, float]]:
    """Place values on one color scale of 256 steps; give the steps and the values at its ends."""
    low, high = (float(end) for end in np.quantile(np.stack(values), NORM_QUANTILES))
    low = low if lowest is None else lowest
    spread = high - low if high > low else 1.0
    steps = [(255 * np.clip((each - low) / spread, 0, 1)).round().astype(np.uint8) for each in values]
    return steps, (low, low + spread)


def _scaled(components: Floats) -> Pixels:  # [h, w, n] -> [h, w, 3]
    low, high = np.quantile(components, COLOR_QUANTILES, axis=(0, 1))
    flat = high - low <= 1e-6 * np.abs(components).max()
    colors = np.where(flat, 0.5, np.clip((components - low) / np.where(flat, 1.0, high - low), 0, 1))
    colors = np.pad(colors, ((0, 0), (0, 0), (0, 3 - colors.shape[2])), constant_values=0.5)
    return (255 * colors).round().astype(np.uint8)


def _clusters(fmap: Floats) -> NDArray[np.uint8]:
    count = min(CLUSTERS, fmap[..., 0].size)
    channels_first = np.moveaxis(fmap, 2, 0)[None]  # of four axes there is no doubt
    return kmeans_labels([channels_first], count)[0].astype(np.uint8)


def _renamed(labels: NDArray[np.uint8], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shared = np.zeros((CLUSTERS, CLUSTERS))
    np.add.at(shared, (labels.ravel(), like.ravel()), 1)
    names = max(permutations(range(CLUSTERS)), key=lambda order: shared[range(CLUSTERS), order].sum())
    return np.array(names, dtype=np.uint8)[labels]
