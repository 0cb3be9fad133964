"""Figures over photos, with the spread that other photos would have given, and their paired differences.

Letters: R resamples, N photos, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

RESAMPLES = 1000  # R
TAILS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure over photos, and the same figure over photos drawn from them with replacement (the bootstrap).

    Differences and ratios of two over the same photos are paired: they are taken resample by resample.

    Attributes:
        value: over the photos.
        samples: [R], over each resample; those of the same number of photos draw the same ones.
    """

    value: float
    samples: Tensor = field(repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; NaN at both ends if the figure is, or is in more resamples than an interval leaves out."""
        missing = float(self.samples.isnan().double().mean())
        if missing > TAILS[0] or math.isnan(self.value):
            return float("nan"), float("nan")
        low, high = self.samples.nanquantile(torch.tensor(TAILS, dtype=self.samples.dtype)).tolist()
        return low, high

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.samples - other.samples)

    def __truediv__(self, other: Estimate) -> Estimate:
        """Divide by a figure; NaN where that is not positive."""
        positive = other.samples.where(other.samples > 0, torch.nan)
        return Estimate(self.value / other.value if other.value > 0 else float("nan"), self.samples / positive)

    def complement(self) -> Estimate:
        """Take it from 1."""
        return Estimate(1 - self.value, 1 - self.samples)

    def at_least(self, least: float) -> Estimate:
        """Raise it to a value where it is below."""
        return Estimate(max(self.value, least), self.samples.clamp(min=least))

    @staticmethod
    def mean(estimates: Sequence[Estimate]) -> Estimate:
        """Average figures over the same photos."""
        samples = torch.stack([estimate.samples for estimate in estimates]).mean(dim=0)
        return Estimate(sum(estimate.value for estimate in estimates) / len(estimates), samples)

    def __format__(self, spec: str) -> str:
        low, high = self.interval
        return f"{self.value:{spec}} [{low:{spec}}, {high:{spec}}]"


def mean_over(values: Tensor) -> Estimate:  # [N]
    """Average a figure of each photo."""
    values = values.double()
    return Estimate(float(values.mean()), resampled(len(values)) @ values / len(values))


def ratio_over(numerators: Tensor, denominators: Tensor, drawn: Tensor | None = None) -> Estimate:
    """Divide the sum over the photos of one figure by that of another; NaN where that is not positive.

    Args:
        numerators: [N].
        denominators: [N].
        drawn: [R, N], how often each is drawn in a resample; `resampled(N)` by default.
    """
    top, bottom = numerators.double(), denominators.double()
    counts = resampled(len(top)) if drawn is None else drawn
    return Estimate(float(top.sum()), counts @ top) / Estimate(float(bottom.sum()), counts @ bottom)


def mean_iou_over(confusions: Tensor) -> Estimate:  # [N, K, K], label by prediction, of each photo
    """Compute the mIoU in 0..1 over the labels that occur; that of a resample over those that occur in it."""
    confusions = confusions.double()
    samples = torch.einsum("rn,nkl->rkl", resampled(len(confusions)), confusions)
    return Estimate(float(_mean_iou(confusions.sum(dim=0))), _mean_iou(samples))


def iou_over(confusions: Tensor) -> list[Estimate]:  # [N, K, K], label by prediction, of each photo
    """Compute the IoU in 0..1 of each label; NaN where it does not occur."""
    confusions = confusions.double()
    whole = _iou(confusions.sum(dim=0))
    samples = _iou(torch.einsum("rn,nkl->rkl", resampled(len(confusions)), confusions))
    return [Estimate(float(whole[k]), samples[:, k]) for k in range(len(whole))]


def resampled(num_photos: int) -> Tensor:
    """Draw photos with replacement: [R, N], how often each of N is drawn; always the same for N.

    One photo says nothing of others: NaN.
    """
    if num_photos == 1:
        return torch.full((RESAMPLES, 1), torch.nan, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(num_photos, (RESAMPLES, num_photos), generator=generator)
    counts = torch.zeros(RESAMPLES, num_photos, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def _mean_iou(confusion: Tensor) -> Tensor:  # [..., K, K] -> [...]
    return _iou(confusion).nanmean(dim=-1)


def _iou(confusion: Tensor) -> Tensor:  # [..., K, K] -> [..., K]
    both, of_label, predicted = confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(dim=-1), confusion.sum(dim=-2)
    iou = both / (of_label + predicted - both)
    return iou.where(of_label > 0, torch.nan)
