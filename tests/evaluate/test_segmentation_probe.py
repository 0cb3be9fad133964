"""The segmentation probe does by formula what slow twins do step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from dvt_timm.evaluate import segmentation_probe
from dvt_timm.evaluate.segmentation_probe import (
    SegmentationConfig,
    SegmentationHead,
    confusion_matrix,
    labels_at,
    pad_to_patches,
    segmentation_loss,
    slide,
    slide_windows,
)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_the_head_is_a_batch_norm_and_a_linear_map() -> None:
    torch.manual_seed(0)
    head = SegmentationHead(5, 3).double()
    weight, bias = head.classify.weight[:, :, 0, 0], head.classify.bias
    assert torch.equal(bias, torch.zeros(3, dtype=torch.float64))
    maps = 4 + 3 * torch.randn(2, 5, 4, 6, generator=seeded(), dtype=torch.float64)
    patches = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    mean, variance = patches.mean(dim=0), patches.var(dim=0, unbiased=False)
    expected = ((patches - mean) / (variance + 1e-5).sqrt()) @ weight.T
    torch.testing.assert_close(head(maps).permute(0, 2, 3, 1).reshape(-1, 3), expected)
    head.eval()  # one step has moved the running statistics by a tenth
    running_mean, running_variance = 0.1 * mean, 0.9 + 0.1 * patches.var(dim=0)
    expected = ((patches - running_mean) / (running_variance + 1e-5).sqrt()) @ weight.T
    torch.testing.assert_close(head(maps).permute(0, 2, 3, 1).reshape(-1, 3), expected)


def test_the_heads_weights_are_small_at_first() -> None:
    torch.manual_seed(0)
    weight = SegmentationHead(768, 150).classify.weight.detach()
    assert float(weight.std()) == pytest.approx(0.01, rel=0.01)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-4)


def test_the_loss_counts_ignored_pixels_as_0() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=seeded(), requires_grad=True)
    labels = torch.tensor([[[0, 1], [2, 255]], [[255, 255], [1, 0]]])
    log_shares = logits.log_softmax(dim=1)
    picked = [
        log_shares[b, labels[b, y, x], y, x] for b in (0, 1) for y in (0, 1) for x in (0, 1) if labels[b, y, x] < 3
    ]
    assert len(picked) == 5
    loss = segmentation_loss(logits, labels)
    torch.testing.assert_close(loss, -torch.stack(picked).sum() / 8)
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad[1, :, 0] == 0).all()
    assert float(segmentation_loss(logits.detach(), torch.full_like(labels, 255))) == 0


def test_logits_are_resized_between_the_centers_of_pixels() -> None:
    logits = torch.tensor([[0.0, 4.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)  # class 0 rises from left to right
    resized = torch.tensor([0.0, 1.0, 3.0, 4.0])  # at -1/4, 1/4, 3/4, 5/4 of the way
    labels = torch.tensor([[[0, 0, 1, 1]]])
    shares = torch.stack([resized, torch.zeros(4)]).log_softmax(dim=0)
    torch.testing.assert_close(segmentation_loss(logits, labels), -(shares[0, :2].sum() + shares[1, 2:].sum()) / 4)
    assert labels_at(logits[0] - torch.tensor([2.0, 0])[:, None, None], 2, 4).tolist() == [[1, 1, 0, 0]] * 2


def test_sizes_of_the_test() -> None:
    size = segmentation_probe.test_size
    assert size(500, 375) == (683, 512)
    assert size(375, 500) == (512, 683)
    assert size(5000, 500) == (2048, 205)  # the longer side is what binds
    assert size(1, 100_000) == (1, 2048)


@pytest.mark.parametrize(
    ("length", "starts"), [(300, [0]), (512, [0]), (513, [0, 1]), (853, [0, 341]), (854, [0, 341, 342])]
)
def test_windows_of_one_side(length: int, starts: list[int]) -> None:
    assert slide_windows(400, length) == [(0, start) for start in starts]
    assert slide_windows(length, 400) == [(start, 0) for start in starts]


def test_windows_cover_an_image() -> None:
    windows = slide_windows(23, 17, window=8, stride=5)
    assert windows == [(top, left) for top in (0, 5, 10, 15) for left in (0, 5, 9)]


@pytest.mark.parametrize(("height", "width"), [(23, 17), (8, 30), (5, 6), (9, 8)])
def test_sliding_averages_where_windows_overlap(height: int, width: int) -> None:
    image = torch.randn(3, height, width, generator=seeded(), dtype=torch.float64)

    def predict(window: Tensor) -> Tensor:  # depends on where in the window a pixel is
        rows, columns = window.shape[2:]
        place = torch.arange(rows * columns).reshape(rows, columns)
        return torch.stack([window.sum(dim=1), window[:, 0] * place], dim=1)

    total = torch.zeros(2, height, width, dtype=torch.float64)
    times = torch.zeros(height, width)
    for top, left in slide_windows(height, width, 8, 5):
        logits = predict(image[None, :, top : top + 8, left : left + 8])[0]
        for y in range(logits.shape[1]):
            for x in range(logits.shape[2]):
                total[:, top + y, left + x] += logits[:, y, x]
                times[top + y, left + x] += 1
    torch.testing.assert_close(slide(image, predict, 8, 5), total / times)


def test_sliding_leaves_constant_logits_as_they_are() -> None:
    constant = torch.tensor([0.25, -3, 7])[None, :, None, None]
    logits = slide(torch.zeros(3, 600, 700), lambda window: constant.expand(1, 3, *window.shape[2:]))
    torch.testing.assert_close(logits, constant[0].expand(3, 600, 700))


def test_sliding_needs_logits_of_the_windows_resolution() -> None:
    with pytest.raises(ValueError, match=r"predict gave logits of \[2, 2\] for a window of \[8, 8\]; resize them"):
        slide(torch.zeros(3, 9, 9), lambda window: window[:, :, :2, :2], 8, 5)


def test_padding_is_even() -> None:
    image = torch.rand(1, 3, 13, 28, generator=seeded()) + 1
    padded, (top, left) = pad_to_patches(image, (14, 14))
    assert (padded.shape, top, left) == ((1, 3, 14, 28), 0, 0)  # the odd pixel is below
    padded, (top, left) = pad_to_patches(image[0], (8, 10))
    assert (padded.shape, top, left) == ((3, 16, 30), 1, 1)
    assert torch.equal(padded[:, 1:14, 1:29], image[0])
    assert float(padded.sum()) == pytest.approx(float(image.sum()))
    assert pad_to_patches(torch.zeros(3, 512, 512), (14, 14))[1] == (3, 3)


def test_confusion_counts_labels_by_prediction() -> None:
    labels, predicted = torch.tensor([[0, 1, 255], [1, 1, 0]]), torch.tensor([[0, 2, 1], [1, 1, 2]])
    counts = confusion_matrix(predicted, labels, 3)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 0, 1], [0, 2, 1], [0, 0, 0]]
    assert confusion_matrix(predicted, torch.full_like(labels, 255), 3).sum() == 0
    for classes in (labels, predicted):
        with pytest.raises(ValueError, match=r"class [12] of 1, which are 0 to 0; pixels to ignore have 255"):
            confusion_matrix(classes, classes, 1)
    with pytest.raises(ValueError, match="resize the logits"):
        confusion_matrix(predicted[:1], labels, 3)


def test_the_learning_rate_warms_up_and_falls_to_0() -> None:
    config = SegmentationConfig()
    assert config.rate(0) == pytest.approx(1e-3 * 1e-6)
    assert config.rate(750) == pytest.approx(1e-3 * (1 - 750 / 40_000) * (0.5 + 0.5e-6))
    assert config.rate(1_500) == pytest.approx(1e-3 * 38_500 / 40_000)
    assert config.rate(39_999) == pytest.approx(1e-3 / 40_000)
    assert config.rate(40_000) == 0
    assert max(map(config.rate, range(40_000))) == config.rate(1_500)
    short = SegmentationConfig(steps=400)
    assert [short.rate(step) for step in (0, 15, 200)] == pytest.approx([1e-9, 1e-3 * 385 / 400, 5e-4])
    assert SegmentationConfig(steps=80_000).rate(1_500) == pytest.approx(1e-3 * 78_500 / 80_000)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": math.inf}])
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be"):
        SegmentationConfig(**wrong)  # type: ignore[arg-type]
