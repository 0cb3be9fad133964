"""Key points of one photo found in another by the patches that are most alike.

Letters: h x w patches, C channels, N key points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def match_points(source: Tensor, target: Tensor, xy: Tensor) -> Tensor:
    """Find key points of a photo in another: each goes to the patch whose feature is nearest by its cosine.

    Args:
        source: [h, w, C], map of the photo that has the points.
        target: [h, w, C], map of the other one; its grid may differ.
        xy: [N, 2] in [0, 1], the points (x, y) in the source.

    Returns:
        [N, 2] in [0, 1], centers of patches of the target.

    Raises:
        ValueError: on other shapes, or points outside [0, 1].
    """
    if source.ndim != 3 or target.ndim != 3 or source.shape[2] != target.shape[2]:
        raise ValueError(
            f"maps must be [h, w, C] of the same channels, got {list(source.shape)} and {list(target.shape)}"
        )
    if xy.ndim != 2 or xy.shape[1] != 2 or not bool(((xy >= 0) & (xy <= 1)).all()):
        raise ValueError(f"points must be [N, 2] in [0, 1], got {list(xy.shape)}; divide pixels by the photo's sides")
    (rows, columns), (h, w) = source.shape[:2], target.shape[:2]
    size = xy.new_tensor([columns, rows])
    column, row = (xy * size).long().clamp(max=(size - 1).long()).unbind(dim=1)
    wanted = normalize(source[row, column].float(), dim=1)
    nearest = (wanted @ normalize(target.flatten(0, 1).float(), dim=1).T).argmax(dim=1)
    return torch.stack([(nearest % w + 0.5) / w, (nearest // w + 0.5) / h], dim=1)
