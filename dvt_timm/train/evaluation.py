"""How good predicted maps are, on samples that took no part in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..evaluate import position_leakage
from .loss import feature_losses

Evaluation = dict[str, float]
FEWEST_MAPS = 4  # leakage needs as many


def evaluate(predicted: Sequence[Tensor], target: Sequence[Tensor]) -> Evaluation:
    """Measure the distance to the targets, and how much position is left.

    Args:
        predicted: maps [h, w, C] of any grids, on the CPU.
        target: maps without artifacts.

    Returns:
        "loss", "mse" and "cosine": the training loss and its terms, the mean over maps;
        "error": squared error over the variance of the targets' patches;
        "leakage x", "leakage y", "leakage |x|", "leakage |y|": R2 of a linear probe of position fitted on the first
        half of the predicted maps and tested on the others; only if there are four maps or more.
    """
    losses = [feature_losses(p[None], t[None]) for p, t in zip(predicted, target, strict=True)]
    means = {term: torch.stack([getattr(each, term) for each in losses]).mean().item() for term in ("mse", "cosine")}
    errors, spreads = errors_to(predicted, target)
    scores = {"loss": means["mse"] + means["cosine"], **means, "error": (errors.sum() / spreads.sum()).item()}
    if len(predicted) >= FEWEST_MAPS:
        half = len(predicted) // 2
        leakage = position_leakage(predicted[:half], predicted[half:])
        scores |= {f"leakage {place}": r2 for place, r2 in leakage.items()}
    return scores


def errors_to(maps: Sequence[Tensor], target: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum the squared errors of every map, and the squares of its target from the mean of all: [N] both, float64."""
    mean = torch.cat([clean.double().flatten(0, 1) for clean in target]).mean(dim=0)  # [C]
    errors = [(fmap.double() - clean.double()).square().sum() for fmap, clean in zip(maps, target, strict=True)]
    return torch.stack(errors), torch.stack([(clean.double() - mean).square().sum() for clean in target])
