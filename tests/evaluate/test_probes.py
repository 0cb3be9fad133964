"""evaluate: planted positions are found, clean features show none, and the coefficient equals a slow twin."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dvt_timm.evaluate import information_coefficients, knn_probe, linear_probe, mean_iou, mic, position_leakage

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


def coefficient_slowly(values: list[float], places: list[int], bound: float) -> float:
    """All cuts of one axis against equal parts of the other, both ways round."""
    N, best = len(values), 0.0
    rank = {i: r for r, i in enumerate(sorted(range(N), key=values.__getitem__))}
    lines = [
        ([rank[i] for i in range(N)], N, places, max(places) + 1),
        (places, max(places) + 1, [rank[i] for i in range(N)], N),
    ]
    for line, length, other, other_length in lines:
        for parts in range(2, int(bound // 2) + 1):
            part = [position * parts // other_length for position in other]
            for runs in range(2, int(bound // parts) + 1):
                for cuts in itertools.combinations(range(1, length), runs - 1):
                    run = [sum(position >= cut for cut in cuts) for position in line]
                    best = max(best, information(run, part) / math.log(min(runs, parts)))
    return best


def information(a: list[int], b: list[int]) -> float:
    N = len(a)
    joint = {pair: list(zip(a, b, strict=True)).count(pair) / N for pair in zip(a, b, strict=True)}
    return sum(p * math.log(p / ((a.count(i) / N) * (b.count(j) / N))) for (i, j), p in joint.items())


def test_information_equals_its_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mic, "CLUMPS", 100)  # every cut is a candidate
    features = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    features[..., 1] += torch.arange(5)
    got = information_coefficients(features)
    places = [torch.arange(5).repeat(4).tolist(), torch.arange(4).repeat_interleave(5).tolist()]
    for channel, axis in itertools.product(range(3), range(2)):
        expected = coefficient_slowly(features[..., channel].flatten().tolist(), places[axis], 20**0.6)
        assert got[channel, axis].item() == pytest.approx(expected, abs=1e-5)


def test_information_of_functions_and_of_noise() -> None:
    x = torch.arange(24).float().repeat(20, 1)
    noise = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    features = torch.stack([x, torch.sin(x / 2), (x - 11.5).abs(), noise, x + 30 * noise], dim=-1)
    with_x, with_y = information_coefficients(features).unbind(1)
    assert (with_x[:3] > 0.95).all()
    assert with_x[3] < 0.2
    assert with_x[3] < with_x[4] < 0.6
    assert (with_y < 0.2).all()


def test_probes_find_planted_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    labels = torch.randint(4, (600,), generator=generator)
    features = centres[labels] + 0.2 * torch.randn(600, 16, generator=generator)
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
