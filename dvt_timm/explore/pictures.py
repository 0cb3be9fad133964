"""What the page shows of a photo's maps as it is: colors, clusters and norms of every patch.

Letters: h x w patches, C channels, k clusters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..viz import Pixels, matched_labels
from ..viz.arrays import Floats, as_pixels
from ..viz.clusters import cluster_labels
from ..viz.maps import row_colors, salient_place

CLUSTERS = 6
# Okabe's and Ito's colors, which color-blind eyes tell apart
PALETTE = ("0072b2", "e69f00", "009e73", "d55e00", "cc79a7", "56b4e9")
NORM_QUANTILES = (0.005, 0.995)  # of norms: the ends of their color scale


def pca_colors(maps: list[Floats]) -> list[Pixels]:  # [h, w, C] each -> [h, w, 3] each
    """Color maps by `viz.pca_rows`: in the axes of the first one, each about its own mean and in its own scale."""
    return [as_pixels(colors) for colors in row_colors(maps)]


def matched_clusters(maps: list[Floats]) -> list[NDArray[np.uint8]]:  # [h, w, C] each -> [h, w] each
    """Cluster each map by direction; the others have the first one's numbers, by what clusters share."""
    count = min(CLUSTERS, maps[0][..., 0].size)
    first, *others = (cluster_labels([fmap], count)[0] for fmap in maps)
    matched = [first, *(matched_labels(labels, first, count) for labels in others)]
    return [labels.astype(np.uint8) for labels in matched]


def farthest(maps: list[Floats]) -> int:  # [h, w, C] each
    """Find the patch that `viz.salient_patch` chooses: its number, row by row."""
    row, column = salient_place(maps)
    return row * maps[0].shape[1] + column


def color_steps(values: list[Floats], lowest: float | None = None) -> tuple[list[Pixels], tuple[float, float]]:
    """Place values on one color scale of 256 steps; give the steps and the values at its ends."""
    low, high = (float(end) for end in np.quantile(np.stack(values), NORM_QUANTILES))
    low = low if lowest is None else lowest
    spread = high - low if high > low else 1.0
    steps = [(255 * np.clip((each - low) / spread, 0, 1)).round().astype(np.uint8) for each in values]
    return steps, (low, low + spread)
