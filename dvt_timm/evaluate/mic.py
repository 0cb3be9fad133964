"""The paper's artifact measure: the maximal information coefficient of a channel with the patch's column or row.

Reshef et al., Detecting Novel Associations in Large Data Sets, 2011: over all grids of a x b cells with a b <= B =
N^0.6, the mutual information of the cells over log min(a, b), maximized. As there, one axis is cut into equal parts and
the other one optimally, by dynamic programming over at most `CLUMPS` candidate cuts per part, and then the other way
round.

Letters: N = h * w patches, C channels, a parts of the channel, b parts of the position.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXPONENT, CLUMPS = 0.6, 5
CHANNELS = 64  # at a time


def information_coefficients(features: Tensor) -> Tensor:
    """Measure how much each channel tells of the column and of the row of a patch.

    The paper's figure is the maximum over the channels, averaged over columns and rows and over images.

    Args:
        features: [h, w, C].

    Returns:
        [C, 2] in 0..1: the coefficient with x and with y.
    """
    h, w, C = features.shape
    shuffled = torch.randperm(h * w, generator=torch.Generator().manual_seed(0))  # breaks ties at random
    columns, rows = shuffled % w, shuffled // w
    values = features.detach().float().cpu().reshape(h * w, C)[shuffled].T  # [C, N]
    parts = values.split(CHANNELS)
    return torch.stack([torch.cat([_coefficients(part, place) for part in parts]) for place in (columns, rows)], dim=1)


def _coefficients(values: Tensor, place: Tensor) -> Tensor:  # [C, N], [N] column or row -> [C]
    N = values.shape[1]
    bound = N**EXPONENT
    rank = values.argsort(dim=1, stable=True).argsort(dim=1, stable=True)  # [C, N]
    places = int(place.max()) + 1
    best = values.new_zeros(len(values))
    for parts in range(2, int(bound // 2) + 1):
        most = int(bound // parts)  # of the other axis
        clumps = min(CLUMPS * most, N)
        equal_places = (place * parts // places).expand_as(rank)
        best = torch.maximum(best, _best_cuts(rank * clumps // N, clumps, equal_places, parts, most))
        equal_values = rank * parts // N
        best = torch.maximum(best, _best_cuts(place.expand_as(rank), places, equal_values, parts, most))
    return best


def _best_cuts(clump: Tensor, clumps: int, part: Tensor, parts: int, most: int) -> Tensor:
    """Cut the line of clumps into 2..most runs that tell most of the part; clump and part are [C, N] -> [C]."""
    C, N = clump.shape
    counts = torch.zeros(C, clumps * parts).scatter_add_(1, clump * parts + part, torch.ones(C, N))
    total = torch.cat([torch.zeros(C, 1, parts), counts.reshape(C, clumps, parts).cumsum(dim=1)], dim=1)
    gain = _xlogx(total[:, None, :, :] - total[:, :, None, :]).sum(dim=-1)  # [C, from, to]
    size = total.sum(dim=-1)
    gain -= _xlogx(size[:, None, :] - size[:, :, None])
    gain = gain.masked_fill(torch.ones(clumps + 1, clumps + 1).tril().bool(), -math.inf)
    entropy = math.log(N) - _xlogx(total[:, -1]).sum(dim=-1) / N  # of the parts
    score = gain[:, 0]  # [C, to], with one run so far
    best = torch.zeros(C)
    for runs in range(2, min(most, clumps) + 1):
        score = (score[:, :, None] + gain).amax(dim=1)
        information = entropy + score[:, -1] / N
        best = torch.maximum(best, information / math.log(min(runs, parts)))
    return best.clamp(min=0, max=1)


def _xlogx(count: Tensor) -> Tensor:
    """Take x log x of whole numbers; negative ones and 0 give 0."""
    return count.clamp(min=1).log_().mul_(count)
