"""Image files, and what a model wants of them."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import resolve_model_data_config
from torch import Tensor

from .files import replacing

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's names of them
# what Pillow raises
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, Image.DecompressionBombError)
MAX_ASPECT = 20  # of an image's sides: beyond it, the longer one makes more patches than attention can take


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
        ImageError: if it is missing, none of these, or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return upright_rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a JPEG, PNG or WebP image") from error
    except UNREADABLE as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


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
    """Convert an image of any mode to RGB, turned as its EXIF orientation says."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
        upright = Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
    return upright.convert("RGB")


def preprocessing_of(model: Any, size: int | None) -> Preprocessing:
    """Ask timm what a model takes as its input; `size` in pixels, None for the model's own."""
    config = resolve_model_data_config(model)
    size = size or min(config["input_size"][1:])
    mean, std = tuple(config["mean"]), tuple(config["std"])  # lists, where a config.json says them
    return Preprocessing(size, model.patch_embed.patch_size, mean, std, config["interpolation"])


def check_aspect(path: Path, image: Image.Image) -> None:
    """Raise ImageError where one side makes more patches than attention can take."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        size = f"{image.height} x {image.width}"
        raise ImageError(f"{path}: {size} pixels, one side over {MAX_ASPECT} times the other; crop it into parts")


def save_picture(pixels: NDArray[np.uint8], target: Path) -> None:
    """Write [H, W, 3] as an image file, whole or not at all; its folder is made if need be.

    Raises:
        OSError: if it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as scratch:
        Image.fromarray(pixels).save(scratch)


def images_in(folder: Path) -> list[Path]:
    """List the JPEG, PNG and WebP files in a folder and below it, in sorted order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def printable(path: str | Path) -> str:
    """Write a path as text; file names need not be UTF-8, those of safetensors files must be."""
    return os.fsencode(path).decode(errors="replace")
