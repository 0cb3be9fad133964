"""Turns feature maps into numbers and colors; arrays in, arrays out.

Letters: a feature map is h x w patches of C channels, an image H x W pixels; N counts the patches of all maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import FeatureMap, Floats, Pixels, as_map, as_maps, centered, split, tokens_of, unit

FIT_QUANTILE = 0.95  # of the distance to the median token: farther ones take no part in the PCA's fit
COLOR_QUANTILES = (0.02, 0.98)  # of each principal component: 0 and 1 of its color
FLAT = 1e-6  # of the largest value: a component that varies less does not vary

# viridis, its darkest to its brightest color in equal steps
ANCHORS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
COLORMAP = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=np.float64)  # [10, 3] in 0..255


@dataclass(frozen=True)
class PcaColors:
    """What gives tokens their colors: three axes, and the ends of each."""

    axes: Floats  # [C, 3]
    low: Floats  # [3], 0 of a color
    high: Floats  # [3], 1 of a color; the same as low where nothing varies

    @classmethod
    def scaled_to(cls, tokens: Floats, axes: Floats) -> PcaColors:  # [N, C], [C, 3]
        """Scale axes to the 2 % and 98 % quantiles of tokens along them."""
        low, high = np.quantile(tokens @ axes, COLOR_QUANTILES, axis=0)
        flat = high - low <= FLAT * (np.abs(tokens).max() + (high - low).max())
        return cls(axes, low, np.where(flat, low, high))

    def __call__(self, tokens: Floats) -> Floats:  # [..., C] -> [..., 3] in 0..1
        """Color tokens; gray, 0.5, where nothing varies."""
        flat = self.high == self.low
        colors = np.clip((tokens @ self.axes - self.low) / np.where(flat, 1.0, self.high - self.low), 0, 1)
        return np.where(flat, 0.5, colors)


def pca_rgb(maps: Sequence[FeatureMap]) -> list[Floats]:
    """Color the tokens by the first three principal components of all maps, so that a feature has one color in all.

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
    return split(PcaColors.scaled_to(tokens, axes_of(tokens))(tokens), arrays)


def pca_rows(maps: Sequence[FeatureMap]) -> list[Floats]:
    """Color maps that are to be compared: every one about its own mean and in its own scale, in the axes of the first.

    What differs by a constant or a factor alone gets the same colors, so that what looks different has another
    structure. Else as `pca_rgb`, which compares the features themselves.

    Args:
        maps: feature maps of one model, the raw one first; grids may differ.

    Returns:
        For each map, [h_i, w_i, 3] in 0..1.

    Raises:
        ValueError: if there is no map, or a map is not finite or of another shape or number of channels.
    """
    return row_colors(as_maps(maps))


def row_colors(maps: Sequence[Floats]) -> list[Floats]:  # [h_i, w_i, C] each -> [h_i, w_i, 3] each
    """Do what `pca_rows` does, with maps that were read."""
    arrays = [centered(array) for array in maps]
    axes = axes_of(tokens_of(arrays[:1]))
    return [PcaColors.scaled_to(tokens_of([array]), axes)(array) for array in arrays]


def axes_of(tokens: Floats) -> Floats:  # [N, C] -> [C, 3]
    """Find the three directions of largest variance; those beyond C are zero."""
    distances = np.linalg.norm(tokens - np.median(tokens, axis=0), axis=1)
    kept = tokens[distances <= np.quantile(distances, FIT_QUANTILE)]
    moved = kept - kept.mean(axis=0)
    axes = np.linalg.eigh(moved.T @ moved)[1][:, :-4:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))


def salient_patch(maps: Sequence[FeatureMap]) -> tuple[int, int]:
    """Find a patch worth comparing others with: in every map far from the map's mean, as far as patches go there.

    A patch that is far in one map alone, such as an artifact that the others lack, is not chosen.

    Args:
        maps: of one image, on one grid.

    Returns:
        (row, column); (0, 0) if nothing varies.

    Raises:
        ValueError: if there is no map, or a map is not finite or differs in shape.
    """
    return salient_place(same_grid(maps))


def salient_place(maps: Sequence[Floats]) -> tuple[int, int]:  # [h, w, C] each
    """Do what `salient_patch` does, with maps that were read."""
    distances = [norms_of(centered(array)) for array in maps]
    nearest = np.min([each / (np.sqrt((each**2).mean()) or 1.0) for each in distances], axis=0)  # [h, w]
    row, column = np.unravel_index(nearest.argmax(), nearest.shape)
    return int(row), int(column)


def norm_map(features: FeatureMap) -> Floats:
    """Take the Euclidean norm of every token.

    Args:
        features: one feature map.

    Returns:
        [h, w].

    Raises:
        ValueError: if the map is not finite or of another shape.
    """
    return norms_of(as_map(features))


def norms_of(array: Floats) -> Floats:  # [h, w, C] -> [h, w]
    """Do what `norm_map` does, with a map that was read."""
    norms: Floats = np.linalg.norm(array, axis=2)
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
    array = as_map(features)
    check_patch(patch, array.shape[:2])
    return cosines_with(array, patch)


def cosines_with(array: Floats, patch: tuple[int, int]) -> Floats:  # [h, w, C] -> [h, w]
    """Do what `similarity` does, with a map that was read and one of its patches."""
    tokens = unit(array)
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


def same_grid(maps: Sequence[FeatureMap]) -> list[Floats]:
    """Read maps of one image; raise ValueError if they differ in shape."""
    arrays = as_maps(maps)
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"the maps of a panel must share one grid, got {[array.shape for array in arrays]}")
    return arrays


def check_patch(patch: tuple[int, int], grid: tuple[int, ...]) -> None:
    """Raise ValueError if a patch (row, column) is not in the grid."""
    if len(patch) != 2 or not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
        raise ValueError(f"patch {patch} is outside the {grid[0]} x {grid[1]} grid; give (row, column) from (0, 0)")
