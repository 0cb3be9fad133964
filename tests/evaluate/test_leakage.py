"""Position leakage finds a planted position, and none in clean features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dvt_timm.evaluate import position_leakage
from dvt_timm.evaluate.leakage import TARGETS, errors_of, mean_r2, r2_over
from dvt_timm.projection import places

H, W = 6, 8


def content(count: int, dim: int = 5, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, H, W, dim, generator=torch.Generator().manual_seed(seed)))


def positions() -> Tensor:  # [H, W, 2]
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    return torch.stack([x, y], dim=-1)


def test_leakage_finds_a_planted_position_and_nothing_else() -> None:
    mix = torch.randn(2, 5, generator=torch.Generator().manual_seed(9))
    signed = [part + 20 * positions() @ mix for part in content(40)]
    scores = position_leakage(signed[:30], signed[30:])
    assert scores["x"] > 0.95
    assert scores["y"] > 0.95
    assert abs(scores["|x|"]) < 0.05
    assert abs(scores["|y|"]) < 0.05
    distances = [part + 20 * positions().abs() @ mix for part in content(40)]
    scores = position_leakage(distances[:30], distances[30:])
    assert scores["|x|"] > 0.95
    assert abs(scores["x"]) < 0.05
    assert all(abs(score) < 0.05 for score in position_leakage(content(30), content(10, seed=1)).values())
    assert position_leakage(iter(content(3)), iter(content(3))).keys() == {"x", "y", "|x|", "|y|"}
    with pytest.raises(ValueError, match="at least one map"):
        position_leakage([], content(1))


@pytest.mark.parametrize(("grid", "known"), [((6, 2), ["x", "y", "|y|"]), ((2, 2), ["x", "y"]), ((1, 1), [])])
def test_what_is_the_same_in_every_patch_has_no_leakage(grid: tuple[int, int], known: list[str]) -> None:
    maps = list(torch.randn(6, *grid, 5, generator=torch.Generator().manual_seed(0)))
    scores = position_leakage(maps[:3], maps[3:])
    assert list(scores) == known
    assert all(map(math.isfinite, scores.values()))
    each = r2_over([errors_of(torch.zeros(len(places(*grid)), 4), places(*grid)) for _ in maps])
    assert [target for target, of in zip(TARGETS, each, strict=True) if not math.isnan(of.value)] == known
    assert math.isnan(mean_r2(each).value) == (known == [])
