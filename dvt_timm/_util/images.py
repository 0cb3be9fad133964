"""Image files, and what a model wants of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile
from timm.data import resolve_model_data_config
from torch import Tensor

from .files import replacing

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp")
HEAD = 16  # bytes that tell the kind of an image
BIT_DEPTH = 24  # place in a PNG
ORIENTATION = 0x0112  # EXIF's tag
TURNS: dict[Any, Image.Transpose] = {  # its values, and what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_ASPECT = 20  # of an image's sides: beyond it, the longer one makes more patches than attention can take
MOST_LARGE = 1 << 29  # pixels of what `large_images` lets through: some 5 GB of memory
OURS = ("Software", "dvt-timm")  # of the text in a PNG: it is a picture that this package has drawn
MARK = b"tEXt" + "\0".join(OURS).encode()  # the same in the first bytes of the file

_large: ContextVar[bool] = ContextVar("large_images", default=False)


class ImageError(ValueError):
    """An image cannot be processed, others may be; the text says why in one line."""


@dataclass(frozen=True)
class Preprocessing:
    """The way from an image to a model's input."""

    size: int  # pixels of the shorter side, before rounding to whole patches
    patch_size: tuple[int, int]  # (height, width) in pixels
    mean: tuple[float, ...]  # of R, G, B in 0..1
    std: tuple[float, ...]
    interpolation: str  # timm's name, lower case

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """Give (height, width) in pixels with the shorter side near `size`, both whole patches, at least one."""
        scale = self.size / min(image.size)
        height, width = (
            max(patch, round(side * scale / patch) * patch)
            for side, patch in zip((image.height, image.width), self.patch_size, strict=True)
        )
        return height, width

    def resize(self, image: Image.Image) -> Image.Image:
        """Resize an image to `size_of(image)`."""
        return self.squeeze(image, self.size_of(image))

    def squeeze(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Resize an image to (height, width) in pixels, whatever its own aspect ratio."""
        return image.resize(size[::-1], Image.Resampling[self.interpolation.upper()])

    def to_tensor(self, image: Image.Image) -> Tensor:  # [1, 3, H, W]
        """Make a batch of an RGB image: its normalized pixels, float32."""
        return self.normalize(pixels_of(image)[None])

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize pixels: uint8 [B, H, W, 3] -> float32 [B, 3, H, W], on the same device."""
        mean, std = (pixels.new_tensor(values, dtype=torch.float32) for values in (self.mean, self.std))
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def pixels_of(image: Image.Image) -> Tensor:  # [H, W, 3]
    """Read an RGB image's pixels, uint8."""
    return torch.from_numpy(np.array(image))


def read_image(path: Path) -> Image.Image:
    """Read a JPEG, PNG or WebP as RGB, upright as its EXIF orientation says.

    Raises:
        ImageError: if it is missing, none of these, damaged, or has too many pixels (`large_images`).
    """
    return _decoded(_bytes_of(path), path, upright_rgb)


def read_hashed(path: Path) -> tuple[Image.Image, str]:
    """Read an image as `read_image` does, and give the SHA-256 of the very bytes that it was read from.

    Raises:
        ImageError: as `read_image`.
    """
    data = _bytes_of(path)
    return _decoded(data, path, upright_rgb), hashlib.sha256(data).hexdigest()


def read_png_and_bits(path: Path) -> tuple[Image.Image, int]:
    """Read a PNG in the mode that Pillow gives it, and how many bits the file has for a value.

    Raises:
        ImageError: if it is missing, no PNG, damaged, or has too many pixels (`large_images`).
    """
    data = _bytes_of(path)
    if _reader_of(data) is not PngImageFile:
        raise ImageError(f"{path}: not a PNG image")
    return _decoded(data, path, Image.Image.copy), data[BIT_DEPTH]


@contextmanager
def large_images() -> Iterator[None]:
    """Read images of up to 2**29 pixels in this context, rather than of as many as Pillow takes for harmless.

    A small file can claim any number of pixels, and take gigabytes of memory: for images of which that is no surprise.
    """
    token = _large.set(True)
    try:
        yield
    finally:
        _large.reset(token)


def _bytes_of(path: Path) -> bytes:
    """Read an image file; of any other, such as a device that has no end, its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            return head if _reader_of(head) is None else head + file.read()
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a name with NUL in it
        raise ImageError(f"{path}: {reason_of(error)}") from error


def _decoded(data: bytes, path: Path, read: Callable[[Image.Image], Image.Image]) -> Image.Image:
    reader = _reader_of(data)
    if reader is None:
        raise ImageError(f"{path}: not a JPEG, PNG or WebP image")
    try:
        with reader(BytesIO(data)) as image:
            _check_pixels(path, image)
            return read(image)
    except ImageError:
        raise
    except Exception as error:  # decoders raise what they happen to meet in a damaged file, of any class
        raise ImageError(f"{path}: {reason_of(error)}") from error


def _reader_of(data: bytes) -> type[ImageFile] | None:
    """Choose Pillow's class of a kind of files by their first bytes; `Image.open` would look at its own limit."""
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    return WebPImageFile if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else None


def _check_pixels(path: Path, image: Image.Image) -> None:
    """Raise ImageError if an image that is not decoded yet has more pixels than one may."""
    limit = Image.MAX_IMAGE_PIXELS  # Pillow takes twice as many for an attack
    most = MOST_LARGE if _large.get() or limit is None else 2 * limit
    if image.width * image.height > most:
        way_out = "" if most == MOST_LARGE else ", or read it within dvt_timm.large_images() (--large-images)"
        raise ImageError(
            f"{path}: {image.height} x {image.width} pixels, more than {most:,} in all; make it smaller{way_out}"
        )


def reason_of(error: BaseException) -> str:
    """Say why a file cannot be read, without its name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def as_image(image: Image.Image | str | os.PathLike[str]) -> Image.Image:
    """Make an image, or the one at a path, RGB and upright.

    Raises:
        ImageError: if the file is no image.
        TypeError: if it is neither an image nor a path.
        ValueError: if the image has no pixels.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"an image is a PIL image or the path of one, got {type(image).__name__}; PIL.Image.fromarray makes one of "
            "an array of uint8"
        )
    if 0 in image.size:
        raise ValueError(f"the image has no pixels: {image.width} x {image.height}")
    return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, turned as its EXIF orientation says; it says nothing of that any more."""
    image.load()
    turn = _turn_of(image)
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
        upright = Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
    rgb = upright.convert("RGB")
    rgb.info = {}
    return rgb


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """Read from the orientation alone what makes an image upright: other tags may hold anything."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # of any class, as above; the pixels could be read, and are left as they lie
        return None


