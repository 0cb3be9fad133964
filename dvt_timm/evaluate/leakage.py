"""Position leakage says how well a linear probe reads a patch's position from its feature."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..projection import places

RIDGE = 1e-4  # of the standardized features' mean square


def position_leakage(train: Iterable[Tensor], test: Iterable[Tensor]) -> dict[str, float]:
    """Measure R2 of a ridge regression from a patch's feature to its place in the image.

    The targets are x, y and the distances |x| and |y| from the middle. Features of natural photos without artifacts
    give about 0, or less where nothing carries over from photo to photo. A little of y stays readable: it is content.

    Args:
        train: maps [h, w, C] of the photos that fit the probe; several hundred make it a strict one.
        test: maps of other photos.

    Returns:
        R2 of "x", "y", "|x|" and "|y|"; 1 means perfectly readable.

    Raises:
        ValueError: if either has no map.
    """
    features, targets = _stack(train)
    mean, scale = features.mean(dim=0), features.std(dim=0).clamp(min=1e-12)
    design = _with_constant((features - mean) / scale)
    penalty = RIDGE * len(design) * torch.eye(design.shape[1], dtype=design.dtype)
    penalty[-1, -1] = 0
    weights = torch.linalg.solve(design.T @ design + penalty, design.T @ targets)
    features, targets = _stack(test)
    error = targets - _with_constant((features - mean) / scale) @ weights
    r2 = 1 - error.square().sum(dim=0) / (targets - targets.mean(dim=0)).square().sum(dim=0)
    return dict(zip(("x", "y", "|x|", "|y|"), r2.tolist(), strict=True))


def _stack(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack all patches' features [N, C] and targets [N, 4], float64."""
    parts = list(maps)
    if not parts:
        raise ValueError("position leakage needs at least one map [h, w, C] to fit and one to test on")
    features = torch.cat([part.double().cpu().flatten(0, 1) for part in parts])
    return features, torch.cat([places(part.shape[0], part.shape[1]) for part in parts])


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)
