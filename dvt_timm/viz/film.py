"""Films of features: one basis and one scale for all frames, and what stands still while the picture moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import FeatureMap, Floats, ImageLike, Pixels, as_image, as_maps, as_pixels, tokens_of
from .canvas import cell_size, enlarged, fitted
from .maps import PcaColors, axes_of, same_grid
from .sheet import Cell, draw_sheet

SIDE = 320  # pixels: long side of a tile
MOST_TOKENS = 10_000  # that colors are found from


class LockedShare:
    """How much of a film's features is locked to the frame: what recurs at a position, whatever passes there.

    With d(t, q) the difference of two neighboring patches, q, in frame t, it is what the means over the first and the
    second half of the film have in common, relative to the power of all: `sum_q <mean_1 d(q), mean_2 d(q)> / mean_t
    sum_q |d(t, q)|^2`. It is 1 for a film that stands still and 0 if nothing recurs. Differences leave out the layout
    of a scene, such as sky above and ground below, and artifacts as smooth as that; halves leave out what is alike in
    frames that follow each other. So it tells how much of the grain of the features belongs to the grid of patches; of
    a camera that hardly moves it tells nothing.

    Args:
        num_frames: of the film.
    """

    def __init__(self, num_frames: int) -> None:
        self._num_frames, self._count, self._power = num_frames, 0, 0.0
        self._sums: tuple[Floats, Floats] | None = None  # of the first and the second half's differences

    def add(self, features: FeatureMap) -> None:
        """Take the next frame's map; raise ValueError if it is none, or of another shape than those before."""
        (array,) = as_maps([features])
        differences = np.concatenate([np.diff(array, axis=axis).ravel() for axis in (0, 1)])
        if self._sums is None:
            self._sums = np.zeros_like(differences), np.zeros_like(differences)
        if differences.shape != self._sums[0].shape:
            raise ValueError(f"the maps of a film must have one shape, got another one, {array.shape}")
        half = 0 if 2 * self._count < self._num_frames else 1
        self._sums[half][:] += differences
        self._power += float((differences**2).sum())
        self._count += 1

    @property
    def share(self) -> float:
        """In [0, 1], 0 where chance takes it below, or if no patches differ; NaN for a single frame.

        Raises:
            ValueError: if other than `num_frames` maps were added.
        """
        if self._sums is None or self._count != self._num_frames:
            raise ValueError(f"{self._num_frames} maps were to be added, {self._count} were")
        if self._count == 1:
            return math.nan
        if not self._power:
            return 0.0
        halves = (self._count + 1) // 2, self._count // 2
        common = float(self._sums[0] @ self._sums[1]) / (halves[0] * halves[1])
        return min(1.0, max(0.0, common * self._count / self._power))


@dataclass(frozen=True)
class FilmColors:
    """What colors all frames of a film: PCA axes of the raw maps for raw and denoised ones, and of what was removed."""

    raw: PcaColors
    denoised: PcaColors
    removed: PcaColors

    @classmethod
    def of(cls, raw: Sequence[FeatureMap], denoised: Sequence[FeatureMap]) -> FilmColors:
        """Find them from maps of some frames, raw and denoised; each kind has a scale of its own.

        Raises:
            ValueError: if there is no map, a map is not finite, or maps do not go with each other.
        """
        before, after = (_some(tokens_of(same_grid(maps))) for maps in (raw, denoised))
        axes = axes_of(before)
        taken = before - after
        return cls(
            PcaColors.scaled_to(before, axes),
            PcaColors.scaled_to(after, axes),
            PcaColors.scaled_to(taken, axes_of(taken)),
        )

    def tiles(self, raw: FeatureMap, denoised: FeatureMap) -> Pixels:
        """Color the maps of a frame: raw, denoised, and what was removed, [3, h, w, 3]."""
        before, after = same_grid([raw, denoised])
        colors = [self.raw(before), self.denoised(after), self.removed(before - after)]
        return np.stack([as_pixels(each) for each in colors])


def film_frame(image: ImageLike, tiles: Pixels, labels: Sequence[str], caption: str = "") -> Pixels:
    """Draw a frame of a film: the photo, and its maps side by side.

    Args:
        image: the frame itself.
        tiles: [n, h, w, 3] uint8.
        labels: below the photo and each of the tiles.
        caption: a line below all.

    Returns:
        [height, width, 3] uint8 RGB, of one size for all frames of a film.
    """
    photo = as_image(image)
    cell = cell_size(photo.shape[:2], tiles.shape[1:3], SIDE)
    size = (cell[0] * tiles.shape[1], cell[1] * tiles.shape[2])
    pictures = [fitted(photo, size), *(enlarged(tile, size) for tile in tiles)]
    cells = [Cell(picture, label) for picture, label in zip(pictures, labels, strict=True)]
    return draw_sheet(cells, len(cells), caption=caption)


def _some(tokens: Floats) -> Floats:  # [N, C]
    """Take tokens evenly, as many as colors are found from."""
    return tokens[:: -(-len(tokens) // MOST_TOKENS)]
