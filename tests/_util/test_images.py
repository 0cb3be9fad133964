"""Images of any mode are RGB and upright; what is none is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import photo
from PIL import Image

from dvt_timm._util.images import (
    ImageError,
    Preprocessing,
    as_image,
    check_aspect,
    images_in,
    printable,
    read_image,
    save_picture,
)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_modes(mode: str) -> None:
    image = as_image(photo().convert(mode))
    assert image.mode == "RGB"
    assert image.size == photo().size


def test_sixteen_bits_are_scaled_and_orientation_is_obeyed(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert np.asarray(as_image(deep))[0, :, 0].tolist() == [0, 1, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photo().save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == photo().size[::-1]


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(ImageError, match=r"a.png: No such file or directory$"):
        read_image(path)
    path.write_bytes(b"text")
    with pytest.raises(ImageError, match=r"a.png: not a JPEG, PNG or WebP image$"):
        read_image(path)
    photo().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match=r"a.png: "):
        read_image(path)


def test_one_side_may_be_twenty_times_the_other() -> None:
    check_aspect(Path("a.png"), Image.new("RGB", (200, 10)))
    with pytest.raises(ImageError, match=r"10 x 201 pixels, one side over 20 times the other; crop it"):
        check_aspect(Path("a.png"), Image.new("RGB", (201, 10)))


def test_sizes_are_whole_patches() -> None:
    preprocessing = Preprocessing(56, (14, 16), (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert preprocessing.size_of(Image.new("RGB", (300, 200))) == (56, 80)
    assert preprocessing.size_of(Image.new("RGB", (10, 300))) == (1680, 64)
    assert preprocessing.resize(photo()).size == preprocessing.size_of(photo())[::-1]


def test_pixels_become_what_the_model_was_trained_on() -> None:
    preprocessing = Preprocessing(2, (1, 1), (0.5, 0.0, 0.2), (0.5, 1.0, 2.0), "bicubic")
    tensor = preprocessing.to_tensor(Image.new("RGB", (2, 3), (255, 0, 51)))
    assert tensor.shape == (1, 3, 3, 2)
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0])


def test_pictures_are_written_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    save_picture(pixels, tmp_path / "new/a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new/a.png")), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_images_are_found_in_folders_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in ("c.JPG", "b/a.webp", "notes.txt"):
        (tmp_path / name).touch()
    assert images_in(tmp_path) == [tmp_path / "b/a.webp", tmp_path / "c.JPG"]


def test_names_that_are_no_utf_8_can_be_printed() -> None:
    assert printable(Path("\udcff.png")) == "\ufffd.png"
