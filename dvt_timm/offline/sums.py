"""What the closed form needs of the features: sums over views, which are added batch by batch and not kept.

Letters: V views, P = h * w patches, K nodes of F, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .grid_field import Basis
from .solution import Views


class Sums:
    """What the right-hand sides need of the features, less a prior artifact [h, w, C]."""

    def __init__(self, nodes: tuple[int, int], first: Views, prior: Tensor | None) -> None:
        self.nodes, self.grid, self.prior = nodes, first.features.shape[1:], _checked(prior, first)
        self.dtype = torch.promote_types(first.features.dtype, torch.float32)
        h, w, C = self.grid
        reference = first.features[0].to(self.dtype).mean(dim=(0, 1))
        self.reference = reference.nan_to_num(0, 0, 0)  # [C], taken off all features: less cancellation
        options: dict[str, Any] = {"dtype": self.dtype, "device": first.features.device}
        self.field = torch.zeros(nodes[0] * nodes[1], C, **options)  # B^T y
        self.patches = torch.zeros(h * w, C, **options)  # added up over views
        self.scratch = torch.empty(0, **options)
        self.views: list[Tensor] = []  # [V, C], means over patches
        self.places: list[Tensor] = []  # [V, P, 2]
        self.power = 0.0  # squares of y, added up

    def add(self, batch: Views) -> None:
        """Add a batch; raise ValueError if a view has another grid or is not finite."""
        if batch.features.shape[1:] != self.grid:
            raise ValueError(
                f"views must share one grid [h, w, C], got {list(self.grid)} and {list(batch.features.shape[1:])}"
            )
        features = batch.features if self.prior is None else batch.features - self.prior
        y = self._centered(features.flatten(1, 2))
        means = y.mean(dim=1)
        bad = (~means.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad:
            done = sum(map(len, self.places))
            raise ValueError(
                f"features of views {[done + i for i in bad]} hold NaN or Inf; compute them in float32, or check the "
                "model's weights"
            )
        places = batch.xy.flatten(1, 2)
        self.field += Basis.at(places.flatten(0, 1), self.nodes, self.dtype).scatter(y.flatten(0, 1))
        self.patches += y.sum(dim=0)
        self.views.append(means)
        self.places.append(places)
        self.power += float(torch.linalg.vector_norm(y, dim=2).double().square().sum())
        self.last = batch.features[-1].to(self.dtype, copy=True)  # [h, w, C]; a part would keep the whole batch

    def _centered(self, features: Tensor) -> Tensor:  # [b, P, C]
        """Take the reference off, in memory that the next batch uses again: to get fresh memory takes longer."""
        if self.scratch.shape != features.shape:
            self.scratch = self.field.new_empty(features.shape)
        return torch.sub(features, self.reference, out=self.scratch)

    @property
    def xy(self) -> Tensor:
        """The places of all patches: [V, P, 2]."""
        return torch.cat(self.places)


def first_of(views: Iterable[Views]) -> tuple[Views, Iterable[Views]]:
    """Look at the first batch, and give all batches with it."""
    batches = iter(views)
    first = next(batches, None)
    if first is None:
        raise ValueError("no views given; pass the sampled ones and, last, the whole image")
    return first, chain([first], batches)


def add_up(views: Iterable[Views], nodes: tuple[int, int], prior: Tensor | None) -> Sums:
    first, batches = first_of(views)
    sums = Sums(nodes, first, prior)
    for batch in batches:
        sums.add(batch)
    return sums


def _checked(prior: Tensor | None, first: Views) -> Tensor | None:  # [h, w, C]
    """Give a prior artifact of mean 0, of the features' kind; raise ValueError if it does not fit, or is not finite."""
    if prior is None:
        return None
    if prior.shape != first.features.shape[1:]:
        raise ValueError(
            f"prior_artifact must be [h, w, C] = {list(first.features.shape[1:])} as the views, got "
            f"{list(prior.shape)}; find it with views of the same size"
        )
    if not bool(prior.isfinite().all()):
        raise ValueError("prior_artifact holds NaN or Inf; find it again")
    prior = prior.to(device=first.features.device, dtype=torch.promote_types(first.features.dtype, torch.float32))
    return prior - prior.mean(dim=(0, 1))
