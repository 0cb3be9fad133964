"""Images of any mode are RGB and upright; what is none is refused in one line."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import photo
from PIL import Image, ImageOps

from dvt_timm import large_images
from dvt_timm._util import images
from dvt_timm._util.images import (
    ImageError,
    Preprocessing,
    as_image,
    check_aspect,
    is_ours,
    printable,
    read_hashed,
    read_image,
    save_picture,
)
from dvt_timm._util.threads import made_ahead

KINDS = ("jpg", "png", "webp")
TEXT, SHORT, LONG, RATIONAL = 2, 3, 4, 5  # types of EXIF's values


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


def test_a_picture_says_whose_it_is(tmp_path: Path) -> None:
    save_picture(np.zeros((3, 5, 3), dtype=np.uint8), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").text == {"Software": "dvt-timm"}
    photo().save(tmp_path / "b.png")
    assert is_ours(tmp_path / "a.png")
    assert not is_ours(tmp_path / "b.png")
    assert not is_ours(tmp_path / "gone.png")


def test_names_that_are_no_utf_8_can_be_printed() -> None:
    assert printable(Path("\udcff.png")) == "\ufffd.png"


def exif(*tags: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """EXIF of (tag, type, count, value), values of more than 4 bytes at the end."""
    head, ends, tail = {"<": b"II*\0", ">": b"MM\0*"}[order], b"", b""
    for tag, kind, count, value in tags:
        place = 8 + 2 + 12 * len(tags) + 4 + len(tail)
        if len(value) > 4:
            value, tail = struct.pack(order + "L", place), tail + value
        ends += struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0")
    entries = struct.pack(order + "H", len(tags)) + ends + bytes(4)
    return b"Exif\0\0" + head + struct.pack(order + "L", 8) + entries + tail


def orientation(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x0112, SHORT, 1, struct.pack(order + "H", value)


def phone(order: str = "<") -> bytes:
    """What a telephone writes: a turned photo, texts, resolutions, and an IFD of its own for the exposure."""
    ratio = struct.pack(order + "LL", 72, 1)
    tags = [(0x010F, TEXT, 6, b"Maker\0"), (0x0110, TEXT, 9, b"Camera 7\0"), orientation(6, order)]
    tags += [(tag, RATIONAL, 1, ratio) for tag in (0x011A, 0x011B)]
    tags += [(0x0128, SHORT, 1, struct.pack(order + "H", 2)), (0x0132, TEXT, 20, b"2024:01:01 00:00:00\0")]
    return exif(*tags, (0x8769, LONG, 1, struct.pack(order + "L", 26)), order=order)


def encoded(kind: str, metadata: bytes) -> bytes:
    file = io.BytesIO()
    small = photo().resize((15, 12))
    small.save(file, {"jpg": "JPEG"}.get(kind, kind), exif=metadata)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "odd",
    [
        (0x011A, TEXT, 4, b"72\0\0"),  # a resolution that is text
        (0x011A, RATIONAL, 1, struct.pack("<LL", 72, 0)),
        (0x0128, 12, 1, struct.pack("<d", 1e300)),  # a unit that is a double
        (0x010F, SHORT, 3, b"ABCDEF"),
        (0x0131, 99, 1, b"none"),  # a type that does not exist
        (0x9003, LONG, 1 << 31, b"none"),  # a length beyond the end
        (0x8769, LONG, 1, struct.pack("<L", 1 << 31)),  # an IFD beyond the end
    ],
)
def test_orientation_is_read_whatever_other_metadata_hold(kind: str, odd: tuple, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(kind, exif(orientation(6), odd)))
    assert read_image(path).size == (12, 15)
    assert as_image(Image.open(path)).size == (12, 15)
    assert as_image(as_image(path)).size == (12, 15)  # it is not turned once more


@pytest.mark.parametrize(
    "odd",
    [(0x0112, TEXT, 2, b"6\0"), (0x0112, SHORT, 1, b"\x09\0"), (0x0112, LONG, 1, b"\xff" * 4)],
)
def test_an_orientation_that_is_none_turns_nothing(odd: tuple, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("jpg", exif(odd)))
    assert read_image(path).size == (15, 12)


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation(value: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("png", exif(orientation(value))))
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(expected))


def mutated(data: bytes, metadata: bytes, chance: random.Random) -> bytes:
    """Change one to five bytes of the metadata, or one of the rest, or cut the end off, or claim more than there is."""
    changed, start = bytearray(data), data.find(metadata)
    choice = chance.random()
    if choice < 0.1:
        return data[: chance.randrange(len(data))]
    if choice < 0.2:
        changed[chance.randrange(len(data))] = chance.randrange(256)
    elif choice < 0.3:
        place = start + 2 * chance.randrange(len(metadata) // 2)
        changed[place : place + 4] = b"\xff\xff\xff\x7f"
    else:
        for _ in range(chance.randint(1, 5)):
            changed[start + chance.randrange(len(metadata))] = chance.randrange(256)
    return with_checksum(bytes(changed), start, len(metadata))


def with_checksum(data: bytes, start: int, length: int) -> bytes:
    """Let a PNG's checksum be that of its metadata, or no one would look at them."""
    if data[start - 4 : start] != b"eXIf":
        return data
    end = start + length
    return data[:end] + struct.pack(">L", zlib.crc32(data[start - 4 : end])) + data[end + 4 :]


def fuzzed(rounds: int) -> tuple[int, int]:
    """Decode mutations of telephones' photos: how many gave images, how many errors; anything else is raised."""
    files = [(encoded(kind, phone(order)), phone(order)[6:]) for kind in KINDS for order in "<>"]
    chance, good, bad = random.Random(0), 0, 0
    for number in range(rounds):
        try:
            data = mutated(*files[number % len(files)], chance)
            assert images._decoded(data, Path("a"), images.upright_rgb).mode == "RGB"
            good += 1
        except ImageError:
            bad += 1
    return good, bad


@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_hundreds_of_damaged_files_give_images_or_errors() -> None:
    good, bad = fuzzed(600)
    assert good > 400
    assert good + bad == 600


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.slow
def test_thousands_of_damaged_files_give_images_or_errors() -> None:
    good, bad = fuzzed(12_000)
    assert good > 8_000
    assert good + bad == 12_000


def test_large_images_are_read_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for _ in range(2):  # nothing is left changed
        with pytest.raises(
            ImageError, match=r"a.png: 120 x 150 pixels, more than 200 in all; make it smaller, or read"
        ):
            read_image(tmp_path / "a.png")
        with large_images():
            assert read_image(tmp_path / "a.png").size == (150, 120)
            assert list(made_ahead(read_image, [tmp_path / "a.png"], threads=1, most=1))
        assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(images, "MOST_LARGE", 300)
    with large_images(), pytest.raises(ImageError, match=r"more than 300 in all; make it smaller$"):
        read_image(tmp_path / "a.png")


def test_what_is_hashed_is_what_is_decoded(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    image, sha256 = read_hashed(tmp_path / "a.png")
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert np.array_equal(np.asarray(image), np.asarray(read_image(tmp_path / "a.png")))


def test_names_and_places_that_hold_no_image(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "a\0b.png", "embedded null"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "not a JPEG, PNG or WebP image"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_image(path)
