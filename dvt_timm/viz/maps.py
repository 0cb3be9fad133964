"""Feature maps -> pictures; arrays in, arrays out.

Letters: a feature map is h x w patches of C channels, an image H x W pixels; N counts the patches of all maps.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .panel import Column, draw_panel

__all__ = ["colorize", "decomposition_panel", "feature_panel", "kmeans_labels", "norm_map", "pca_rgb", "similarity"]

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]
FeatureMap: TypeAlias = "Tensor | NDArray[np.floating]"  # [h, w, C]

FIT_QUANTILE = 0.95  # of the distance to the median token: farther ones take no part in the PCA's fit
COLOR_QUANTILES = (0.02, 0.98)  # of each principal component: 0 and 1 of its colour
NORM_QUANTILES = (0.005, 0.995)  # of the token norms: the ends of the norm's colour scale
RESTARTS, ITERATIONS = 4, 100  # of k-means

# viridis, its darkest to its brightest colour in equal steps
ANCHORS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
COLORMAP = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=np.float64)  # [10, 3] in 0..255


def pca_rgb(maps: Sequence[FeatureMap]) -> list[Floats]:
    """Colours of the first three principal components, one projection for all maps, so that colours compare.

    Outlying tokens (the 5 % farthest from the median token) take no part in the fit; each component is scaled by
    its 2 % and 98 % quantiles. The largest loading of a component is positive. A component without variance
    gives 0.5.

    Args:
        maps: feature maps [h_i, w_i, C]; grids may differ.

    Returns:
        For each map, [h_i, w_i, 3] in 0..1.

    Raises:
        ValueError: without maps, or if a map is not [h, w, C], not finite, or of another C than the first.
    """
    arrays = _as_maps(maps)
    tokens = _tokens(arrays)
    projected = tokens @ _principal_axes(tokens)  # [N, 3]
    low, high = np.quantile(projected, COLOR_QUANTILES, axis=0)
    flat = high - low <= 1e-6 * (np.abs(tokens).max() + (high - low).max())
    colors = np.clip((projected - low) / np.where(flat, 1.0, high - low), 0, 1)
    return _split(np.where(flat, 0.5, colors), arrays)


def norm_map(features: FeatureMap) -> Floats:
    """Euclidean norm of every token.

    Args:
        features: [h, w, C].

    Returns:
        [h, w].

    Raises:
        ValueError: if the map is not [h, w, C] or not finite.
    """
    norms: Floats = np.linalg.norm(_as_map(features), axis=2)
    return norms


def kmeans_labels(maps: Sequence[FeatureMap], num_clusters: int = 6, seed: int = 0) -> list[NDArray[np.int64]]:
    """Clusters of the tokens of all maps by direction: Lloyd's k-means on unit tokens, k-means++ starts.

    Args:
        maps: feature maps [h_i, w_i, C]; grids may differ.
        num_clusters: 1..N.
        seed: of the starts; the same arguments give the same labels.

    Returns:
        For each map, [h_i, w_i] labels, 0 for the largest cluster.

    Raises:
        ValueError: on maps as in `pca_rgb`, or on a number of clusters outside 1..N.
    """
    arrays = _as_maps(maps)
    tokens = _unit(_tokens(arrays))
    if not 1 <= num_clusters <= len(tokens):
        raise ValueError(f"num_clusters must be 1..{len(tokens)} (the number of patches), got {num_clusters}")
    random = np.random.default_rng(seed)
    runs = [_lloyd(tokens, _plus_plus(tokens, num_clusters, random)) for _ in range(RESTARTS)]
    labels = min(runs, key=lambda run: run[1])[0]
    order = np.argsort(-np.bincount(labels, minlength=num_clusters), kind="stable")
    return _split(np.argsort(order)[labels], arrays)


def similarity(features: FeatureMap, patch: tuple[int, int]) -> Floats:
    """Cosine of every token with that of one patch; 0 where a token is zero.

    Args:
        features: [h, w, C].
        patch: (row, column) in 0..h-1, 0..w-1.

    Returns:
        [h, w] in -1..1.

    Raises:
        ValueError: if the map is not [h, w, C] or not finite, or the patch lies outside.
    """
    tokens = _unit(_as_map(features))
    _check_patch(patch, tokens.shape[:2])
    cosines: Floats = tokens @ tokens[patch]
    return cosines


def colorize(values: NDArray[np.floating], low: float, high: float) -> Pixels:
    """Values in a perceptually even colour map (viridis), clipped to its ends; its middle if low equals high.

    Args:
        values: [h, w].
        low, high: the values of its darkest and its brightest colour.

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
    image: Pixels,
    features: Mapping[str, FeatureMap],
    *,
    patch: tuple[int, int] | None = None,
    num_clusters: int = 6,
) -> Pixels:
    """A labelled picture of feature maps of one image: PCA, norm, k-means, and similarity to one patch.

    Every column has one scale for all rows: a joint PCA, joint clusters, one range of norms, cosines 0..1. Patches
    are enlarged without smoothing, so that artifacts stay visible.

    Args:
        image: [H, W, 3] uint8, what the maps were computed from.
        features: row label -> [h, w, C], all of one shape.
        patch: (row, column) that similarity refers to, the centre by default.
        num_clusters: of k-means; as many as there are patches, if those are fewer.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: on an image of another form, no maps, maps that are not finite or differ in shape, or a patch or
            a number of clusters out of range.
    """
    image = _as_image(image)
    maps = _as_panel_maps(list(features.values()))
    grid = maps[0].shape[:2]
    patch = (grid[0] // 2, grid[1] // 2) if patch is None else patch
    _check_patch(patch, grid)
    num_clusters = min(num_clusters, len(maps) * grid[0] * grid[1])
    return draw_panel(image, list(features), _columns(maps, patch, num_clusters), patch)


def decomposition_panel(
    image: Pixels, raw: FeatureMap, semantics: FeatureMap, artifact: FeatureMap, residual: FeatureMap
) -> Pixels:
    """A labelled picture of one image's decomposition: PCA and norm of its four maps.

    One projection and one range of norms for all rows. For the PCA the mean of the semantics is taken off the raw map
    and the semantics, so that no difference has one colour in every row.

    Args:
        image: [H, W, 3] uint8, what the maps were computed from.
        raw, semantics, artifact, residual: [h, w, C].

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: on an image of another form, or maps that are not finite or differ in shape.
    """
    image = _as_image(image)
    maps = _as_panel_maps([raw, semantics, artifact, residual])
    mean = maps[1].mean(axis=(0, 1))
    centred = [maps[0] - mean, maps[1] - mean, *maps[2:]]
    return draw_panel(image, ["raw", "semantics", "artifact", "residual"], [_pca_column(centred), _norm_column(maps)])


def _as_image(image: Pixels) -> Pixels:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; convert it to RGB first")
    return image


def _as_panel_maps(features: list[FeatureMap]) -> list[Floats]:
    maps = _as_maps(features)
    if len({array.shape for array in maps}) > 1:
        raise ValueError(f"the maps of a panel must share one grid, got {[array.shape for array in maps]}")
    return maps


def _as_map(features: FeatureMap) -> Floats:
    array: Floats = np.asarray(
        features.detach().double().cpu().numpy() if isinstance(features, Tensor) else features, dtype=np.float64
    )
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"a feature map is (h, w, C), got shape {array.shape}; pass one image's map, channels last")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array).all(axis=2)).sum())
        raise ValueError(f"{bad} of {array[..., 0].size} patches hold NaN or Inf; compute the features in float32")
    return array


