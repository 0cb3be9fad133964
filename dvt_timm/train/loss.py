"""What stages 2 and 3 minimize: squared error and cosine distance to the clean features (the authors' scripts)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss


class Losses(NamedTuple):
    """The two terms of the loss, scalars."""

    mse: Tensor  # mean over patches and channels
    cosine: Tensor  # 1 - cosine, mean over patches

    @property
    def total(self) -> Tensor:
        """Their sum, which training minimizes."""
        return self.mse + self.cosine


def feature_losses(predicted: Tensor, target: Tensor) -> Losses:  # [B, h, w, C] both
    """Measure how far predicted features are from the target, in float32 at least.

    Raises:
        ValueError: if their shapes differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted and target features differ in shape: {[*predicted.shape]} and {[*target.shape]}")
    predicted, target = at_least_float32(predicted), at_least_float32(target)
    return Losses(mse_loss(predicted, target), 1 - cosine_similarity(predicted, target, dim=-1).mean())


def at_least_float32(features: Tensor) -> Tensor:
    """Turn half precision into float32; leave anything else as it is."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
