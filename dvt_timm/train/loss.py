"""What stages 2 and 3 minimise: squared error and cosine distance to the clean features (the authors' scripts).

A third term, off by default, weighs differences between near patches. Grid lines and bands are a twentieth of the
squared error, so that a short training leaves half of them; in differences they count as much as the image does. It is
the gradient matching of depth estimation (Li and Snavely, arXiv 1804.00607, equation 3), squared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

DISTANCES = (1, 2, 4)  # patches


class Losses(NamedTuple):
    """Scalars."""

    mse: Tensor  # mean over patches and channels
    cosine: Tensor  # 1 - cosine, mean over patches
    detail: Tensor  # weight times the squared error of differences between patches, mean over those and channels

    @property
    def total(self) -> Tensor:
        """Their sum, which training minimises."""
        return self.mse + self.cosine + self.detail


def feature_losses(predicted: Tensor, target: Tensor, detail_weight: float = 0.0) -> Losses:  # [B, h, w, C] both
    """How far predicted features are from the target, in float32 at least.

    Args:
        predicted, target: maps [B, h, w, C].
        detail_weight: of the differences between patches 1, 2 and 4 apart, down and across; as released 0.

    Raises:
        ValueError: if their shapes differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted and target features differ in shape: {[*predicted.shape]} and {[*target.shape]}")
    predicted, target = at_least_float32(predicted), at_least_float32(target)
    detail = _detail(predicted - target) if detail_weight else predicted.new_zeros(())
    cosine = 1 - cosine_similarity(predicted, target, dim=-1).mean()
    return Losses(mse_loss(predicted, target), cosine, detail_weight * detail)


def _detail(error: Tensor) -> Tensor:
    """Mean square of an error's [B, h, w, C] differences between near patches; 0 for a single patch."""
    squares = [
        (error.narrow(axis, distance, size - distance) - error.narrow(axis, 0, size - distance)).square().mean()
        for axis, size in enumerate(error.shape[1:3], start=1)
        for distance in DISTANCES
        if distance < size
    ]
    return torch.stack(squares).mean() if squares else error.new_zeros(())


def at_least_float32(features: Tensor) -> Tensor:
    """Half precision in float32, anything else as it is."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
