"""The segmentation probe does by formula what slow twins do step by step, and trains on what the protocol says."""

from __future__ import annotations

import colorsys
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from dvt_timm.evaluate import augment, segmentation_probe
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


def test_a_sample_keeps_image_and_labels_together() -> None:
    labels = np.kron(np.array([[1, 2], [3, 255]], dtype=np.uint8), np.ones((40, 50), dtype=np.uint8))
    image = Image.fromarray(np.stack([labels] * 3, axis=2))
    sizes = set()
    for seed in range(8):
        pixels, classes = augment.segmentation_sample(
            image, labels, seeded(seed), mean=(0, 0, 0), std=(1 / 255,) * 3, size=64
        )
        assert (pixels.shape, pixels.dtype, classes.shape, classes.dtype) == (
            (3, 64, 64),
            torch.float32,
            (64, 64),
            torch.int64,
        )
        assert set(classes.unique().tolist()) <= {1, 2, 3, 255}
        sizes.add(int((pixels.amax(dim=(0, 1)) > 0).sum()))
        means = [float(pixels[:, classes == label].mean()) for label in (1, 255) if (classes == label).any()]
        assert means == sorted(means)
    assert min(sizes) < 64 == max(sizes)  # half the size leaves room to pad


def test_a_sample_is_padded_below_and_right() -> None:
    image = Image.new("RGB", (60, 30), (255, 255, 255))
    drawn = (
        augment.segmentation_sample(image, np.zeros((30, 60), np.uint8), seeded(seed), size=64) for seed in range(9)
    )
    pixels, classes = next((a, b) for a, b in drawn if (b == 255).any())
    height = int((classes[:, 0] == 0).sum())
    assert 32 <= height < 64
    assert (classes[:height] == 0).all()
    assert (classes[height:] == 255).all()
    assert (pixels[:, height:] == 0).all()
    assert (pixels[:, :height] > 0).all()


