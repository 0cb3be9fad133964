"""A photo in the page: its picture, what is shown of its maps, and their encoded directions.

Letters: h x w patches, C channels, N = h * w, K components, M dimensions that all photos share.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..viz.arrays import Floats, centered
from .encoding import Components, errors_within, link
from .pictures import color_steps, farthest, matched_clusters, pca_colors

ROWS = ("raw", "denoised")
LONGEST = 784  # pixels of the picture's longer side, about
THUMBNAIL = 112  # pixels
JPEG_BYTES = 56  # of the picture, a patch
SMALLEST = 20_000  # bytes that a picture may have in any case
QUALITIES = (88, 80, 70, 60, 50, 40, 30, 20)


@dataclass(frozen=True, eq=False)
class EncodedPhoto:
    """A photo whose maps are encoded.

    Attributes:
        name: as the page shows it.
        thumbnail: JPEG.
        shown: what is JSON-friendly already.
        components: of the raw and of the denoised map.
        removed: how much of the raw map's variance the head takes away.
        error: of the cosines within the photo: what 999 of 1,000 stay below, and the largest.
    """

    name: str
    thumbnail: bytes
    shown: dict[str, Any]
    components: dict[str, Components]
    removed: float
    error: tuple[float, float]

    def as_json(self, shared: dict[str, Floats]) -> dict[str, Any]:
        """Give everything that the page needs, with links into shared dimensions [C, M] of each row."""
        return {**self.shown, "maps": {row: _map_json(self.components[row], shared[row]) for row in ROWS}}


def encode_photo(
    name: str,
    image: Image.Image,
    maps: dict[str, Floats],
    patches: dict[str, Floats],
    components: dict[str, Components],
) -> EncodedPhoto:
    """Encode a photo.

    Args:
        name: as the page shows it.
        image: RGB, as the model saw it.
        maps: of each row, [h, w, C].
        patches: their directions, [N, C].
        components: the same, encoded.
    """
    raw, denoised = (maps[row] for row in ROWS)
    grid = raw.shape[:2]
    each = [errors_within(components[row], patches[row]) for row in ROWS]
    taken, cell = centered(raw - denoised), _cell(image, grid)
    removed = float((taken**2).sum() / max((centered(raw) ** 2).sum(), 1e-12))
    picture = image.resize((grid[1] * cell[1], grid[0] * cell[0]), Image.Resampling.LANCZOS)
    shown = {
        "name": name,
        "grid": grid,
        "cell": cell,
        "removed": removed,
        "salient": farthest([raw, denoised]),
        "picture": _text(_jpeg(picture, max(SMALLEST, JPEG_BYTES * grid[0] * grid[1]))),
        **_pictures(raw, denoised, taken, [components[row].values.reshape(*grid, -1) for row in ROWS]),
    }
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    error = max(pair[0] for pair in each), max(pair[1] for pair in each)
    return EncodedPhoto(name, _jpeg(small, SMALLEST), shown, components, removed, error)


def _pictures(raw: Floats, denoised: Floats, taken: Floats, values: list[Floats]) -> dict[str, Any]:
    """Color the patches: bytes as base64, one after the other, row by row."""
    norms = [np.linalg.norm(fmap, axis=2) for fmap in (raw, denoised, taken)]
    medians = [max(float(np.median(norm)), 1e-12) for norm in norms[:2]]
    steps, norm_ends = color_steps([norm / median for norm, median in zip(norms, medians, strict=False)])
    (taken_steps,), taken_ends = color_steps([norms[2] / medians[0]], lowest=0.0)
    pca, clusters = pca_colors([raw, denoised]), matched_clusters(values)
    return {
        "pca": {row: _text(colors) for row, colors in zip(ROWS, pca, strict=True)},
        "clusters": {row: _text(labels) for row, labels in zip(ROWS, clusters, strict=True)},
        "norm": {row: _text(each) for row, each in zip(ROWS, steps, strict=True)},
        "taken": {"pca": _text(pca_colors([taken])[0]), "norm": _text(taken_steps)},
        "ends": {"norm": norm_ends, "taken": taken_ends},
    }


def _map_json(components: Components, shared: Floats) -> dict[str, Any]:
    linked = link(components, shared)
    return {
        "codes": _text(components.codes),
        "steps": components.steps.tolist(),
        "link": _text(linked.codes),
        "linkSteps": linked.steps.tolist(),
    }


def _cell(image: Image.Image, grid: tuple[int, ...]) -> tuple[int, int]:
    """Choose (height, width) in pixels of a patch in the picture."""
    scale = min(1.0, LONGEST / max(image.size))
    height, width = max(1, round(image.height * scale / grid[0])), max(1, round(image.width * scale / grid[1]))
    return height, width


def _jpeg(image: Image.Image, most: int) -> bytes:
    """Save an image as a JPEG of at most so many bytes, or of the lowest quality."""
    data = b""
    for quality in QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        data = file.getvalue()
        if len(data) <= most:
            break
    return data


def _text(data: bytes | NDArray[np.uint8] | NDArray[np.int8]) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else data.tobytes()).decode()
