"""Turns feature maps into pictures; arrays in, arrays out.

Letters: a feature map is h x w patches of C channels, an image H x W pixels; N counts the patches of all maps.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .arrays import FeatureMap, Floats, ImageLike, Pixels, as_image, as_map, as_maps, split, tokens_of, unit
from .clusters import kmeans_labels
from .panel import Column, draw_panel

FIT_QUANTILE = 0.95  # of the distance to the median token: farther ones take no part in the PCA's fit
COLOR_QUANTILES = (0.02, 0.98)  # of each principal component: 0 and 1 of its color
NORM_QUANTILES = (0.005, 0.995)  # of the token norms: the ends of the norm's color scale

# viridis, its darkest to its brightest color in equal steps
ANCHORS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
COLORMAP = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=np.float64)  # [10, 3] in 0..255


def pca_rgb(maps: Sequence[FeatureMap]) -> list[Floats]:
    """Color the tokens by the first three principal components of all maps, so that colors compare.

    Outlying tokens (the 5 % farthest from the median token) take no part in the fit. Each component is scaled by its
    2 % and 98 % quantiles, and its largest loading is positive. A component without variance gives 0.5.

    Args:
        maps: feature maps of one model; grids may differ.

    Returns:
        For each map, [h_i, w_i, 3] in 0..1.

    Raises:
        ValueError: if there is no map, or a map is not finite or of another shape or number of channels.
    """
    arrays = as_maps(maps)
    tokens = tokens_of(arrays)
    projected = tokens @ _principal_axes(tokens)  # [N, 3]
    low, high = np.quantile(projected, COLOR_QUANTILES, axis=0)
    flat = high - low <= 1e-6 * (np.abs(tokens).max() + (high - low).max())
    colors = np.clip((projected - low) / np.where(flat, 1.0, high - low), 0, 1)
    return split(np.where(flat, 0.5, colors), arrays)


def norm_map(features: FeatureMap) -> Floats:
    """Take the Euclidean norm of every token.

    Args:
        features: one feature map.

    Returns:
        [h, w].

    Raises:
        ValueError: if the map is not finite or of another shape.
    """
    norms: Floats = np.linalg.norm(as_map(features), axis=2)
    return norms


def similarity(features: FeatureMap, patch: tuple[int, int]) -> Floats:
    """Take the cosine of every token with that of one patch; it is 0 where a token is zero.

    Args:
        features: one feature map.
        patch: (row, column) in 0..h-1, 0..w-1.

    Returns:
        [h, w] in -1..1.

    Raises:
        ValueError: if the map is not finite or of another shape, or if the patch lies outside.
    """
    tokens = unit(as_map(features))
    _check_patch(patch, tokens.shape[:2])
    cosines: Floats = tokens @ tokens[patch]
    return cosines


def colorize(values: NDArray[np.floating], low: float, high: float) -> Pixels:
    """Give values the colors of a perceptually even map (viridis).

    Values beyond its ends get its ends. If low equals high, all get its middle.

    Args:
        values: [h, w].
        low: the value of its darkest color.
        high: the value of its brightest color.

    Returns:
        [h, w, 3] uint8.

    Raises:
        ValueError: if values are not [h, w] or not finite, or low exceeds high.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"colorize takes finite values of shape (h, w), got shape {values.shape}; select one map")
    if not low <= high:
        raise ValueError(f"low must not exceed high, got {low} and {high}")
    position = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    steps = np.linspace(0, 1, len(COLORMAP))
    return np.stack([np.interp(position, steps, COLORMAP[:, i]) for i in range(3)], axis=2).round().astype(np.uint8)