def test_resizing_draws_the_ratio() -> None:
    labels = np.tile(np.arange(50, dtype=np.uint8) // 10, (40, 1))  # stripes of 10 pixels, 4 to 16 after resizing
    image, generator, widths = Image.new("RGB", (50, 40)), seeded(), []
    for _ in range(60):
        row = augment.segmentation_sample(image, labels, generator, size=32)[1][0]
        stripes = row[row != 255].unique_consecutive(return_counts=True)[1]
        widths += stripes[1:-1].tolist()  # those that the crop does not cut
    assert 3 <= min(widths) <= 5
    assert 15 <= max(widths) <= 17


def test_normalization() -> None:
    image = Image.new("RGB", (64, 64), (100, 100, 100))
    for seed in range(50):  # until nothing is distorted
        pixels, _ = augment.segmentation_sample(image, np.zeros((64, 64), np.uint8), seeded(seed), size=16)
        expected = [(100 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
        if pixels[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-5):
            return
    raise AssertionError("no image is as it was")


def test_crops_are_mixed() -> None:
    half = torch.zeros(40, 200, dtype=torch.uint8)
    half[:, 100:] = 1  # a crop of 40 is mixed if it begins at 70 < left < 90: one in eight is, ten tries find most
    generator = seeded()
    lefts = [augment.mixed_crop(half, 40, generator)[1].start for _ in range(300)]
    mixed = [70 < left < 90 for left in lefts]
    assert np.mean(mixed) == pytest.approx(1 - (1 - 19 / 161) ** 11, abs=0.08)
    assert min(lefts) < 20  # where all tries fail, any crop will do
    half[:, 60:140] = 255  # ignored pixels do not count: 110 pixels may hold but one class
    lefts = [augment.mixed_crop(half, 110, generator)[1].start for _ in range(100)]
    shares = [max(60 - left, 0) / (max(60 - left, 0) + max(left + 110 - 140, 0)) for left in lefts]
    assert np.mean([0.25 < share < 0.75 for share in shares]) > 0.9
    rows, columns = augment.mixed_crop(half[:30], 40, generator)
    assert (rows.start, half[:30][rows, columns].shape) == (0, (30, 40))


def test_brightness_and_contrast_of_gray_stay_in_range() -> None:
    generator, gray = seeded(), torch.full((3, 1, 1), 100.0)
    drawn = torch.stack([augment.distort(gray, generator) for _ in range(2000)])
    assert (drawn - drawn[:, :1]).abs().max() < 1e-3  # gray stays gray
    values = drawn[:, 0, 0, 0]
    assert 34 <= values.min() < 40  # (100 - 32) * .5
    assert 190 < values.max() <= 198  # (100 + 32) * 1.5
    same = ((values - 100).abs() < 1e-3).double().mean()
    assert float(same) == pytest.approx(0.25, abs=0.04)  # neither one nor the other
    dark = torch.stack([augment.distort(torch.full((3, 1, 1), 10.0), generator) for _ in range(200)])
    assert dark.min() == 0


def test_hue_and_saturation_stay_in_range() -> None:
    generator, color = seeded(), torch.tensor([120.0, 80, 80])[:, None, None]  # hue 0, saturation 1/3
    drawn = [augment.distort(color, generator).flatten() for _ in range(1500)]
    hsv = np.array([colorsys.rgb_to_hsv(*(float(channel) for channel in pixel / 255)) for pixel in drawn])
    hues, kept = (hsv[:, 0] + 0.5) % 1 - 0.5, np.abs(hsv[:, 2] * 255 - 120) < 1e-3  # without brightness and contrast
    assert -0.1001 < hues.min() < -0.09
    assert 0.09 < hues.max() < 0.1001
    assert np.mean(np.abs(hues) < 1e-5) == pytest.approx(0.5, abs=0.05)
    saturations = hsv[kept, 1] * 3
    assert 0.499 < saturations.min() < 0.55
    assert 1.45 < saturations.max() < 1.501
    assert np.mean(np.abs(saturations - 1) < 1e-3) == pytest.approx(0.5, abs=0.1)


def test_contrast_comes_before_or_after_the_colors() -> None:
    """Where contrast clips a color whose hue was shifted, the hue ends farther from 0 than hues are ever shifted."""
    generator, rng, color = seeded(), np.random.default_rng(0), np.array([255.0, 0, 0])

    def hue(pixel: np.ndarray) -> float:
        return abs((colorsys.rgb_to_hsv(*pixel)[0] + 0.5) % 1 - 0.5)

    def distorted(contrast_first: bool) -> np.ndarray:
        does, factor = rng.random(4) < 0.5, rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
        pixel = np.clip(color + does[0] * rng.uniform(-32, 32), 0, 255)
        pixel = np.minimum(pixel * factor, 255) if contrast_first else pixel
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        s = min(s * (rng.uniform(0.5, 1.5) if does[1] else 1), 1)
        pixel = np.array(colorsys.hsv_to_rgb((h + does[2] * rng.uniform(-0.1, 0.1)) % 1, s, v))
        return pixel if contrast_first else np.minimum(pixel * factor, 255)

    start = torch.from_numpy(color)[:, None, None]
    found = [hue(augment.distort(start, generator).flatten().numpy()) > 0.1001 for _ in range(4000)]
    first, last = ([hue(distorted(order)) > 0.1001 for _ in range(10_000)] for order in (True, False))
    assert not any(first)
    assert np.mean(found) == pytest.approx(np.mean(last) / 2, rel=0.4)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    pixels = 255 * torch.rand(3, 4, 5, generator=seeded())
    pixels[:, 0, 0], pixels[:, 0, 1] = 0, 77  # black and gray
    found = augment.saturate(pixels, factor)
    for y in range(4):
        for x in range(5):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[:, y, x] / 255).tolist())
            expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)
            assert (found[:, y, x] / 255).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_same_generator_gives_the_same_sample() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    labels = np.random.default_rng(1).integers(0, 3, (40, 50), dtype=np.uint8)
    one, two = (augment.segmentation_sample(image, labels, seeded(3), size=32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], augment.segmentation_sample(image, labels, seeded(4), size=32)[0])


def test_what_a_sample_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (50, 40))
    with pytest.raises(ValueError, match=r"the image has 40 x 50 pixels, its labels \[50, 40\]"):
        augment.segmentation_sample(image, np.zeros((50, 40), np.uint8), seeded())
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(ImportError, match=r"needs torchvision; pip install 'dvt-timm\[evaluate\]'"):
        augment.segmentation_sample(image, np.zeros((40, 50), np.uint8), seeded())
