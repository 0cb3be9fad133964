"""The paper's artifact measure: the maximal information coefficient of a channel with the patch's column or row.

Reshef et al., Detecting Novel Associations in Large Data Sets, 2011: over all grids of a x b cells with a b <= B =
N^0.6, the mutual information of the cells over log min(a, b), maximized. As there, one axis is cut into equal parts and
the other one optimally, by dynamic programming over at most `CLUMPS` candidate cuts per part, and then the other way
round.

Letters: N = h * w patches, C channels, K clumps, the runs of patches between candidate cuts, P parts of the other axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

EXPONENT, CLUMPS = 0.6, 5
CHANNELS = 64  # at a time


def information_coefficients(features: Tensor) -> Tensor:
    """Measure how much each channel tells of the column and of the row of a patch.

    Args:
        features: [h, w, C].

    Returns:
        [C, 2] in 0..1: the coefficient with x and with y.
    """
    each = [torch.cat([_coefficients(part, place) for part in parts]) for parts, place in _by_place(features)]
    return torch.stack(each, dim=1)


def largest_coefficients(features: Tensor) -> Tensor:
    """Give the largest of the channels' `information_coefficients`, some three times as fast.

    The paper's figure is their mean over columns and rows, and over images. Channels are not cut into more than two
    runs where even all clumps apart tell less than the best channel so far.

    Args:
        features: [h, w, C].

    Returns:
        [2] in 0..1: the largest coefficient with x and with y.
    """
    return torch.stack([_largest(parts, place) for parts, place in _by_place(features)])


def _by_place(features: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Give the channels, some [C, N] at a time, with the columns and then with the rows of the patches, [N]."""
    h, w, C = features.shape
    shuffled = torch.randperm(h * w, generator=torch.Generator().manual_seed(0))  # breaks ties at random
    values = features.detach().float().cpu().reshape(h * w, C)[shuffled].T
    for place in (shuffled % w, shuffled // w):
        yield values.split(CHANNELS), place


def _coefficients(values: Tensor, place: Tensor) -> Tensor:  # [C, N], [N] -> [C]
    best = values.new_zeros(len(values))
    for total, most in _grids(values, place):
        best = best.maximum(_of_two_runs(total))
        if most > 2:
            best = best.maximum(_of_more_runs(total, most))
    return best.clamp(max=1)


def _largest(parts: tuple[Tensor, ...], place: Tensor) -> Tensor:  # [C, N] each, [N] -> []
    best = torch.zeros(())
    for values in parts:
        for total, most in _grids(values, place):
            best = best.maximum(_of_two_runs(total).amax())
            if most > 2:
                may = _information(total) / math.log(min(3, total.shape[2])) > best
                if may.any():
                    best = best.maximum(_of_more_runs(total[may], most).amax())
    return best.clamp(max=1)


def _grids(values: Tensor, place: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Give the grids of patches: how many lie before each candidate cut, by part, [C, K + 1, P], and the most runs."""
    N = values.shape[1]
    bound = N**EXPONENT
    rank = values.argsort(dim=1, stable=True).argsort(dim=1, stable=True)  # [C, N]
    places = int(place.max()) + 1
    for parts in range(2, int(bound // 2) + 1):
        most = int(bound // parts)
        clumps = min(CLUMPS * most, N)
        equal_places = (place * parts // places).expand_as(rank)
        yield _totals(rank * clumps // N, clumps, equal_places, parts), min(most, clumps)
        yield _totals(place.expand_as(rank), places, rank * parts // N, parts), min(most, places)


def _totals(clump: Tensor, clumps: int, part: Tensor, parts: int) -> Tensor:  # [C, N] both -> [C, K + 1, P]
    C, N = clump.shape
    counts = torch.zeros(C, clumps * parts).scatter_add_(1, clump * parts + part, torch.ones(C, N))
    return torch.cat([torch.zeros(C, 1, parts), counts.reshape(C, clumps, parts).cumsum(dim=1)], dim=1)


def _information(total: Tensor) -> Tensor:  # [C, K + 1, P] -> [C]
    """Compute what all clumps apart tell of the part: no cuts tell more."""
    return _told(total, _gain(total.diff(dim=1)).sum(dim=1))


def _of_two_runs(total: Tensor) -> Tensor:  # [C, K + 1, P] -> [C]
    """Cut once, where that tells most."""
    if total.shape[1] < 3:
        return torch.zeros(len(total))
    gain = _gain(total) + _gain(total[:, -1:] - total)  # [C, K + 1]
    return _told(total, gain[:, 1:-1].amax(dim=1)) / math.log(2)


def _of_more_runs(total: Tensor, most: int) -> Tensor:  # [C, K + 1, P] -> [C]
    """Cut into 2..most runs that tell most of the part."""
    C, K, parts = total.shape
    gain = _gain(total[:, None, :, :] - total[:, :, None, :])  # [C, from, to]
    gain = gain.masked_fill(torch.ones(K, K).tril().bool(), -math.inf)
    score = gain[:, 0]  # [C, to], with one run so far
    best = torch.zeros(C)
    for runs in range(2, most + 1):
        score = (score[:, :, None] + gain).amax(dim=1)
        best = best.maximum(_told(total, score[:, -1]) / math.log(min(runs, parts)))
    return best


def _told(total: Tensor, gain: Tensor) -> Tensor:  # [C, K + 1, P], [C] -> [C]
    """Compute the mutual information in nats from the gain of all runs."""
    N = total[0, -1].sum()
    return N.log() + (gain - _xlogx(total[:, -1]).sum(dim=-1)) / N


def _gain(runs: Tensor) -> Tensor:  # counts [..., P] of runs -> [...]
    return _xlogx(runs).sum(dim=-1) - _xlogx(runs.sum(dim=-1))


def _xlogx(count: Tensor) -> Tensor:
    """Take x log x of whole numbers; negative ones and 0 give 0."""
    return count.clamp(min=1).log_().mul_(count)
