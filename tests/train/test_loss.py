"""The loss, written out."""

from __future__ import annotations

import pytest
import torch

from dvt_timm.train import feature_losses


def test_losses() -> None:
    predicted, target = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    losses = feature_losses(predicted, target)
    p, t = predicted.reshape(-1, 5), target.reshape(-1, 5)
    cosines = (p * t).sum(dim=1) / (p.norm(dim=1) * t.norm(dim=1))
    torch.testing.assert_close(losses.mse, ((p - t) ** 2).mean())
    torch.testing.assert_close(losses.cosine, (1 - cosines).mean())
    torch.testing.assert_close(losses.total, losses.mse + losses.cosine)
    assert feature_losses(predicted.half(), target.half()).mse.dtype == torch.float32
    with pytest.raises(ValueError, match="differ in shape"):
        feature_losses(predicted, target[:1])