def _as_maps(maps: Sequence[FeatureMap]) -> list[Floats]:
    arrays = [_as_map(features) for features in maps]
    if not arrays:
        raise ValueError("no feature maps given; pass at least one of shape (h, w, C)")
    if len({array.shape[2] for array in arrays}) > 1:
        raise ValueError(f"maps must have the same channels, got {[array.shape for array in arrays]}; use one model")
    return arrays


def _check_patch(patch: tuple[int, int], grid: tuple[int, ...]) -> None:
    if len(patch) != 2 or not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
        raise ValueError(f"patch {patch} is outside the {grid[0]} x {grid[1]} grid; give (row, column) from (0, 0)")


def _tokens(arrays: list[Floats]) -> Floats:  # [N, C]
    return np.concatenate([array.reshape(-1, array.shape[2]) for array in arrays])


def _split(rows: NDArray[Any], arrays: list[Floats]) -> list[NDArray[Any]]:  # rows: [N, ...]
    """The rows of every map, back on its grid."""
    ends = np.cumsum([array[..., 0].size for array in arrays])[:-1]
    parts = zip(np.split(rows, ends), arrays, strict=True)
    return [part.reshape(*array.shape[:2], *rows.shape[1:]) for part, array in parts]


def _unit(tokens: Floats) -> Floats:  # [..., C]
    norms = np.linalg.norm(tokens, axis=-1, keepdims=True)
    return tokens / np.where(norms > 0, norms, 1.0)


def _principal_axes(tokens: Floats) -> Floats:  # [N, C] -> [C, 3]
    """The three directions of largest variance, zero where C < 3."""
    distances = np.linalg.norm(tokens - np.median(tokens, axis=0), axis=1)
    kept = tokens[distances <= np.quantile(distances, FIT_QUANTILE)]
    centred = kept - kept.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-4:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))


def _plus_plus(tokens: Floats, num_clusters: int, random: np.random.Generator) -> Floats:  # [N, C] -> [k, C]
    """k-means++ starts: each next centre is drawn by its squared distance to the nearest one so far."""
    centres = [tokens[random.integers(len(tokens))]]
    nearest = np.full(len(tokens), np.inf)
    while len(centres) < num_clusters:
        nearest = np.minimum(nearest, ((tokens - centres[-1]) ** 2).sum(axis=1))
        total = nearest.sum()
        centres.append(tokens[random.choice(len(tokens), p=nearest / total if total > 0 else None)])
    return np.stack(centres)


def _lloyd(tokens: Floats, centres: Floats) -> tuple[NDArray[np.intp], float]:  # [N, C], [k, C] -> [N], inertia
    """Assign and average until nothing moves; a centre without tokens stays where it is."""
    labels = np.full(len(tokens), -1)
    for _ in range(ITERATIONS):
        distances = (centres**2).sum(axis=1) - 2 * tokens @ centres.T  # [N, k], squared, less the token's own norm
        previous, labels = labels, distances.argmin(axis=1)
        if np.array_equal(labels, previous):
            break
        members = np.eye(len(centres))[labels]  # [N, k]
        counts = members.sum(axis=0)[:, None]
        centres = np.where(counts > 0, members.T @ tokens / np.maximum(counts, 1), centres)
    return labels, float(distances.min(axis=1).sum())


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
    """The colours from 0 to 1."""
    return colorize(np.linspace(0, 1, 256)[None], 0, 1)


def _palette(num_colors: int) -> Pixels:  # [k, 3]
    """Hues in equal steps, dark and light in turn."""
    colors = [colorsys.hls_to_rgb((0.58 + i / num_colors) % 1, 0.42 + 0.24 * (i % 2), 0.6) for i in range(num_colors)]
    return (255 * np.array(colors)).round().astype(np.uint8)
