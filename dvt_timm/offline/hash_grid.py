"""A 2-D multiresolution hash encoding (Mueller et al., Instant Neural Graphics Primitives, 2022) in pure PyTorch.

Layout and arithmetic are those of tiny-cuda-nn, which the released stage 1 uses. Level l has the scale
`base * growth^l - 1`, `ceil(scale) + 1` cells a side, and reads a place x at `scale * x + 1/2`, bilinearly. A level
that fits in its table is stored row by row, a larger one by the hash `x ^ (y * 2654435761)`; both modulo the table's
size.

Letters: N places, L levels, E entries of all levels, D features of an entry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

PRIME = 2654435761
INITIAL = 1e-4  # entries start uniform in +- this


class HashGrid(nn.Module):
    """Places -> features of all levels; an embedding bag of four entries per place and level.

    Args:
        num_levels: L.
        base_resolution: cells a side of the coarsest level.
        max_resolution: cells a side of the finest level; those between grow geometrically.
        dim: D, features per entry.
        log2_table_size: a level has at most 2^log2_table_size entries.
    """

    scale: Tensor  # [L]
    side: Tensor  # [L] cells a side
    size: Tensor  # [L] entries
    offset: Tensor  # [L] first entry
    hashed: Tensor  # [L] bool

    def __init__(
        self,
        num_levels: int = 16,
        base_resolution: int = 16,
        max_resolution: int = 1024,
        dim: int = 8,
        log2_table_size: int = 20,
    ) -> None:
        super().__init__()
        growth = math.log(max_resolution / base_resolution) / max(num_levels - 1, 1)
        scales = [base_resolution * math.exp(level * growth) - 1 for level in range(num_levels)]
        sides = [math.ceil(round(scale, 6)) + 1 for scale in scales]
        sizes = [min(-(-(side**2) // 8) * 8, 1 << log2_table_size) for side in sides]
        offsets = [sum(sizes[:level]) for level in range(num_levels)]
        hashed = [side**2 > size for side, size in zip(sides, sizes, strict=True)]
        self.register_buffer("scale", torch.tensor(scales), persistent=False)
        for name, values in (("side", sides), ("size", sizes), ("offset", offsets), ("hashed", hashed)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.out_dim = num_levels * dim
        self.table = nn.Parameter(torch.empty(sum(sizes), dim).uniform_(-INITIAL, INITIAL))

    def forward(self, xy: Tensor) -> Tensor:
        """Encode places: [N, 2] in [0, 1] -> [N, L * D]."""
        position = xy[:, None, :] * self.scale[:, None] + 0.5  # [N, L, 2]
        cell = position.floor()
        index, weight = self._corners(cell.long(), position - cell)
        features = embedding_bag(index.flatten(0, 1), self.table, per_sample_weights=weight.flatten(0, 1), mode="sum")
        return features.reshape(len(xy), self.out_dim)

    def _corners(self, cell: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:  # [N, L, 2] each -> [N, L, 4] each
        corner = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=cell.device)  # (x, y)
        x, y = (cell[:, :, None] + corner).unbind(-1)  # [N, L, 4]
        side, size = self.side[:, None], self.size[:, None]
        index = torch.where(self.hashed[:, None], x ^ (y * PRIME & 0xFFFFFFFF), x + y * side) % size
        share = torch.where(corner.bool(), within[:, :, None], 1 - within[:, :, None])
        return index + self.offset[:, None], share.prod(dim=-1)
