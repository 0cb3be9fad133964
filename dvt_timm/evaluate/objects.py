"""The object of a photo found without labels, by LOST (arXiv 2109.14279), and whether it is one that people marked.

The share of photos whose object is located is CorLoc. Boxes are (left, top, right, bottom) in [0, 1], image frame.

Letters: h x w patches, C channels, N boxes, H x W cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LOCATED = 0.5  # IoU above which a box is the object's


def lost(features: Tensor, *, neighbors: int = 100, bias: float = 0.0) -> Tensor:
    """Find the box of the object that stands out of its surroundings, as LOST does.

    Two patches correlate if their scalar product plus the bias is at least 0. The seed is the patch that correlates
    with the fewest; of several such the first, row by row. It is grown by those that correlate with it, among the
    patches that correlate with the fewest. The object is where the correlations with all of these sum to more than 0,
    and hangs together with the seed, by sides of patches.

    Args:
        features: [h, w, C], as the network puts them out: neither centered nor normalized.
        neighbors: how many patches, of those that correlate with the fewest, may grow the seed.
        bias: what is added to the scalar products (registers, arXiv 2309.16588); state it beside a figure.

    Returns:
        [4], the box.

    Raises:
        ValueError: on another shape, features that are not finite, or fewer than one neighbor.
        ImportError: without scipy.
    """
    _check(features, neighbors)
    flat = features.detach().flatten(0, 1).float()
    products = flat @ flat.T + bias
    order = (products >= 0).sum(dim=1).argsort(stable=True)
    seed, candidates = order[0], order[:neighbors]
    grown = candidates[products[seed, candidates] >= 0]
    mask = products[grown].sum(dim=0) > 0
    mask[seed] = True  # a bias can exclude it; the authors' code raises an error then
    labels = components(mask.reshape(features.shape[:2]).cpu().numpy())
    return box_around(labels == labels.flat[int(seed)])


def is_located(box: Tensor, truth: Tensor) -> bool:
    """Say whether a box overlaps any of the true ones with an intersection over union above .5.

    Args:
        box: [4].
        truth: [N, 4] in the same frame.

    Raises:
        ValueError: on other shapes.
    """
    if box.shape != (4,) or truth.ndim != 2 or truth.shape[1] != 4:
        raise ValueError(f"a box must be [4] and true boxes [N, 4], got {list(box.shape)} and {list(truth.shape)}")
    corners = torch.maximum(box[:2], truth[:, :2]), torch.minimum(box[2:], truth[:, 2:])
    both = _area(*corners)
    either = _area(box[:2], box[2:]) + _area(truth[:, :2], truth[:, 2:]) - both
    return bool((both > LOCATED * either).any())


def components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Number the parts of a mask that hang together by their cells' sides.

    Args:
        mask: [H, W].

    Returns:
        [H, W] whole numbers, 0 outside the mask, from 1 on inside.

    Raises:
        ImportError: without scipy.
    """
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise ImportError("boxes of what hangs together need scipy; pip install 'dvt-timm[evaluate]'") from error
    return label(mask)[0]


def box_around(mask: npt.NDArray[np.bool_]) -> Tensor:
    """Find the smallest box that holds all of a mask.

    Args:
        mask: [H, W], not empty; its cells cover the image.

    Returns:
        [4], the box, to the outer sides of the cells.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    (height, width), (top, bottom), (left, right) = mask.shape, rows[[0, -1]], columns[[0, -1]]
    return torch.tensor([left / width, top / height, (right + 1) / width, (bottom + 1) / height], dtype=torch.float32)


def _check(features: Tensor, neighbors: int) -> None:
    if features.ndim != 3 or not features.numel() or not bool(features.isfinite().all()) or neighbors < 1:
        raise ValueError(
            "LOST needs finite features [h, w, C] and neighbors >= 1, "
            f"got {list(features.shape)} and {neighbors}; give one photo's map at a time"
        )


def _area(start: Tensor, end: Tensor) -> Tensor:  # [..., 2], [..., 2] -> [...]
    return (end - start).clamp(min=0).prod(dim=-1)
