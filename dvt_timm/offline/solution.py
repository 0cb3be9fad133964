"""What stage 1 takes in and gives back.

The noise model of the paper (arXiv 2401.02957, equation 5; here with a constant per view):
`y(v, p) = F(x) + G(p) + h(y) + o(v) + noise`, where patch p of view v lies at the place x of the image.

Letters: V views, h x w patches, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Views:
    """Features of several views of one image; iterating gives the views themselves, as one batch.

    Attributes:
        features: [V, h, w, C], raw, after the final norm.
        xy: [V, h, w, 2], places (x, y) of the patches in [0, 1]: (0, 0) is the image's upper left corner.

    Raises:
        ValueError: on other shapes, or places outside [0, 1].
    """

    features: Tensor
    xy: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 4 or self.xy.shape != (*self.features.shape[:3], 2):
            raise ValueError(
                f"views need features [V, h, w, C] and xy [V, h, w, 2], got {list(self.features.shape)} and "
                f"{list(self.xy.shape)}"
            )
        if self.features.numel() == 0:
            raise ValueError(f"views are empty: features {list(self.features.shape)}; pass at least one")
        if not bool(((self.xy >= 0) & (self.xy <= 1)).all()):
            low, high = self.xy.min().item(), self.xy.max().item()
            raise ValueError(f"xy must lie in [0, 1], got {low:.3g} .. {high:.3g}; reflect what leaves the image")

    def __iter__(self) -> Iterator[Views]:
        yield self

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition:
    """One image's features, taken apart.

    Attributes:
        raw: [h, w, C], y of the whole image.
        semantics: [h, w, C], F at the patches of the whole image.
        artifact: [h, w, C], G, shared by all views; its mean over the patches is 0.
        residual: [h, w, C], h of the whole image, what depends on content and position together. In closed form
            `raw - semantics - artifact`, so that its mean over the patches is the o of the whole image; of the neural
            field what its network predicts from `raw`, as the paper has it, and the sum of the three is not `raw`.
        stats: figures of the fit, JSON-friendly: `solver`, `num_views` (the whole image included); in closed form
            `nodes` of F (rows, columns), `smoothness` and `unexplained`, the share of the views' variance that
            F + G + o leaves over in the fit itself; of the neural field `num_steps` and `loss_curve`.
        semantics_at: F at places [..., 2] (x, y) in [0, 1], image frame: [..., C]; outside the image it has the value
            of the border. Raises ValueError on other shapes, and on NaN.
    """

    raw: Tensor
    semantics: Tensor
    artifact: Tensor
    residual: Tensor
    stats: dict[str, Any]
    semantics_at: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        solver, num_views = (self.stats.get(name) for name in ("solver", "num_views"))
        return f"Decomposition({list(self.raw.shape)}, solver={solver!r}, num_views={num_views})"


def collect(views: Iterable[Views]) -> Views:
    """Join all batches into one.

    Raises:
        ValueError: if there is none, or their shapes differ.
    """
    batches = list(views)
    if not batches:
        raise ValueError("no views given; pass the sampled ones and, last, the whole image")
    return Views(torch.cat([batch.features for batch in batches]), torch.cat([batch.xy for batch in batches]))


def unexplained(solution: Decomposition, views: Iterable[Views]) -> Tensor:
    """Measure what F + G leaves over of views that took no part in the fit.

    Args:
        solution: the decomposition that other views of the same image gave.
        views: batches of views with its grid.

    Returns:
        [h, w, 2]: squared error and variance of each patch, summed over views and channels, each view's mean removed
        from both; the share that is unexplained is the ratio of their sums.

    Raises:
        ValueError: if the views have another grid.
    """
    sums = torch.zeros(*solution.artifact.shape[:2], 2, dtype=torch.float64)
    for batch in views:
        if batch.features.shape[1:] != solution.artifact.shape:
            raise ValueError(
                f"views must have the grid [h, w, C] of the solution, {list(solution.artifact.shape)}, got "
                f"{list(batch.features.shape[1:])}"
            )
        features = batch.features.to(solution.artifact)
        error = features - solution.semantics_at(batch.xy) - solution.artifact
        for i, values in enumerate((error, features)):
            centered = values - values.mean(dim=(1, 2), keepdim=True)
            sums[..., i] += centered.double().square().sum(dim=(0, 3)).cpu()
    return sums
