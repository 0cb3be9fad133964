"""Fields on a grid of nodes, bilinear in between: reading them at places, and the transpose of that.

Letters: N places, R_y x R_x nodes, K = R_y * R_x, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .coords import bilinear, places_in_image


@dataclass(frozen=True)
class Basis:
    """The matrix B [N, K] whose row i holds the weights of the nodes around place i: at most four."""

    index: Tensor  # [N, 4] node
    weight: Tensor  # [N, 4]
    nodes: tuple[int, int]  # (R_y, R_x)

    @classmethod
    def at(cls, xy: Tensor, nodes: tuple[int, int], dtype: torch.dtype) -> Basis:
        """Build B for places [N, 2] in [0, 1]."""
        return cls(*bilinear(xy.to(dtype), nodes), nodes)

    @property
    def num_nodes(self) -> int:
        return self.nodes[0] * self.nodes[1]

    def to(self, dtype: torch.dtype) -> Basis:
        """Convert the weights to another dtype."""
        return replace(self, weight=self.weight.to(dtype))

    def dense(self) -> Tensor:
        """Write B out: [N, K]."""
        return self.weight.new_zeros(len(self.index), self.num_nodes).scatter_add_(1, self.index, self.weight)

    def squared(self) -> Basis:
        """Square the weights."""
        return replace(self, weight=self.weight.square())

    def read(self, field: Tensor) -> Tensor:
        """Compute B F: [K, C] -> [N, C]."""
        return embedding_bag(self.index, field, per_sample_weights=self.weight, mode="sum")

    def scatter(self, values: Tensor) -> Tensor:
        """Compute B^T y: [N, C] -> [K, C]."""
        place, weight, starts = self._by_node
        return embedding_bag(place, values, starts, per_sample_weights=weight, mode="sum")

    @cached_property
    def _by_node(self) -> tuple[Tensor, Tensor, Tensor]:
        """Order places and weights by their nodes, and say where each node's begin."""
        node, order = self.index.flatten().sort(stable=True)
        starts = torch.searchsorted(node, torch.arange(self.num_nodes, device=node.device))
        return order // 4, self.weight.flatten()[order], starts


@dataclass(frozen=True)
class GridField:
    """A field over the image: calling it reads it at places [..., 2] in [0, 1], image frame, as [..., C].

    Outside the image it has the value of its border. Raises ValueError on other shapes, and on NaN.
    """

    values: Tensor  # [R_y, R_x, C]

    def __call__(self, xy: Tensor) -> Tensor:
        nodes = (self.values.shape[0], self.values.shape[1])
        basis = Basis.at(places_in_image(xy).to(self.values.device), nodes, self.values.dtype)
        return basis.read(self.values.flatten(0, 1)).reshape(*xy.shape[:-1], -1)


def roughness_gradient(field: Tensor) -> Tensor:
    """Compute L F, where F^T L F is the sum of squared differences of neighboring nodes: [R_y, R_x, C] -> the same."""
    result = torch.zeros_like(field)
    for dim in (0, 1):
        difference = field.diff(dim=dim)
        length = difference.shape[dim]
        result.narrow(dim, 1, length).add_(difference)
        result.narrow(dim, 0, length).sub_(difference)
    return result
