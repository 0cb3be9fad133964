"""What is measured on held-out maps, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dvt_timm.train.evaluation import LEAKAGE, evaluate, left_out


def maps(count: int, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(4 + i % 2, 5, 8, generator=draw) for i in range(count)]


def test_distances_are_means_over_maps() -> None:
    predicted, target = maps(3, 0), maps(3, 1)
    scores = evaluate(predicted, target)
    squares = torch.tensor([(p - t).square().mean() for p, t in zip(predicted, target, strict=True)])
    angles = [torch.cosine_similarity(p, t, dim=-1).mean() for p, t in zip(predicted, target, strict=True)]
    assert scores["mse"] == pytest.approx(squares.mean().item())
    assert scores["cosine"] == pytest.approx(1 - torch.stack(angles).mean().item())
    assert scores["loss"] == pytest.approx(scores["mse"] + scores["cosine"])


def test_the_error_is_relative_to_the_spread_of_the_targets() -> None:
    target = maps(3, 1)
    mean = torch.cat([each.flatten(0, 1) for each in target]).mean(dim=0)
    assert evaluate(target, target)["error"] == 0
    assert evaluate([mean.expand_as(each) for each in target], target)["error"] == pytest.approx(1)


def test_leakage_needs_four_maps_and_finds_position() -> None:
    assert evaluate(maps(3, 0), maps(3, 0)).keys() == {"loss", "mse", "cosine", "error"}
    positions = maps(4, 0)
    for each in positions:
        each[..., 0] = torch.linspace(-1, 1, 5)  # x
    scores = evaluate(positions, maps(4, 0))
    assert scores["leakage x"] > 0.9 > scores["leakage y"]


@pytest.mark.parametrize(
    ("grid", "missing"),
    [
        ((2, 3), {"leakage |y|"}),
        ((2, 2), {"leakage |x|", "leakage |y|"}),
        ((1, 5), {"leakage y", "leakage |y|"}),
        ((1, 1), set(LEAKAGE)),
    ],
)
def test_what_is_the_same_in_every_patch_is_left_out(grid: tuple[int, int], missing: set[str]) -> None:
    draw = torch.Generator().manual_seed(0)
    some = [torch.randn(*grid, 8, generator=draw) for _ in range(6)]
    scores = evaluate(some, some[::-1])
    assert {*LEAKAGE, "error"} - scores.keys() == missing
    assert all(map(math.isfinite, scores.values()))
    (said,) = left_out(scores, 6)
    assert all(name in said for name in missing)
    assert left_out(evaluate(some[:3], some[:3]), 3) == []


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3e4])
def test_targets_without_a_spread_have_no_error(value: float) -> None:
    predicted = maps(5, 0)
    scores = evaluate(predicted, [torch.full_like(fmap, value) for fmap in predicted])
    assert all(map(math.isfinite, scores.values()))
    assert "error" not in scores
    assert left_out(scores, 5) == ["error is left out: the targets are the same in every patch."]
