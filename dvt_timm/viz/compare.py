"""Compares feature maps of one image in a panel: a row for each map, a column for each way to look at it.

A panel claims what changed, so a factor alone changes no row, and a constant alone no PCA and no similarity: each
map's mean is taken off, colors have a scale per row in the axes of the first map, norms are relative to their row's
median, and clusters are found per row and matched by the patches that they share. What was removed has its own column.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import FeatureMap, Floats, ImageLike, Pixels, as_image, as_pixels, centered
from .clusters import cluster_labels, matched_labels
from .maps import FLAT, check_patch, colorize, cosines_with, norms_of, row_colors, salient_place, same_grid
from .panel import Column, Style, draw_panel

COLUMNS = ("pca", "clusters", "norm", "similarity", "removed")
SCALE_QUANTILES = (0.005, 0.995)  # of norms and cosines: the ends of a color scale


def feature_panel(
    image: ImageLike,
    features: Mapping[str, FeatureMap],
    *,
    columns: Sequence[str] | None = None,
    patch: tuple[int, int] | None = None,
    num_clusters: int = 6,
    overlay: bool = False,
    smooth: bool = False,
    caption: str = "",
) -> Pixels:
    """Draw feature maps of one image, labeled, such that what looks different is different.

    - `pca`: `pca_rows`, three components, in the axes of the first map.
    - `clusters`: k-means of each row; colors are matched to the first row's by the patches that they share.
    - `norm`: relative to its row's median, which stands below; one range of colors.
    - `similarity`: cosine with one patch, the map's mean taken off; one range of colors.
    - `removed`: first map less last, their means taken off. In the first row its norm; in every other row the PCA of
      what that row lacks, in the axes of what the last one lacks, and its share of the first map's variance.

    Args:
        image: what the maps were computed from.
        features: row label -> feature map, all of one shape, the raw one first.
        columns: some of these names, in this order; by default all, `removed` where there are two maps or more.
            Clusters, which take most of the time, are not computed unless they are shown.
        patch: (row, column) that similarity refers to; by default `salient_patch`.
        num_clusters: of k-means, at least 1; as many as there are patches, if those are fewer.
        overlay: whether tiles lie over the photo, in gray.
        smooth: whether tiles are interpolated, but for clusters. It hides artifacts from patch to patch.
        caption: a line below all, such as the model's name.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: if there is no map, or a map is not finite or differs in shape; if the image has another shape or
            type; if the patch or the number of clusters is out of range; if there is no such column, or `removed` is
            asked for of one map.
    """
    pixels, maps, labels = as_image(image), same_grid(list(features.values())), list(features)
    names = tuple(name for name in COLUMNS if len(maps) > 1 or name != "removed") if columns is None else columns
    check_columns(names)
    if "removed" in names and len(maps) == 1:
        raise ValueError("the column 'removed' compares maps, and there is one; leave it out of columns")
    patch = salient_place(maps) if patch is None else patch
    check_patch(patch, maps[0].shape[:2])
    draw: dict[str, Callable[[], Column]] = {
        "pca": partial(_pca_column, maps),
        "clusters": partial(_clusters_column, maps, min(num_clusters, maps[0][..., 0].size)),
        "norm": partial(_norm_column, maps),
        "similarity": partial(_similarity_column, maps, patch),
        "removed": partial(_removed_column, maps, labels),
    }
    shown = patch if "similarity" in names else None
    return draw_panel(pixels, labels, [draw[name]() for name in names], shown, Style(overlay, smooth, caption))


def decomposition_panel(
    image: ImageLike,
    raw: FeatureMap,
    semantics: FeatureMap,
    artifact: FeatureMap,
    residual: FeatureMap,
    *,
    caption: str = "",
) -> Pixels:
    """Draw the decomposition of one image, labeled: the PCA and norm of its four maps (arXiv 2401.02957, equation 5).

    Raw map and semantics are shown as `feature_panel` shows them. Artifact and residual, which are small beside them,
    have PCA axes and scales of their own; below each stands its share of the raw map's variance, its mean left out.

    Args:
        image: what the maps were computed from.
        raw: the features themselves.
        semantics: what belongs to a place in the image. All four maps have one shape.
        artifact: what belongs to a position in the grid of patches.
        residual: what is left.
        caption: a line below all, such as the share of the views' variance that the fit leaves unexplained.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: if a map is not finite or differs in shape, or the image has another shape or type.
    """
    pixels, maps = as_image(image), same_grid([raw, semantics, artifact, residual])
    colors = [*row_colors(maps[:2]), *(row_colors([each])[0] for each in maps[2:])]
    notes = [f"{_share(each, maps[0])} of raw's variance" for each in maps]
    norms, ranges = _norm_tiles(maps)
    columns = [
        Column("PCA", [as_pixels(each) for each in colors], notes, "raw and semantics share axes"),
        Column("norm", norms, ranges, "each row's own scale"),
    ]
    return draw_panel(pixels, ["raw", "semantics", "artifact", "residual"], columns, style=Style(caption=caption))


def check_columns(columns: Sequence[str]) -> None:
    """Raise ValueError if a panel has no such columns."""
    if not columns or not set(columns) <= set(COLUMNS) or len(set(columns)) < len(columns):
        raise ValueError(f"columns must be some of {', '.join(COLUMNS)}, each once, got {', '.join(columns) or 'none'}")


def _pca_column(maps: list[Floats]) -> Column:
    tiles = [as_pixels(colors) for colors in row_colors(maps)]
    return Column("PCA", tiles, note="one basis, scale per row")


def _clusters_column(maps: list[Floats], num_clusters: int) -> Column:
    first, *others = [cluster_labels([array], num_clusters)[0] for array in maps]
    labels = [first, *(matched_labels(each, first, num_clusters) for each in others)]
    notes = ["", *(f"{100 * (each == first).mean():.0f} % of patches as above" for each in labels[1:])]
    palette = _palette(num_clusters)
    return Column("clusters", [palette[each] for each in labels], notes, f"k-means, {num_clusters} per row", named=True)


def _norm_column(maps: list[Floats]) -> Column:
    norms = [norms_of(array) for array in maps]
    medians = [float(np.median(norm)) for norm in norms]
    relative = [norm / (median or 1.0) for norm, median in zip(norms, medians, strict=True)]
    low, high = _ends(relative)
    return Column(
        "norm / median",
        [colorize(each, low, high) for each in relative],
        [f"median {median:.3g}" for median in medians],
        bar=_bar(),
        ends=(f"{low:.2f}", f"{high:.2f}"),
    )


def _similarity_column(maps: list[Floats], patch: tuple[int, int]) -> Column:
    cosines = [cosines_with(centered(array), patch) for array in maps]
    low, high = _ends(cosines)[0], 1.0
    tiles = [colorize(each, low, high) for each in cosines]
    return Column("similarity", tiles, bar=_bar(), ends=(f"{low:.2f}", "1"), marked=True)


def _removed_column(maps: list[Floats], labels: list[str]) -> Column:
    removed = [centered(maps[0] - array) for array in maps[1:]]
    (norm,), (note,) = _norm_tiles(removed[-1:])
    colors = row_colors(removed[::-1])[::-1]
    tiles = [norm, *(as_pixels(each) for each in colors)]
    notes = [note, *(f"PCA, {_share(each, maps[0])} of variance" for each in removed)]
    return Column("removed", tiles, notes, f"{labels[0]} - {labels[-1]}" if len(maps) == 2 else f"from {labels[0]}")


def _norm_tiles(maps: Sequence[Floats]) -> tuple[list[Pixels], list[str]]:
    """Draw each map's norm in its own scale; the tiles, and the ends of their scales."""
    norms = [norms_of(array) for array in maps]
    ends = [_ends([norm]) for norm in norms]
    tiles = [colorize(norm, *each) for norm, each in zip(norms, ends, strict=True)]
    return tiles, [f"norm {low:.3g} to {high:.3g}" for low, high in ends]


def _ends(values: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Give the ends of a color scale that all the maps share."""
    low, high = (float(end) for end in np.quantile(np.stack(values), SCALE_QUANTILES))
    return (low, high) if high - low > FLAT * abs(high) else (low, low)


def _share(part: Floats, whole: Floats) -> str:
    """Say which share of a map's variance over the patches another one has."""
    power = (centered(whole) ** 2).sum()
    return f"{100 * (centered(part) ** 2).sum() / power:.3g} %" if power > 0 else "0 %"


def _bar() -> Pixels:  # [1, 256, 3]
    """Draw the colors from 0 to 1."""
    return colorize(np.linspace(0, 1, 256)[None], 0, 1)


def _palette(num_colors: int) -> Pixels:  # [k, 3]
    """Choose hues in equal steps, dark and light in turn."""
    colors = [colorsys.hls_to_rgb((0.58 + i / num_colors) % 1, 0.42 + 0.24 * (i % 2), 0.6) for i in range(num_colors)]
    return (255 * np.array(colors)).round().astype(np.uint8)
