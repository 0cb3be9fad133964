"""Where patches lie: the only place where coordinates are defined.

- Image frame: (x, y) from (0, 0), the upper left corner of the whole image, to (1, 1), its lower right corner.
- A view shows a window of the image frame, mirrored left to right if it is flipped. A window may leave the image;
  what lies there is the image reflected at its border, so that every patch has its place in [0, 1]^2.
- A view has h x w patches. Patch k of a side of n pixels covers the pixels [k * stride, k * stride + patch) and has its
  center at (k * stride + patch / 2) / n of that side.
- Fields over the image live on R_y x R_x nodes, the outermost ones on the image's border, bilinear in between.

Letters: V views, h x w patches, N places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """The part of the image that each view shows."""

    boxes: Tensor  # [V, 4] left, top, right, bottom in the image frame, float64
    flipped: Tensor  # [V] bool, mirrored left to right

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class PatchGrid:
    """The patches of a view; all pairs are (height, width)."""

    image_size: tuple[int, int]  # the size of a view in pixels
    patch_size: tuple[int, int]  # pixels of a patch
    stride: tuple[int, int]  # pixels from one patch to the next

    @property
    def shape(self) -> tuple[int, int]:
        """How many patches there are: (h, w)."""
        h, w = (
            (side - patch) // stride + 1
            for side, patch, stride in zip(self.image_size, self.patch_size, self.stride, strict=True)
        )
        return h, w

    def centers(self) -> tuple[Tensor, Tensor]:
        """Give the centers of the rows [h] and of the columns [w], as shares of the view's height and width."""
        y, x = (
            (torch.arange(count, dtype=torch.float64) * stride + patch / 2) / side
            for count, side, patch, stride in zip(
                self.shape, self.image_size, self.patch_size, self.stride, strict=True
            )
        )
        return y, x

    def edge_to_edge(self) -> tuple[Tensor, Tensor]:
        """Give the released code's places of rows [h] and columns [w]: the outermost ones lie on the view's border."""
        y, x = (torch.linspace(0, 1, count, dtype=torch.float64) for count in self.shape)
        return y, x


def patch_xy(windows: Windows, rows: Tensor, columns: Tensor) -> Tensor:
    """Say where the patches of every view lie in the image.

    Args:
        windows: V of them.
        rows: [h], share of a view's height.
        columns: [w], share of a view's width.

    Returns:
        [V, h, w, 2] (x, y) in [0, 1], image frame, float32.
    """
    left, top, right, bottom = windows.boxes[:, :, None].unbind(1)  # [V, 1]
    columns = torch.where(windows.flipped[:, None], 1 - columns, columns)  # [V, w]
    x = reflect(left + columns * (right - left))
    y = reflect(top + rows * (bottom - top))
    shape = (len(windows), y.shape[1], x.shape[1])
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1).float()


def image_grid(rows: int, columns: int) -> Tensor:
    """Give the centers of rows x columns equal cells of the image: [rows, columns, 2] (x, y), for `semantics_at`."""
    whole = Windows(torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64), torch.tensor([False]))
    return patch_xy(whole, *PatchGrid((rows, columns), (1, 1), (1, 1)).centers())[0]


def places_in_image(xy: Tensor) -> Tensor:
    """Bring places [..., 2] where a field is read to [N, 2], those outside the image to its border.

    Raises:
        ValueError: on another shape, and on NaN.
    """
    if xy.ndim == 0 or xy.shape[-1] != 2:
        raise ValueError(f"places must be [..., 2], (x, y) in [0, 1], got {list(xy.shape)}")
    if bool(xy.isnan().any()):
        raise ValueError(f"places must be (x, y) in [0, 1], got NaN among {list(xy.shape)}")
    return xy.clamp(0, 1).reshape(-1, 2)


def reflect(position: Tensor) -> Tensor:
    """Mirror positions on a line at 0 and at 1 until they lie in [0, 1]."""
    return 1 - (1 - position.remainder(2)).abs()


def bilinear(xy: Tensor, nodes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find the four nodes around each place, and their weights.

    Args:
        xy: [N, 2] in [0, 1], image frame.
        nodes: (R_y, R_x), at least 2 each.

    Returns:
        Index of the nodes in row-major order [N, 4], int64; weights [N, 4], which sum to 1, of the dtype of xy.
    """
    last = torch.tensor([nodes[1] - 1, nodes[0] - 1], device=xy.device)
    position = xy * last
    cell = torch.minimum(position.long(), last - 1)
    (ix, iy), (fx, fy) = cell.unbind(1), (position - cell).unbind(1)
    first = iy * nodes[1] + ix
    index = torch.stack([first, first + 1, first + nodes[1], first + nodes[1] + 1], dim=1)
    weight = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], dim=1)
    return index, weight
