"""Probes find planted classes, and mean IoU is what it is by hand."""

from __future__ import annotations

import pytest
import torch

from dvt_timm.evaluate import knn_probe, linear_probe, mean_iou


def test_probes_find_planted_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator)
    labels = torch.randint(4, (600,), generator=generator)
    features = centers[labels] + 0.2 * torch.randn(600, 16, generator=generator)
    for probe in (knn_probe, linear_probe):
        predicted = probe(features[:400], labels[:400], features[400:])
        assert mean_iou(predicted, labels[400:]) > 0.95
    again = linear_probe(features[:400], labels[:400], features[400:], seed=0)
    assert torch.equal(predicted, again)
    for quiet in (torch.no_grad, torch.inference_mode):  # where features are computed
        with quiet():
            computed, known = features.clone(), labels.clone()
            assert torch.equal(predicted, linear_probe(computed[:400], known[:400], computed[400:]))


def test_mean_iou_by_hand() -> None:
    predicted, labels = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 2, 2])
    assert mean_iou(predicted, labels) == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)


def test_neighbors_that_point_away_vote_all_the_same() -> None:
    train, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 2])
    assert knn_probe(train, labels, torch.tensor([[-1.0, -0.5]])).tolist() == [2]
