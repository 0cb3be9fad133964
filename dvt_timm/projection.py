"""The projection that takes the readable position out of a feature map: a denoiser that no one has to train.

Ridge regression finds the directions of a feature that tell a patch's x, y and distances to the middle, the projection
takes them away, and again, until so many dimensions are gone. The idea is in use elsewhere under other names (RASA,
INSID3); it is the baseline that a trained head has to beat.

Letters: N patches of all maps, C channels, r dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .head import Head, check_map

torch.fx.wrap("check_map")

RANK = 32
RIDGE = 1e-4  # of the mean variance of a channel


def places(h: int, w: int) -> Tensor:  # [h * w, 4]
    """Give x, y, |x| and |y| of every patch from the middle of the image, whose sides are 1; float64."""
    y, x = ((torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5 for size in (h, w))
    y, x = (grid.flatten() for grid in torch.meshgrid(y, x, indexing="ij"))
    return torch.stack([x, y, x.abs(), y.abs()], dim=1)


class Moments:
    """Means and covariances of features and of their places, added up map by map in float64.

    Raises:
        ValueError: from its properties, if nothing was added.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Tensor] = []  # features [C], their squares [C, C], they by place [C, 4], places [4]

    def add(self, fmap: Tensor) -> None:
        """Add a map [h, w, C]; raise ValueError if it has another shape, or a value is not finite."""
        width = len(self._sums[0]) if self._sums else "C"
        if fmap.ndim != 3 or (self._sums and fmap.shape[2] != width):
            raise ValueError(f"features must be maps [h, w, {width}], got {list(fmap.shape)}")
        x = fmap.detach().cpu().double().flatten(0, 1)
        if not bool(x.isfinite().all()):
            raise ValueError("a map holds NaN or Inf; check the model's weights")
        place = places(fmap.shape[0], fmap.shape[1])
        self._join([x.sum(dim=0), x.T @ x, x.T @ place, place.sum(dim=0)], len(x))

    @classmethod
    def joined(cls, parts: Iterable[Moments]) -> Moments:
        """Join what was added to each of the parts."""
        whole = cls()
        for part in parts:
            if part._sums:
                whole._join(part._sums, part._count)
        return whole

    def _join(self, sums: list[Tensor], count: int) -> None:
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._count += count

    @property
    def mean(self) -> Tensor:  # [C]
        """The mean feature."""
        return self._means()[0]

    @property
    def covariance(self) -> Tensor:  # [C, C]
        """The covariance of the channels."""
        mean, squares, _, _ = self._means()
        return squares - mean.outer(mean)

    @property
    def with_places(self) -> Tensor:  # [C, 4]
        """The covariance of the channels with `places`."""
        mean, _, products, place = self._means()
        return products - mean.outer(place)

    @property
    def place(self) -> Tensor:  # [4]
        """The mean of `places`."""
        return self._means()[3]

    def _means(self) -> list[Tensor]:
        if not self._sums:
            raise ValueError("at least one map [h, w, C] is needed to find where places are read")
        return [part / self._count for part in self._sums]


class PositionProjection(Head):
    """Takes away the dimensions of a feature from which a patch's place is read linearly.

    `y = x - U U^T (x - m)`, the mean m staying where it is. `fit` finds U and m; `denoise`, `denoiser=`, `save_head`
    and `push_to_hub` take it like a trained head. It removes what all photos share and a linear probe sees, no more: a
    neighbor search may still find positions, and an artifact along other directions stays.

    Args:
        dim: channels C.
        rank: dimensions r that are taken away, 1..C - 1; nothing is before `fit` or weights say which.

    Raises:
        ValueError: if they are out of range.
    """

    __jit_unused_properties__ = ("config",)

    def __init__(self, dim: int, rank: int = RANK) -> None:
        super().__init__(dim)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank < dim:
            raise ValueError(f"rank must be a whole number of dimensions, 1..{dim - 1} of {dim}, got {rank!r}")
        self.rank = rank
        self.mean = nn.Parameter(torch.zeros(dim))
        self.basis = nn.Parameter(torch.zeros(dim, rank))

    @classmethod
    @torch.no_grad()
    def fit(cls, features: Iterable[Tensor], rank: int = RANK) -> PositionProjection:
        """Find the directions that tell the place of a patch.

        Args:
            features: maps [h, w, C] of photos, a hundred or more, each read once; grids may differ.
            rank: dimensions to take away; 16 to 64 are usual.

        Returns:
            The projection in evaluation mode, float32 on the CPU.

        Raises:
            ValueError: if there is no map, widths differ, a value is not finite, or the rank is out of range.
        """
        moments = Moments()
        for fmap in features:
            moments.add(fmap)
        return cls.of(moments, rank)

    @classmethod
    @torch.no_grad()
    def of(cls, moments: Moments, rank: int = RANK) -> PositionProjection:
        """Do what `fit` does, with the moments of maps."""
        mean = moments.mean
        projection = cls(len(mean), rank)
        projection.mean.copy_(mean)
        projection.basis.copy_(_directions(moments.covariance, moments.with_places, rank))
        return projection.eval()

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds it besides `dim`, JSON-friendly: `{"rank": r}`."""
        return {"rank": self.rank}

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C] -> [B, H, W, C]
        """Take the position out of a feature map; raise ValueError if it is not [B, H, W, dim]."""
        check_map(x, self.dim)
        return x - (x - self.mean) @ self.basis @ self.basis.t()

    def __repr__(self) -> str:
        place = "" if self.source is None else f", source={self.source.place!r}"
        return f"PositionProjection(dim={self.dim}, rank={self.rank}{place})"


def _directions(covariance: Tensor, sides: Tensor, rank: int) -> Tensor:
    """Find r orthonormal directions [C, r]: those that a ridge regression reads places from, again and again."""
    C = len(covariance)
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(C, dtype=torch.float64)
    basis = torch.zeros(C, 0, dtype=torch.float64)
    while basis.shape[1] < rank:
        rest = torch.eye(C, dtype=torch.float64) - basis @ basis.T
        weights = torch.linalg.solve(rest @ covariance @ rest + ridge, rest @ sides)
        new = torch.linalg.svd(rest @ weights, full_matrices=False).U[:, : rank - basis.shape[1]]
        basis = torch.linalg.qr(torch.cat([basis, new], dim=1)).Q
    return basis
