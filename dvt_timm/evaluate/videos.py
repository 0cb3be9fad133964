"""Objects of a video followed by what is alike: labels of the first frame go from patch to patch (DAVIS).

The protocol is that of DINO (arXiv 2104.14294), the scores J and F are those of DAVIS (arXiv 1704.00675).

Letters: T frames of the context, h x w patches, C channels, K labels, H x W pixels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

TOLERANCE = 0.008  # of the image's diagonal, by which a contour may be off


def propagate(
    maps: Iterable[Tensor],
    first: Tensor,
    *,
    neighbors: int = 5,
    temperature: float = 0.1,
    context: int = 7,
    radius: int = 12,
) -> Iterator[Tensor]:
    """Carry the labels of a video's first frame on from frame to frame.

    Each patch takes the mean of the labels of the patches that are most alike, weighted with
    exp(cosine / temperature). It looks for them in the first frame and in the last ones, around its own place. Patches
    that tie with the last of them take part too. Maps are read one at a time, and only the context is kept.

    Args:
        maps: [h, w, C] of all frames in order, the first one included.
        first: [h, w, K], the first frame's labels, as shares; see `soft_labels`.
        neighbors: how many patches of the context, taken together, a patch listens to.
        temperature: of the weights.
        context: how many of the last frames a patch looks at, besides the first frame.
        radius: how many patches away it looks, in each direction.

    Yields:
        [h, w, K] of the second frame, of the third, and so on, float32.

    Raises:
        ValueError: on a map of another shape, or settings out of range.
    """
    _check_settings(neighbors, temperature, context, radius)
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=context)
    start: tuple[Tensor, Tensor] | None = None
    for fmap in maps:
        _check_map(fmap, first, start)
        frame = normalize(fmap.detach().float(), dim=2)
        if start is None:
            start = frame, first.detach().to(frame)
            continue
        keys, labels = (torch.stack(parts, dim=1) for parts in zip(start, *recent, strict=True))
        found = _listen(frame, keys, labels, neighbors, temperature, radius)
        recent.append((frame, found))
        yield found


def soft_labels(mask: npt.NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """Compute the share of each patch's pixels that have each id; a pixel that patches divide counts by its parts.

    Args:
        mask: [H, W], ids of objects, 0 for the background.
        grid: (h, w) patches that cover the image.

    Returns:
        [h, w, K], shares that sum to 1, of the ids 0..K - 1, K - 1 being the largest that occurs.

    Raises:
        ValueError: if the mask is no uint8 array of two dimensions, or there is no patch.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or 0 in mask.shape or min(grid) < 1:
        raise ValueError(
            f"a mask must be uint8 [H, W], a grid at least (1, 1); got {mask.dtype} {list(mask.shape)} and {grid}"
        )
    # DINO takes the label of the pixel in the patch's middle.
    ids = one_hot(torch.from_numpy(mask.astype(np.int64))).float()
    rows, columns = (_parts(*sides) for sides in zip(grid, mask.shape, strict=True))
    return torch.einsum("yH,HWk,xW->yxk", rows, ids, columns)


