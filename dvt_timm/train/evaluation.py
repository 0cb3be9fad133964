"""How good predicted maps are, on samples that took no part in training.

Letters: N maps, h x w patches, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..evaluate import position_leakage
from ..evaluate.leakage import TARGETS
from .loss import feature_losses

Evaluation = dict[str, float]
FEWEST_MAPS = 4  # leakage needs as many
LEAKAGE = tuple(f"leakage {place}" for place in TARGETS)
ROUNDING = 1e-20  # of the squares of features: less than that is no spread, but the rounding of their mean


def evaluate(predicted: Sequence[Tensor], target: Sequence[Tensor]) -> Evaluation:
    """Measure the distance to the targets, and how much position is left.

    Args:
        predicted: maps [h, w, C] of any grids, on the CPU.
        target: maps without artifacts.

    Returns:
        "loss", "mse" and "cosine": the training loss and its terms, the mean over maps;
        "error": squared error over the variance of the targets' patches; only if they differ;
        "leakage x", "leakage y", "leakage |x|", "leakage |y|": R2 of a linear probe of position fitted on the first
        half of the predicted maps and tested on the others; only if there are four maps or more, and those that differ
        from patch to patch.
    """
    losses = [feature_losses(p[None], t[None]) for p, t in zip(predicted, target, strict=True)]
    means = {term: torch.stack([getattr(each, term) for each in losses]).mean().item() for term in ("mse", "cosine")}
    errors, spreads = errors_to(predicted, target)
    scores = {"loss": means["mse"] + means["cosine"], **means}
    if spreads.sum() > 0:
        scores["error"] = (errors.sum() / spreads.sum()).item()
    if len(predicted) >= FEWEST_MAPS:
        half = len(predicted) // 2
        leakage = position_leakage(predicted[:half], predicted[half:])
        scores |= {f"leakage {place}": r2 for place, r2 in leakage.items()}
    return scores


def left_out(scores: Evaluation, num_maps: int) -> list[str]:
    """Say in sentences which scores of so many maps are missing, and why."""
    said = []
    if "error" not in scores:
        said.append("error is left out: the targets are the same in every patch.")
    blind = [name for name in LEAKAGE if name not in scores]
    if blind and num_maps >= FEWEST_MAPS:
        said.append(f"{', '.join(blind)}: left out, since maps of so few patches have the same in every patch.")
    return said


def errors_to(maps: Sequence[Tensor], target: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum the squared errors of every map, and the squares of its target from the mean of all: [N] both, float64."""
    mean = torch.cat([clean.double().flatten(0, 1) for clean in target]).mean(dim=0)  # [C]
    errors = [(fmap.double() - clean.double()).square().sum() for fmap, clean in zip(maps, target, strict=True)]
    spreads = torch.stack([(clean.double() - mean).square().sum() for clean in target])
    squares = torch.stack([clean.double().square().sum() for clean in target])
    return torch.stack(errors), spreads.where(spreads > ROUNDING * squares, 0.0)
