"""The hash encoding equals its slow twin."""

from __future__ import annotations

import torch
from torch import Tensor

from dvt_timm.offline.hash_grid import PRIME, HashGrid

SMALL = {"num_levels": 4, "base_resolution": 4, "max_resolution": 16, "dim": 2, "log2_table_size": 7}


def encode_slowly(grid: HashGrid, x: float, y: float) -> Tensor:
    """One place, corner by corner, as tiny-cuda-nn's kernel does."""
    parts = []
    for level in range(len(grid.side)):
        scale, side = grid.scale[level].item(), int(grid.side[level])
        size, offset = int(grid.size[level]), int(grid.offset[level])
        px, py = scale * x + 0.5, scale * y + 0.5
        total = torch.zeros(grid.table.shape[1])
        for dx in (0, 1):
            for dy in (0, 1):
                i, j = int(px) + dx, int(py) + dy
                index = i + j * side if side * side <= size else i ^ (j * PRIME % 2**32)
                weight = (px % 1 if dx else 1 - px % 1) * (py % 1 if dy else 1 - py % 1)
                total += weight * grid.table[offset + index % size]
        parts.append(total)
    return torch.cat(parts)


def test_hash_grid_equals_its_slow_twin_gradients_too() -> None:
    torch.manual_seed(0)
    grid = HashGrid(**SMALL)
    assert grid.hashed.tolist() == [False, False, False, True]
    xy = torch.rand(50, 2)
    xy[0], xy[1] = 0, 1
    fast = grid(xy)
    slow = torch.stack([encode_slowly(grid, x, y) for x, y in xy.tolist()])
    torch.testing.assert_close(fast, slow, atol=1e-8, rtol=1e-3)
    target = torch.randn_like(fast)
    gradients = [torch.autograd.grad((value * target).sum(), grid.table)[0] for value in (fast, slow)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
