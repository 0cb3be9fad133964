"""Sheets of tiles with labels: the photos of a folder, a training's steps. Features in, a picture out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from .arrays import FeatureMap, ImageLike, Pixels, as_image, as_maps, as_pixels, centered, same_channels, tokens_of
from .canvas import GAP, GRAY, INK, MARGIN, NOTE, enlarged, fitted, new_canvas, paste, shortened, with_caption, write
from .maps import PcaColors, axes_of

SIDE = 180  # pixels: long side of a tile
LABEL = 26  # pixels: height of a label
WIDTH = 1600  # pixels that a sheet fills with photos side by side
STRIP = 8  # tiles side by side in a strip


@dataclass(frozen=True)
class Cell:
    """A picture, and what stands below it."""

    picture: Image.Image
    label: str = ""


def contact_sheet(
    images: Sequence[ImageLike],
    features: Mapping[str, Sequence[FeatureMap]],
    *,
    names: Sequence[str] | None = None,
    overlay: bool = False,
    smooth: bool = False,
    caption: str = "",
) -> Pixels:
    """Draw many photos, each beside the PCA of its maps: a folder at a glance.

    Axes are those of the first kind of maps of all photos together, scales those of a kind, whose mean is taken off.
    So a feature has one color in all photos, and what recurs at one place of all of them belongs to the place.

    Args:
        images: what the maps were computed from.
        features: kind -> the map of every image, the raw kind first.
        names: of the images, to stand below them.
        overlay: whether maps lie over the photo, in gray.
        smooth: whether maps are interpolated, which hides artifacts from patch to patch.
        caption: a line below all.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: if there is no image or no kind of maps, a kind has more or fewer maps than there are images, or
            names are more or fewer; if a map is not finite or differs in channels; if an image has another shape or
            type.
    """
    photos = [as_image(image) for image in images]
    kinds = {kind: as_maps(maps) for kind, maps in features.items()}
    labels = [""] * len(photos) if names is None else list(names)
    counts = {len(maps) for maps in kinds.values()}
    if not photos or counts != {len(photos)} or len(labels) != len(photos):
        raise ValueError(
            f"a sheet takes as many maps of every kind, and names, as images, got {len(photos)} images, "
            f"{', '.join(f'{len(maps)} {kind}' for kind, maps in kinds.items()) or 'no maps'}, {len(labels)} names"
        )
    same_channels([maps[0] for maps in kinds.values()])  # all of one model
    axes = axes_of(tokens_of(next(iter(kinds.values()))))
    colors = {kind: PcaColors.scaled_to(tokens_of(maps), axes) for kind, maps in kinds.items()}
    cells = []
    for i, (photo, label) in enumerate(zip(photos, labels, strict=True)):
        size = _size_of(photo)
        cells.append(Cell(fitted(photo, size), label))
        for kind, maps in kinds.items():
            under = photo if overlay else None
            cells.append(Cell(enlarged(as_pixels(colors[kind](maps[i])), size, smooth=smooth, photo=under), kind))
    group = 1 + len(kinds)
    return draw_sheet(cells, max(1, WIDTH // (group * (SIDE + GAP))) * group, group, caption)


def progress_tile(raw: FeatureMap, target: FeatureMap, trained: FeatureMap) -> Pixels:
    """Color a map as training goes on, always in the axes of the raw map and the scale of the target; means are off.

    Args:
        raw: [h, w, C], as are the others; what training starts from.
        target: what it is to become.
        trained: what it is.

    Returns:
        [h, w, 3] uint8, equal to that of the target once training is done.

    Raises:
        ValueError: if a map is not finite, or they differ in channels.
    """
    first, last, now = (centered(array) for array in as_maps([raw, target, trained]))
    return as_pixels(PcaColors.scaled_to(tokens_of([last]), axes_of(tokens_of([first])))(now))


def progress_strip(
    image: ImageLike,
    raw: FeatureMap,
    target: FeatureMap,
    tiles: Mapping[str, Pixels],
    *,
    caption: str = "",
) -> Pixels:
    """Draw how training goes on: the photo, the raw map, a tile per step, and the target.

    Args:
        image: what the maps were computed from.
        raw: [h, w, C]; its colors have the scale of the target.
        target: [h, w, C].
        tiles: label -> [h, w, 3] of `progress_tile`, in the order of the steps.
        caption: a line below all.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ValueError: if a map is not finite, or the image has another shape or type.
    """
    photo = as_image(image)
    size = _size_of(photo)
    shown = {"raw": progress_tile(raw, target, raw), **tiles, "target": progress_tile(raw, target, target)}
    cells = [Cell(fitted(photo, size), "input"), *(Cell(enlarged(tile, size), label) for label, tile in shown.items())]
    return draw_sheet(cells, STRIP, 1, caption)


def draw_sheet(cells: Sequence[Cell], per_line: int, per_group: int = 1, caption: str = "") -> Pixels:
    """Lay pictures out in lines, groups a little apart.

    Args:
        cells: at least one.
        per_line: how many side by side, a multiple of `per_group`.
        per_group: how many belong together.
        caption: a line below all.
    """
    width = max(cell.picture.width for cell in cells)
    lines = [cells[i : i + per_line] for i in range(0, len(cells), per_line)]
    heights = [max(cell.picture.height for cell in line) + LABEL + GAP // 2 for line in lines]
    apart = GAP if per_group > 1 else 0
    lefts = [MARGIN + place * (width + GAP // 2) + place // per_group * apart for place in range(len(lines[0]))]
    canvas = new_canvas((lefts[-1] + width + MARGIN, 2 * MARGIN + sum(heights) - GAP // 2))
    y = MARGIN
    for line, height in zip(lines, heights, strict=True):
        for place, (x, cell) in enumerate(zip(lefts, line, strict=False)):
            paste(canvas, cell.picture, (x + width // 2, y + cell.picture.height // 2))
            color = INK if place % per_group == 0 and per_group > 1 else GRAY
            label = shortened(cell.label, width)
            write(canvas, label, (x + width // 2, y + cell.picture.height + LABEL // 2), NOTE, color)
        y += height
    return with_caption(canvas, caption)


def _size_of(photo: Pixels) -> tuple[int, int]:
    """Give (height, width) of a tile with the photo's aspect ratio."""
    scale = SIDE / max(photo.shape[:2])
    return max(1, round(photo.shape[0] * scale)), max(1, round(photo.shape[1] * scale))
