"""The information coefficient equals a slow twin, and knows functions from noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dvt_timm.evaluate import information_coefficients, largest_coefficients, mic


def coefficient_slowly(values: list[float], places: list[int], bound: float) -> float:
    """Try all cuts of one axis against equal parts of the other, both ways round."""
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


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("size", [(2, 2), (3, 8), (14, 11)])
def test_the_largest_coefficients_are_those_of_all_channels(size: tuple[int, int], strength: float) -> None:
    generator = torch.Generator().manual_seed(size[0])
    features = torch.randn(*size, 150, generator=generator)  # in three parts
    features[..., 70] += strength * torch.sin(torch.arange(size[1]) / 1.5)
    features[..., 149] += strength * torch.arange(size[0])[:, None]
    expected = information_coefficients(features).amax(dim=0)
    torch.testing.assert_close(largest_coefficients(features), expected, rtol=0, atol=0)


def test_few_channels_are_cut_into_more_than_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []
    more = mic._of_more_runs
    monkeypatch.setattr(mic, "_of_more_runs", lambda total, most: cut.append(len(total)) or more(total, most))
    features = torch.randn(14, 11, 150, generator=torch.Generator().manual_seed(0))
    features[..., 3] += 20 * torch.arange(11) + 20 * torch.arange(14)[:, None]
    largest_coefficients(features)
    few, cut[:] = sum(cut), []
    information_coefficients(features)
    assert 0 < few < sum(cut) / 3
