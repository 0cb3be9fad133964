"""Estimates have intervals that cover, and their differences are paired."""

from __future__ import annotations

import math

import pytest
import torch

from dvt_timm.evaluate import mean_iou
from dvt_timm.evaluate.estimates import Estimate, mean_iou_over, mean_over, ratio_over, resampled


def test_a_mean_and_its_interval() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    estimate = mean_over(values)
    assert estimate.value == pytest.approx(float(values.mean()))
    low, high = estimate.interval
    error = float(values.std()) / 200**0.5
    assert low == pytest.approx(estimate.value - 1.96 * error, abs=0.3 * error)  # what the normal law says
    assert high == pytest.approx(estimate.value + 1.96 * error, abs=0.3 * error)


def test_a_difference_is_paired() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = (mean_over(values + 0.1) - mean_over(values)).interval
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.1))
    low, high = (mean_over(3 * values.abs()) / mean_over(values.abs())).interval
    assert (low, high) == (pytest.approx(3), pytest.approx(3))


def test_a_ratio_to_nothing_is_no_number() -> None:
    ratio = mean_over(torch.ones(3)) / mean_over(torch.zeros(3))
    assert math.isnan(ratio.value)
    assert all(map(math.isnan, ratio.interval))


def test_what_is_not_known_has_no_interval() -> None:
    samples = torch.ones(1000, dtype=torch.float64)
    samples[:20] = torch.nan  # no more than an interval leaves out
    assert Estimate(1.0, samples).interval == (1, 1)
    assert all(map(math.isnan, Estimate(float("nan"), samples).interval))
    samples[:400] = torch.nan
    assert all(map(math.isnan, Estimate(1.0, samples).interval))
    assert all(map(math.isnan, mean_over(torch.ones(1)).interval))  # of one photo
    assert len(repr(Estimate(1.0, samples))) < 40


def test_it_prints_with_its_interval() -> None:
    assert f"{Estimate(0.5, torch.tensor([0.25, 0.75], dtype=torch.float64)):.2f}" == "0.50 [0.26, 0.74]"


def test_mean_iou_of_confusions() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predicted = (torch.randint(4, (5, 100), generator=generator) for _ in range(2))
    labels[labels == 3] = 2  # label 3 does not occur, and is predicted
    cells = torch.stack([torch.bincount(4 * a + b, minlength=16) for a, b in zip(labels, predicted, strict=True)])
    estimate = mean_iou_over(cells.reshape(5, 4, 4))
    assert estimate.value == pytest.approx(mean_iou(predicted.flatten(), labels.flatten()))
    again = resampled(5)[0].long()  # the first resample, by hand
    repeated = [x.repeat_interleave(again, dim=0).flatten() for x in (predicted, labels)]
    assert float(estimate.samples[0]) == pytest.approx(mean_iou(*repeated))


def test_resamples_are_the_same_every_time() -> None:
    assert torch.equal(resampled(7), resampled(7))
    assert (resampled(7).sum(dim=1) == 7).all()


def test_shares_of_nothing_are_no_numbers() -> None:
    share = ratio_over(torch.ones(3), torch.zeros(3))
    assert math.isnan(share.value)
    assert share.samples.isnan().all()
    assert math.isnan(share.complement().value)
