"""Image files as the commands read them: every mode and orientation, sizes in whole patches, what is no image."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command import picture, saved
from helpers import DEMO
from PIL import Image

from dvt_timm._util import images


def test_pixels_are_normalized_as_timm_says() -> None:
    preprocessing = images.Preprocessing(14, (14, 14), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), "bicubic")
    pixels = preprocessing.to_tensor(Image.new("RGB", (14, 14), (255, 0, 51)))
    torch.testing.assert_close(pixels[0, :, 3, 4], torch.tensor([1.0, -1.0, 0.2]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((90, 60), (84, 56)), ((60, 90), (56, 84)), ((1000, 10), (5600, 56)), ((57, 56), (56, 56)), ((3, 3), (56, 56))],
)
def test_resize_keeps_the_aspect_ratio_in_whole_patches(size: tuple[int, int], expected: tuple[int, int]) -> None:
    preprocessing = images.Preprocessing(56, (14, 14), (0.0,) * 3, (1.0,) * 3, "bicubic")
    assert preprocessing.resize(Image.new("RGB", size)).size == expected


def test_resize_gives_at_least_one_patch() -> None:
    preprocessing = images.Preprocessing(3, (14, 14), (0.0,) * 3, (1.0,) * 3, "bicubic")
    assert preprocessing.resize(Image.new("RGB", (50, 40))).size == (14, 14)


def test_default_size_is_the_models() -> None:
    model = timm.create_model(DEMO, num_classes=0)
    assert images.preprocessing_of(model, None).size == 518


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "RGB"])
def test_read_image_of_every_mode(tmp_path: Path, mode: str) -> None:
    image = images.read_image(saved(tmp_path / "a.png", picture().convert(mode)))
    assert image.mode == "RGB"
    assert image.size == (90, 60)


def test_read_image_palette_with_transparency(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", picture().convert("P"), transparency=3)
    assert images.read_image(path).mode == "RGB"


def test_read_image_cmyk_jpeg(tmp_path: Path) -> None:
    assert images.read_image(saved(tmp_path / "a.jpg", picture().convert("CMYK"))).mode == "RGB"


def test_read_image_scales_16_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    pixels = np.asarray(images.read_image(saved(tmp_path / "a.png", Image.fromarray(ramp))))
    np.testing.assert_array_equal(pixels[..., 0], ramp // 256)


def test_other_formats_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(images.ImageError, match="not a JPEG, PNG or WebP"):
        images.read_image(saved(tmp_path / "a.bmp"))


def test_decompression_bomb_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(images.ImageError, match=r"60 x 90 pixels, more than 200 in all; .*\(--large-images\)$"):
        images.read_image(saved(tmp_path / "a.png"))


def test_whatever_decoding_raises_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (struct.error("unpack requires 12 bytes"), MemoryError(), AttributeError("encode")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as context:
            context.setattr(images, "upright_rgb", fail)
            with pytest.raises(images.ImageError, match=r"a.png: \S+"):
                images.read_image(saved(tmp_path / "a.png"))
        with monkeypatch.context() as context:
            context.setattr(Image.Image, "getexif", fail)
            assert images.read_image(tmp_path / "a.png").size == (90, 60)