def masks_of(soft: Tensor, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Find the label of each pixel: labels of patches are resized to the image, bilinear, and the largest one wins.

    Args:
        soft: [h, w, K], with K <= 256.
        size: (H, W) of the image.

    Returns:
        [H, W], ids 0..K - 1.
    """
    # DINO stretches each label's map to 0..1 before it compares them, which favors labels that have faded.
    pixels = interpolate(soft.movedim(2, 0)[None], size, mode="bilinear", align_corners=False)
    return pixels[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


def region_similarity(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Compute DAVIS' J of an object, the intersection over union of its two masks; 1 if both are empty.

    Args:
        predicted: [H, W].
        truth: [H, W].

    Raises:
        ValueError: if they are no boolean masks of one size.
    """
    _check_masks(predicted, truth)
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def boundary_accuracy(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Compute DAVIS' F of an object: how well the contour of one mask runs along that of the other.

    F is the harmonic mean of the shares of each contour that the other comes near to, within .008 of the diagonal,
    rounded up to whole pixels. It is 1 if neither mask has a contour, and 0 if one has none.

    Args:
        predicted: [H, W].
        truth: [H, W].

    Raises:
        ValueError: if they are no boolean masks of one size.
        ImportError: without scipy.
    """
    _check_masks(predicted, truth)
    ours, theirs = _contour(predicted), _contour(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    radius = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    precision = float(_near(theirs, radius)[ours].mean())
    recall = float(_near(ours, radius)[theirs].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _check_settings(neighbors: int, temperature: float, context: int, radius: int) -> None:
    if neighbors < 1 or not temperature > 0 or context < 0 or radius < 0:
        raise ValueError(
            "propagation needs neighbors >= 1, temperature > 0, context >= 0 and radius >= 0; "
            f"got {neighbors}, {temperature}, {context} and {radius}"
        )


def _check_map(fmap: Tensor, first: Tensor, start: tuple[Tensor, Tensor] | None) -> None:
    if fmap.ndim != 3 or first.ndim != 3 or fmap.shape[:2] != first.shape[:2]:
        raise ValueError(
            f"a map must be [h, w, C] and the labels [h, w, K] of the same patches, got {list(fmap.shape)} and "
            f"{list(first.shape)}; give all frames one size, and soft_labels their grid"
        )
    if start is not None and fmap.shape != start[0].shape:
        raise ValueError(f"all maps of a video need the same channels, got {fmap.shape[2]} after {start[0].shape[2]}")


def _listen(
    frame: Tensor, keys: Tensor, labels: Tensor, neighbors: int, temperature: float, radius: int
) -> Tensor:  # [h, w, C], [h, T, w, C], [h, T, w, K] -> [h, w, K]
    """Mix the labels of the patches that are most alike, a row of patches at a time."""
    column = torch.arange(frame.shape[1], device=frame.device)
    far = (column[:, None] - column).abs() > radius  # [w, w]
    rows = []
    for index, row in enumerate(frame):
        band = slice(max(index - radius, 0), index + radius + 1)
        cosine = (row @ keys[band].flatten(0, 2).T).unflatten(1, (-1, frame.shape[1]))  # [w, rows of patches, w]
        weights = _weights(cosine.masked_fill(far[:, None], -torch.inf).flatten(1), neighbors, temperature)
        rows.append(weights @ labels[band].flatten(0, 2))
    return torch.stack(rows)


def _weights(cosine: Tensor, neighbors: int, temperature: float) -> Tensor:  # [w, N] -> [w, N]
    least = cosine.topk(min(neighbors, cosine.shape[1]), dim=1).values[:, -1:]
    return (cosine.masked_fill(cosine < least, -torch.inf) / temperature).softmax(dim=1)


def _parts(cells: int, pixels: int) -> Tensor:
    """Compute what share of each of the cells in a row each of the pixels is: [cells, pixels], each row sums to 1."""
    cell, pixel = torch.arange(cells, dtype=torch.float64)[:, None] / cells, torch.arange(pixels) / float(pixels)
    begin, end = torch.maximum(cell, pixel), torch.minimum(cell + 1 / cells, pixel + 1 / pixels)
    return ((end - begin).clamp(min=0) * cells).float()


def _check_masks(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> None:
    if predicted.shape != truth.shape or truth.ndim != 2 or not predicted.dtype == truth.dtype == np.bool_:
        raise ValueError(
            f"masks must be boolean [H, W] of one size, got {predicted.dtype} {list(predicted.shape)} and "
            f"{truth.dtype} {list(truth.shape)}; compare ids with the object's, as in ids == 1"
        )


def _contour(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:  # [H, W] -> [H, W]
    """Mark pixels that differ from their neighbor to the right, below, or both; past the edge all is the same."""
    beyond = np.pad(mask, (0, 1), mode="edge")
    here, right, below, both = beyond[:-1, :-1], beyond[:-1, 1:], beyond[1:, :-1], beyond[1:, 1:]
    return (here != right) | (here != below) | (here != both)


def _near(contour: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:  # [H, W] -> [H, W]
    """Mark what is within a disk's radius of a contour, which must not be empty; a dilation takes 20 times as long."""
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        raise ImportError("boundary accuracy needs scipy; pip install 'dvt-timm[evaluate]'") from error
    return distance_transform_edt(~contour) <= radius
