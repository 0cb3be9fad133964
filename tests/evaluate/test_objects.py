"""LOST finds what stands out of its surroundings."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from dvt_timm.evaluate.objects import box_around, components, is_located, lost

H, W = 8, 12
SHIFTS = torch.randn(H, W, 6, generator=torch.Generator().manual_seed(0))


def scene(*blocks: tuple[int, int, int, int]) -> Tensor:
    """Make features [H, W, 8] of blocks (top, left, bottom, right) that are the opposite of the ground, with noise."""
    sign = torch.ones(H, W)
    for top, left, bottom, right in blocks:
        sign[top:bottom, left:right] = -1
    return torch.cat([3 * sign[..., None], torch.zeros(H, W, 1), 0.1 * SHIFTS], dim=2)


def box_of(top: int, left: int, bottom: int, right: int) -> Tensor:
    return torch.tensor([left / W, top / H, right / W, bottom / H])


def test_a_block_is_found() -> None:
    for block in ((2, 3, 5, 8), (0, 0, 3, 2), (5, 9, H, W), (4, 4, 5, 5)):
        torch.testing.assert_close(lost(scene(block)), box_of(*block))


def test_of_two_blocks_that_of_the_seed_is_found() -> None:
    first, second = (0, 0, 2, 2), (4, 5, 7, 9)
    torch.testing.assert_close(lost(scene(first, second)), box_of(*first))  # all have the same degree: the first one
    features = scene(first, second)
    features[5, 6, 0] = -1.0
    features[5, 6, 1] = 6.0  # does not correlate with the ground, nor with the rest's other side
    features[0:2, 0:2, 1] = -6.0
    torch.testing.assert_close(lost(features), box_of(*second))


def test_a_corner_does_not_connect() -> None:
    torch.testing.assert_close(lost(scene((1, 1, 3, 3), (3, 3, 5, 6))), box_of(1, 1, 3, 3))
    torch.testing.assert_close(lost(scene((1, 1, 3, 3), (2, 3, 5, 6))), box_of(1, 1, 5, 6))


def test_growth_reaches_what_the_seed_does_not() -> None:
    # Four kinds of patches: ground, the seed, a neighbor that likes it, and one that only likes that neighbor.
    kinds = torch.tensor([[-3.0, -3, -3], [3.0, 0, -1], [2.0, 3, 0], [-1.0, 3, 0]])
    products = kinds @ kinds.T
    assert products[1, 2] > 0 > products[1, 3]
    assert products[2, 3] > 0
    features = kinds[torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]])]
    torch.testing.assert_close(lost(features), torch.tensor([1 / 7, 1 / 3, 4 / 7, 2 / 3]))
    torch.testing.assert_close(lost(features, neighbors=1), torch.tensor([1 / 7, 1 / 3, 3 / 7, 2 / 3]))


def test_patches_that_have_nothing_in_common_correlate() -> None:
    features = torch.tensor([[[0.0, 1], [1, 0], [-1, 0]]])  # degrees 3, 2, 2; the first grows the second
    torch.testing.assert_close(lost(features), torch.tensor([0.0, 0.0, 2 / 3, 1.0]))


def test_a_bias_makes_up_for_what_all_patches_share() -> None:
    block = (2, 3, 5, 8)
    shared = scene(block)
    shared[..., 1] = 5.0  # adds 25 to all products: of -9 and 9 none is negative any more
    torch.testing.assert_close(lost(shared), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(lost(shared, bias=-25.0), box_of(*block))


def test_the_seed_is_always_part_of_it() -> None:
    torch.testing.assert_close(lost(scene((2, 3, 5, 8)), bias=-1e3), box_of(0, 0, 1, 1))


def test_bad_features() -> None:
    for features in (torch.ones(4, 4), torch.ones(0, 4, 2), torch.full((2, 2, 2), torch.nan)):
        with pytest.raises(ValueError, match=r"finite features \[h, w, C\]"):
            lost(features)
    with pytest.raises(ValueError, match=r"neighbors >= 1, got \[2, 2, 2\] and 0"):
        lost(torch.ones(2, 2, 2), neighbors=0)


def test_a_box_is_located_above_half_an_overlap() -> None:
    box = torch.tensor([0.0, 0.0, 0.5, 1.0])
    assert is_located(box, box[None])
    assert is_located(box, torch.tensor([[0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.75, 1.0]]))  # 2/3 of the second
    assert not is_located(box, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))  # half is not above it
    assert not is_located(box, torch.tensor([[0.25, 0.0, 0.75, 1.0]]))  # 1/3
    assert not is_located(box, torch.tensor([[0.6, 0.0, 1.0, 1.0]]))
    assert not is_located(box, torch.tensor([[0.8, 0.8, 0.2, 0.2]]))  # inside out
    assert not is_located(box, torch.zeros(0, 4))


def test_boxes_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"true boxes \[N, 4\], got \[4\] and \[4\]"):
        is_located(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match=r"a box must be \[4\]"):
        is_located(torch.zeros(1, 4), torch.zeros(1, 4))


def test_components_and_their_boxes() -> None:
    parts = components(np.array([[1, 1, 0], [0, 0, 1]], np.bool_))
    assert parts.tolist() == [[1, 1, 0], [0, 0, 2]]
    torch.testing.assert_close(box_around(parts == 1), torch.tensor([0.0, 0.0, 2 / 3, 0.5]))


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(ImportError, match=r"pip install 'dvt-timm\[evaluate\]'"):
        lost(torch.ones(2, 2, 2))