def feature_panel(
    image: ImageLike,
    features: Mapping[str, FeatureMap],
    *,
    patch: tuple[int, int] | None = None,
    num_clusters: int = 6,
) -> Pixels:
    """Draw feature maps of one image, labeled: their PCA, norm, k-means clusters, and similarity to one patch.

    Every column has one scale for all rows: a joint PCA, joint clusters, one range of norms, cosines 0..1. Patches
    are enlarged without smoothing, so that artifacts stay visible.

    Args:
        image: what the maps were computed from.
        features: row label -> feature map, all of one shape.
        patch: (row, column) that similarity refers to, the center by default.
        num_clusters: of k-means, at least 1; as many as there are patches, if those are fewer.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: if there is no map, or a map is not finite or differs in shape; if the image has another shape or
            type; if the patch or the number of clusters is out of range.
    """
    pixels = as_image(image)
    maps = _as_panel_maps(list(features.values()))
    grid = maps[0].shape[:2]
    patch = (grid[0] // 2, grid[1] // 2) if patch is None else patch
    _check_patch(patch, grid)
    num_clusters = min(num_clusters, len(maps) * grid[0] * grid[1])
    return draw_panel(pixels, list(features), _columns(maps, patch, num_clusters), patch)


def decomposition_panel(
    image: ImageLike, raw: FeatureMap, semantics: FeatureMap, artifact: FeatureMap, residual: FeatureMap
) -> Pixels:
    """Draw the decomposition of one image, labeled: the PCA and norm of its four maps (arXiv 2401.02957, equation 5).

    All rows share one projection and one range of norms. For the PCA the mean of the semantics is taken off the raw
    map and the semantics, so that no difference has one color in every row.

    Args:
        image: what the maps were computed from.
        raw: the features themselves.
        semantics: what belongs to a place in the image. All four maps have one shape.
        artifact: what belongs to a position in the grid of patches.
        residual: what is left.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: if a map is not finite or differs in shape, or the image has another shape or type.
    """
    pixels = as_image(image)
    maps = _as_panel_maps([raw, semantics, artifact, residual])
    mean = maps[1].mean(axis=(0, 1))
    centered = [maps[0] - mean, maps[1] - mean, *maps[2:]]
    return draw_panel(pixels, ["raw", "semantics", "artifact", "residual"], [_pca_column(centered), _norm_column(maps)])


def _as_panel_maps(features: list[FeatureMap]) -> list[Floats]:
    maps = as_maps(features)
    if len({array.shape for array in maps}) > 1:
        raise ValueError(f"the maps of a panel must share one grid, got {[array.shape for array in maps]}")
    return maps


def _check_patch(patch: tuple[int, int], grid: tuple[int, ...]) -> None:
    if len(patch) != 2 or not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
        raise ValueError(f"patch {patch} is outside the {grid[0]} x {grid[1]} grid; give (row, column) from (0, 0)")


def _principal_axes(tokens: Floats) -> Floats:  # [N, C] -> [C, 3]
    """Find the three directions of largest variance; those beyond C are zero."""
    distances = np.linalg.norm(tokens - np.median(tokens, axis=0), axis=1)
    kept = tokens[distances <= np.quantile(distances, FIT_QUANTILE)]
    centered = kept - kept.mean(axis=0)
    axes = np.linalg.eigh(centered.T @ centered)[1][:, :-4:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))


def _columns(maps: list[Floats], patch: tuple[int, int], num_clusters: int) -> list[Column]:
    clusters = [_palette(num_clusters)[labels] for labels in kmeans_labels(maps, num_clusters)]
    cosines = [colorize(similarity(array, patch), 0, 1) for array in maps]
    return [
        _pca_column(maps),
        _norm_column(maps),
        Column("k-means", clusters, note=f"{num_clusters} clusters"),
        Column("similarity", cosines, bar=_bar(), ends=(0, 1), marked=True),
    ]


def _pca_column(maps: list[Floats]) -> Column:
    tiles = [(255 * colors).round().astype(np.uint8) for colors in pca_rgb(maps)]
    return Column("PCA", tiles, note="first 3 components")


def _norm_column(maps: list[Floats]) -> Column:
    norms = [norm_map(array) for array in maps]
    low, high = (float(end) for end in np.quantile(np.stack(norms), NORM_QUANTILES))
    return Column("norm", [colorize(norm, low, high) for norm in norms], bar=_bar(), ends=(low, high))


def _bar() -> Pixels:  # [1, 256, 3]
    """Draw the colors from 0 to 1."""
    return colorize(np.linspace(0, 1, 256)[None], 0, 1)


def _palette(num_colors: int) -> Pixels:  # [k, 3]
    """Choose hues in equal steps, dark and light in turn."""
    colors = [colorsys.hls_to_rgb((0.58 + i / num_colors) % 1, 0.42 + 0.24 * (i % 2), 0.6) for i in range(num_colors)]
    return (255 * np.array(colors)).round().astype(np.uint8)
