"""What training the segmentation probe does to images is what the protocol says, and stays in its ranges."""

from __future__ import annotations

import colorsys
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from dvt_timm.evaluate import augment


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


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
