"""Labels go from patch to patch as a slow twin says, and J and F are those of DAVIS."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from dvt_timm.evaluate.videos import boundary_accuracy, masks_of, propagate, region_similarity, soft_labels

Mask = npt.NDArray[np.bool_]


def slowly(maps: Tensor, first: Tensor, neighbors: int, temperature: float, context: int, radius: int) -> list[Tensor]:
    """Restate `propagate`, patch by patch."""
    labels = [first]
    for now in range(1, len(maps)):
        found = torch.zeros_like(first)
        for row in range(first.shape[0]):
            for column in range(first.shape[1]):
                heard = []
                for then in sorted({0, *range(max(now - context, 0), now)}):
                    for y in range(max(row - radius, 0), min(row + radius + 1, first.shape[0])):
                        for x in range(max(column - radius, 0), min(column + radius + 1, first.shape[1])):
                            cosine = torch.cosine_similarity(maps[now, row, column], maps[then, y, x], dim=0)
                            heard.append((float(cosine), labels[then][y, x]))
                heard = sorted(heard, key=lambda pair: -pair[0])[:neighbors]
                weights = [math.exp(cosine / temperature) for cosine, _ in heard]
                mixed = sum(weight * label for weight, (_, label) in zip(weights, heard, strict=True))
                found[row, column] = mixed / sum(weights)
        labels.append(found)
    return labels[1:]


@pytest.mark.parametrize(
    ("neighbors", "temperature", "context", "radius"),
    [(5, 0.1, 2, 2), (1, 0.07, 0, 1), (50, 1.0, 1, 1), (3, 0.1, 7, 9), (5, 0.1, 1, 0)],
)
def test_propagation_is_that_of_a_slow_twin(neighbors: int, temperature: float, context: int, radius: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 4, 6, 8, generator=generator)
    first = torch.rand(4, 6, 3, generator=generator).softmax(dim=2)
    found = propagate(maps, first, neighbors=neighbors, temperature=temperature, context=context, radius=radius)
    expected = slowly(maps, first, neighbors, temperature, context, radius)
    torch.testing.assert_close(torch.stack(list(found)), torch.stack(expected))


def moving_block(steps: int) -> tuple[Tensor, Tensor]:
    """Make maps [steps, 5, 10, 16] of a block of 3 x 3 patches that goes right a patch a frame, and where it is."""
    generator = torch.Generator().manual_seed(0)
    ground, thing = torch.randn(16, generator=generator), torch.randn(3, 3, 16, generator=generator)
    maps, places = torch.zeros(steps, 5, 10, 16) + ground, torch.zeros(steps, 5, 10, dtype=torch.bool)
    for step in range(steps):
        maps[step, 1:4, 1 + step : 4 + step] = thing
        places[step, 1:4, 1 + step : 4 + step] = True
    return maps + 0.01 * torch.randn(maps.shape, generator=generator), places


def test_a_moving_block_is_followed() -> None:
    maps, places = moving_block(6)
    first = torch.stack([~places[0], places[0]], dim=2).float()
    for found, place in zip(propagate(iter(maps), first, radius=2), places[1:], strict=True):
        assert torch.equal(found.argmax(dim=2) == 1, place)
    lost = list(propagate(maps, first, radius=2, context=0))[-1]  # the first frame alone is too far away
    assert not (lost.argmax(dim=2) == 1)[places[-1]].all()


def test_ties_all_take_part() -> None:
    maps = torch.ones(2, 2, 2, 3)
    first = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]])
    (found,) = propagate(maps, first, neighbors=1)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]).expand(2, 2, 2))


def test_maps_are_read_one_at_a_time() -> None:
    read = 0

    def maps() -> Iterator[Tensor]:
        nonlocal read
        for _ in range(5):
            read += 1
            yield torch.ones(2, 3, 4)

    next(propagate(maps(), torch.ones(2, 3, 1)))
    assert read == 2


def test_bad_input_to_propagation() -> None:
    maps, first = torch.ones(2, 2, 3, 4), torch.ones(2, 3, 1)
    for setting in ({"neighbors": 0}, {"temperature": 0.0}, {"context": -1}, {"radius": -1}, {"temperature": math.nan}):
        with pytest.raises(ValueError, match="neighbors >= 1, temperature > 0, context >= 0 and radius >= 0"):
            list(propagate(maps, first, **setting))
    with pytest.raises(ValueError, match=r"same patches, got \[2, 3, 4\] and \[3, 2, 1\]"):
        list(propagate(maps, torch.ones(3, 2, 1)))
    with pytest.raises(ValueError, match="same channels, got 5 after 4"):
        list(propagate([maps[0], torch.ones(2, 3, 5)], first))


def test_soft_labels_by_hand() -> None:
    mask = np.array([[0, 0, 2, 2], [0, 2, 2, 2]], dtype=np.uint8)
    expected = torch.tensor([[[0.75, 0, 0.25], [0, 0, 1]]])
    torch.testing.assert_close(soft_labels(mask, (1, 2)), expected)
    thirds = soft_labels(np.array([[0, 1, 1]], dtype=np.uint8), (1, 2))  # patches of a pixel and a half
    torch.testing.assert_close(thirds, torch.tensor([[[2 / 3, 1 / 3], [0, 1]]]))
    fine = soft_labels(np.array([[0, 1]], dtype=np.uint8), (2, 4))  # patches smaller than pixels
    torch.testing.assert_close(fine.argmax(dim=2), torch.tensor([[0, 0, 1, 1]] * 2))


def test_soft_labels_of_bad_masks() -> None:
    for mask in (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int64), np.zeros((0, 2), np.uint8)):
        with pytest.raises(ValueError, match=r"a mask must be uint8 \[H, W\]"):
            soft_labels(mask, (1, 1))
    with pytest.raises(ValueError, match=r"a grid at least \(1, 1\); got uint8 \[2, 2\] and \(0, 1\)"):
        soft_labels(np.zeros((2, 2), np.uint8), (0, 1))


def test_masks_come_back() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 20:40], mask[20:30, 40:60] = 1, 3
    found = masks_of(soft_labels(mask, (8, 12)), (40, 60))
    assert (found.dtype, found.shape) == (np.uint8, (40, 60))
    assert (found != mask).mean() < 0.02  # corners are rounded
    ramp = masks_of(torch.tensor([[[0.75, 0.25], [0.0, 1.0]]]), (1, 8))  # label 1 grows .25, .25, .34, .53, .72, ...
    assert ramp.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


def square(size: int, top: int, left: int, side: int) -> Mask:
    mask = np.zeros((size, size), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_similarity_by_hand() -> None:
    empty, block = square(5, 0, 0, 0), square(5, 1, 1, 2)
    assert region_similarity(block, block) == 1
    assert region_similarity(square(5, 1, 2, 2), block) == 2 / 6
    assert (region_similarity(empty, block), region_similarity(block, empty)) == (0, 0)
    assert region_similarity(empty, empty) == 1


def test_boundary_accuracy_by_hand() -> None:
    empty, full, block = square(9, 0, 0, 0), square(9, 0, 0, 9), square(9, 3, 3, 3)
    assert boundary_accuracy(block, block) == 1
    assert boundary_accuracy(square(9, 3, 4, 3), block) == 1  # a pixel off is near enough
    assert boundary_accuracy(square(9, 0, 7, 2), block) == 0
    assert (boundary_accuracy(empty, block), boundary_accuracy(block, empty)) == (0, 0)
    assert boundary_accuracy(full, empty) == boundary_accuracy(empty, empty) == 1  # neither has a contour
    # The lower half's contour is row 4, which has 9 pixels; that of the block is its ring of 12 pixels in rows and
    # columns 2..5 without the inner four. Near to row 4 are the 8 of rows 3..5: recall 8/12. Near to the ring are
    # columns 1..6 of row 4: precision 6/9.
    half = np.arange(9)[:, None].repeat(9, axis=1) > 4
    assert boundary_accuracy(half, block) == pytest.approx(2 / 3)


def literally(predicted: Mask, truth: Mask) -> float:
    """Restate the definition of F in DAVIS' evaluation, pixel by pixel."""
    height, width = truth.shape
    reach = math.ceil(0.008 * math.sqrt(height**2 + width**2))

    def contour(mask: Mask) -> list[tuple[int, int]]:
        found = []
        for y in range(height):
            for x in range(width):
                last_row, last_column = y == height - 1, x == width - 1
                right = not last_column and mask[y, x] != mask[y, x + 1]
                below = not last_row and mask[y, x] != mask[y + 1, x]
                both = not last_row and not last_column and mask[y, x] != mask[y + 1, x + 1]
                if right or below or both:
                    found.append((y, x))
        return found

    def near(points: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        return sum(any((y - b) ** 2 + (x - a) ** 2 <= reach**2 for b, a in others) for y, x in points) / len(points)

    ours, theirs = contour(predicted), contour(truth)
    precision, recall = 1.0, 1.0
    if not ours and theirs:
        recall = 0.0
    elif ours and not theirs:
        precision = 0.0
    elif ours and theirs:
        precision, recall = near(ours, theirs), near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("shape", [(9, 9), (7, 30), (60, 150)])  # 150 makes the disk two pixels wide
def test_boundary_accuracy_is_that_of_the_definition(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.3, 1.0):
        truth = np.zeros(shape, np.bool_)
        truth[2 : shape[0] // 2, 3 : shape[1] // 2] = True
        predicted = random.random(shape) < share
        assert boundary_accuracy(predicted, truth) == pytest.approx(literally(predicted, truth))
        assert boundary_accuracy(truth, predicted) == pytest.approx(literally(truth, predicted))


def test_masks_must_be_boolean_and_alike() -> None:
    block = square(5, 1, 1, 2)
    for measure in (region_similarity, boundary_accuracy):
        for other in (block.astype(np.uint8), block[:4], block[None]):
            with pytest.raises(ValueError, match=r"masks must be boolean \[H, W\] of one size"):
                measure(block, other)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(ImportError, match=r"pip install 'dvt-timm\[evaluate\]'"):
        boundary_accuracy(square(5, 1, 1, 2), square(5, 1, 1, 2))
