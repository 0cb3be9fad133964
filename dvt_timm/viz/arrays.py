"""Reads what users hand in: feature maps and images, from tensors, arrays and PIL, as arrays of one layout.

A map is read once, where it is handed in: what the package computes with, `Floats`, is [h, w, C] and never guessed at.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]
FeatureMap: TypeAlias = "Tensor | NDArray[np.floating]"  # [C, h, w], [1, C, h, w] or [h, w, C]
ImageLike: TypeAlias = "Image.Image | Tensor | Pixels"  # [H, W, 3], [3, H, W] or [1, 3, H, W] uint8, or PIL's

MIN_CHANNELS = 64  # no ViT has fewer
ROUNDING = 1e-12  # relative


def as_map(features: FeatureMap) -> Floats:
    """Read one feature map, by the rule that `dvt_timm.viz` states.

    Args:
        features: a tensor on any device or an array, of any floating-point type.

    Returns:
        [h, w, C].

    Raises:
        ValueError: if the map has another shape, is empty or is not finite.
    """
    if features is None:
        raise ValueError("a feature map is missing, got None; a model without a denoiser has no denoised one")
    values = features.detach().cpu().double().numpy() if isinstance(features, Tensor) else features
    array: Floats = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not (array.ndim == 3 or (array.ndim == 4 and len(array) == 1)):
        raise ValueError(
            f"a feature map is (C, h, w), (1, C, h, w) or (h, w, C), got shape {array.shape}; pass the map of one image"
        )
    if array.ndim == 4 or _channels_come_first(array.shape):
        array = np.ascontiguousarray(np.moveaxis(array.reshape(array.shape[-3:]), 0, 2))
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array).all(axis=2)).sum())
        raise ValueError(f"{bad} of {array[..., 0].size} patches hold NaN or Inf; compute the features in float32")
    return array


def as_maps(maps: Sequence[FeatureMap]) -> list[Floats]:
    """Read the feature maps of one model, [h_i, w_i, C]; grids may differ.

    Raises:
        ValueError: if there is none, if `as_map` refuses one, or if they differ in channels.
    """
    if isinstance(maps, Tensor | np.ndarray):
        raise ValueError(f"a list of feature maps is wanted, got one array of shape {tuple(maps.shape)}; pass [map]")
    arrays = [as_map(features) for features in maps]
    if not arrays:
        raise ValueError("no feature maps given; pass at least one")
    return same_channels(arrays)


def same_channels(arrays: list[Floats]) -> list[Floats]:  # [h_i, w_i, C] each
    """Raise ValueError if maps differ in channels; give them back."""
    if len({array.shape[2] for array in arrays}) > 1:
        raise ValueError(f"maps must have the same channels, got {[array.shape for array in arrays]}; use one model")
    return arrays


def channels_first(features: Tensor) -> Tensor:  # [h, w, C] -> [1, C, h, w]
    """Lay a map out as `as_map` cannot mistake it: of three axes it has to guess which one the channels are."""
    return features.permute(2, 0, 1)[None]


def as_image(image: ImageLike) -> Pixels:
    """Read one image.

    Args:
        image: a PIL image, or [H, W, 3], [3, H, W] or [1, 3, H, W] in 0..255, uint8.

    Returns:
        [H, W, 3].

    Raises:
        ValueError: if it has another shape or type, or is empty.
    """
    if isinstance(image, str | os.PathLike):
        raise ValueError(f"image must be an image, got the path {os.fspath(image)!r}; open it with PIL.Image.open")
    pixels: Any = image.convert("RGB") if isinstance(image, Image.Image) else image
    pixels = pixels.cpu() if isinstance(pixels, Tensor) else np.asarray(pixels)
    shape, dtype = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
    frame = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if len(frame) != 3 or 3 not in (frame[0], frame[2]) or 0 in frame or dtype != "uint8":
        raise ValueError(
            f"image must be a PIL image, (H, W, 3) uint8 or (3, H, W) uint8, got {shape} {dtype}; pass the RGB image "
            "in 0..255, before it is normalized"
        )
    array: Pixels = np.asarray(pixels).reshape(frame)
    return array if frame[2] == 3 else np.moveaxis(array, 0, 2)


def as_pixels(colors: Floats) -> Pixels:  # [h, w, 3] in 0..1
    """Write colors in 0..255."""
    return (255 * colors).round().astype(np.uint8)


def tokens_of(arrays: list[Floats]) -> Floats:  # [N, C]
    """Stack the patches of all maps."""
    return np.concatenate([array.reshape(-1, array.shape[2]) for array in arrays])


def split(rows: NDArray[Any], arrays: list[Floats]) -> list[NDArray[Any]]:  # rows: [N, ...]
    """Undo `tokens_of`: the rows of every map, back on its grid."""
    ends = np.cumsum([array[..., 0].size for array in arrays])[:-1]
    parts = zip(np.split(rows, ends), arrays, strict=True)
    return [part.reshape(*array.shape[:2], *rows.shape[1:]) for part, array in parts]


def centered(array: Floats) -> Floats:  # [h, w, C]
    """Take a map's mean off; what is left of a constant is zero, without the noise of rounding."""
    moved = array - array.mean(axis=(0, 1))
    return np.where(np.abs(moved) > ROUNDING * np.abs(array).max(), moved, 0.0)


def unit(tokens: Floats) -> Floats:  # [..., C]
    """Scale tokens to length 1; zeros stay zeros."""
    norms = np.linalg.norm(tokens, axis=-1, keepdims=True)
    return tokens / np.where(norms > 0, norms, 1.0)


def _channels_come_first(shape: tuple[int, ...]) -> bool:
    return shape[0] >= MIN_CHANNELS and shape[0] > max(shape[1:])
