"""Key points are found where the features are the same."""

from __future__ import annotations

import pytest
import torch

from dvt_timm.evaluate import match_points


def test_points_are_found_in_a_shifted_map() -> None:
    wide = torch.randn(6, 9, 16, generator=torch.Generator().manual_seed(0))
    source, target = wide[:4, :5], 3 * wide[1:6, 2:9]  # the same patches, one row and two columns on
    xy = torch.tensor([[2.5 / 5, 1.5 / 4], [4.99 / 5, 3.01 / 4], [1.0, 1.0]])  # patches (1, 2), (3, 4), (3, 4)
    found = match_points(source, target, xy)
    expected = torch.tensor([[0.5 / 7, 0.5 / 5], [2.5 / 7, 2.5 / 5], [2.5 / 7, 2.5 / 5]])
    torch.testing.assert_close(found, expected)


def test_bad_input() -> None:
    fmap = torch.zeros(4, 5, 16)
    with pytest.raises(ValueError, match=r"of the same channels, got \[4, 5, 16\] and \[4, 5, 8\]"):
        match_points(fmap, fmap[..., :8], torch.zeros(1, 2))
    for xy in (torch.zeros(2), torch.full((1, 2), 1.5), torch.full((1, 2), torch.nan)):
        with pytest.raises(ValueError, match=r"points must be \[N, 2\] in \[0, 1\]"):
            match_points(fmap, fmap, xy)
