"""Position leakage says how well a probe reads a patch's position from its feature.

Letters: h x w patches, C channels; four targets: x, y, |x| and |y| from the middle of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..projection import Moments, places
from .estimates import Estimate, ratio_over

TARGETS = ("x", "y", "|x|", "|y|")
RIDGE = 1e-4  # of the standardized features' mean square
NEIGHBORS = 30
CHUNK = 2048  # patches at a time


@dataclass(frozen=True)
class LinearPlaces:
    """A ridge regression from a patch's standardized feature to its place."""

    mean: Tensor  # [C]
    weights: Tensor  # [C, 4]
    place: Tensor  # [4], the mean one

    @classmethod
    def fit(cls, moments: Moments) -> LinearPlaces:
        """Solve it from the moments of the maps that fit the probe; raise ValueError if there are none."""
        return cls.solved(moments.mean, moments.covariance, moments.with_places, moments.place)

    @classmethod
    def solved(cls, mean: Tensor, covariance: Tensor, with_places: Tensor, place: Tensor) -> LinearPlaces:
        """Solve it from what `Moments` holds: [C], [C, C], [C, 4], [4]."""
        scale = covariance.diagonal().clamp(min=0).sqrt().clamp(min=1e-12)
        standardized = covariance / scale.outer(scale) + RIDGE * torch.eye(len(scale), dtype=scale.dtype)
        weights = torch.linalg.solve(standardized, with_places / scale[:, None])
        return cls(mean, weights / scale[:, None], place)

    def read(self, fmap: Tensor) -> Tensor:  # [h, w, C] -> [h * w, 4]
        """Read the places of patches."""
        return (fmap.double().cpu().flatten(0, 1) - self.mean) @ self.weights + self.place


@dataclass(frozen=True)
class NearestPlaces:
    """The mean place of the patches that are most alike: what a projection is not fitted against."""

    features: Tensor  # [N, C], of length 1
    places: Tensor  # [N, 4]

    @classmethod
    def of(cls, features: Tensor, places: Tensor) -> NearestPlaces:
        """Remember patches [N, C] and their places [N, 4]."""
        return cls(normalize(features.float(), dim=1), places.float())

    def read(self, features: Tensor) -> Tensor:  # [M, C] -> [M, 4]
        """Read the places of patches from their 30 nearest ones by the cosine."""
        found = []
        for queries in normalize(features.float(), dim=1).split(CHUNK):
            nearest = (queries @ self.features.T).topk(min(NEIGHBORS, len(self.features)), dim=1).indices
            found.append(self.places[nearest].mean(dim=1))
        return torch.cat(found).double()


def errors_of(read: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:  # [N, 4] both -> [4] both
    """Sum the squared errors of places that were read, and the squares of the true ones from their mean."""
    return (read - truth).square().sum(dim=0), (truth - truth.mean(dim=0)).square().sum(dim=0)


def r2_over(sums: Sequence[tuple[Tensor, Tensor]]) -> list[Estimate]:
    """Estimate the R2 of each of the four targets from what `errors_of` gives of every photo; NaN of one that is the
    same in every patch.
    """
    errors, squares = (torch.stack(part) for part in zip(*sums, strict=True))  # [N, 4] both
    return [ratio_over(errors[:, t], squares[:, t]).complement() for t in range(len(TARGETS))]


def mean_r2(each: Sequence[Estimate]) -> Estimate:
    """Average the R2 of the targets that differ from patch to patch, each at least 0: below it nothing is read."""
    return Estimate.mean([known.at_least(0) for known in each if not math.isnan(known.value)] or each[:1])


def position_leakage(train: Iterable[Tensor], test: Iterable[Tensor]) -> dict[str, float]:
    """Measure R2 of a ridge regression from a patch's feature to its place in the image.

    The targets are x, y and the distances |x| and |y| from the middle. Features of natural photos without artifacts
    give about 0, or less where nothing carries over from photo to photo. A little of y stays readable: it is content.

    Args:
        train: maps [h, w, C] of the photos that fit the probe; several hundred make it a strict one.
        test: maps of other photos.

    Returns:
        R2 of "x", "y", "|x|" and "|y|", without those that are the same in every patch (as |x| is where maps are two
        patches wide); 1 means perfectly readable.

    Raises:
        ValueError: if either has no map.
    """
    moments = Moments()
    for fmap in train:
        moments.add(fmap)
    probe = LinearPlaces.fit(moments)
    sums = [errors_of(probe.read(fmap), places(fmap.shape[0], fmap.shape[1])) for fmap in test]
    if not sums:
        raise ValueError("position leakage needs at least one map [h, w, C] to test on")
    errors, squares = (torch.stack(part).sum(dim=0) for part in zip(*sums, strict=True))
    scores = zip(TARGETS, (1 - errors / squares).tolist(), (squares > 0).tolist(), strict=True)
    return {target: score for target, score, differs in scores if differs}