def preprocessing_of(model: Any, size: int | None) -> Preprocessing:
    """Ask timm what a model takes as its input; `size` in pixels, None for the model's own."""
    config = resolve_model_data_config(model)
    size = size or min(config["input_size"][1:])
    mean, std = tuple(config["mean"]), tuple(config["std"])  # lists, where a config.json says them
    return Preprocessing(size, model.patch_embed.patch_size, mean, std, config["interpolation"])


def check_aspect(path: Path | str, image: Image.Image) -> None:
    """Raise ImageError where one side makes more patches than attention can take."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        size = f"{image.height} x {image.width}"
        raise ImageError(f"{path}: {size} pixels, one side over {MAX_ASPECT} times the other; crop it into parts")


def save_picture(pixels: NDArray[np.uint8], target: Path, caption: str = "") -> None:
    """Write [H, W, 3] as a PNG that says whose it is, whole or not at all; its folder is made if need be.

    Args:
        pixels: uint8, RGB.
        target: its path.
        caption: what the picture shows, the text `Description` of the PNG.

    Raises:
        OSError: if it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    ours = PngInfo()
    ours.add_text(*OURS)  # first: `is_ours` reads no further
    if caption:
        ours.add_text("Description", caption)
    with replacing(target) as scratch:
        Image.fromarray(pixels).save(scratch, pnginfo=ours)


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that `save_picture` has written; of one that cannot be read nobody knows."""
    try:
        with path.open("rb") as file:
            return MARK in file.read(128)
    except OSError:
        return False


def printable(path: str | Path) -> str:
    """Write a path as text; file names need not be UTF-8, those of safetensors files must be."""
    return os.fsencode(path).decode(errors="replace")
