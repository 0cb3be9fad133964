"""What the paper's probes do to images and labels in training; all chance is a generator's.

Letters: H x W pixels. Colors are R, G, B in 0..255 until they are normalized. The authors' code rounds to whole colors
after every step, this does not.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Generator, Tensor
from torch.nn.functional import pad

from .._util.images import pixels_of
from .depth_probe import check_frame
from .probes import VOID
from .segmentation_probe import ASPECT, WINDOW, fitted

RATIOS = (0.5, 2.0)  # of the size that images are resized to
LARGEST_SHARE, TRIES = 0.75, 10  # of one class in a crop
BRIGHTNESS = 32.0  # of 255, added or taken away
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18 / 180  # of a turn: OpenCV's hues are 0..180

NYU_CROP = (slice(45, 472), slice(43, 608))  # rows and columns inside the white frame of NYU's images
DEGREES = 2.5
DEPTH_CROP = (416, 544)  # (height, width) in pixels
GAMMA, LIGHT, TINT = (0.9, 1.1), (0.75, 1.25), (0.9, 1.1)


def segmentation_sample(
    image: Image.Image,
    labels: NDArray[np.uint8],
    generator: Generator,
    *,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    size: int = WINDOW,
) -> tuple[Tensor, Tensor]:
    """Resize, crop, flip and distort an image with its labels, as training the segmentation probe does.

    Args:
        image: H x W, RGB.
        labels: [H, W], 255 to ignore.
        generator: draws.
        mean: of R, G, B in 0..1.
        std: of R, G, B in 0..1.
        size: S, pixels of the crop's side.

    Returns:
        The normalized image [3, S, S], float32, with 0 where the crop goes beyond it, and labels [S, S], int64, with
        255 there.

    Raises:
        ImportError: without torchvision.
        ValueError: if labels are of another shape than the image.
    """
    _check_shapes(image, labels.shape)
    ratio = _uniform(generator, *RATIOS)
    target = fitted(*image.size, int(ASPECT * size * ratio), int(size * ratio))
    pixels, classes = _resize(pixels_of(image).permute(2, 0, 1), torch.from_numpy(np.array(labels))[None], target)
    rows, columns = mixed_crop(classes[0], size, generator)
    pixels, classes = _flipped(generator, pixels[:, rows, columns].float(), classes[:, rows, columns])
    pixels = _normalized(distort(pixels, generator), mean, std)
    beyond = (0, size - pixels.shape[2], 0, size - pixels.shape[1])
    return pad(pixels, beyond), pad(classes[0].long(), beyond, value=VOID)


def depth_sample(
    image: Image.Image,
    depth: NDArray[np.float32],
    generator: Generator,
    *,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    uncovered: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Crop, rotate, flip and color an image with its depths, as training the depth probe does.

    Args:
        image: 480 x 640, RGB.
        depth: [480, 640] in meters, 0 where there is none.
        generator: draws.
        mean: of R, G, B in 0..1.
        std: of R, G, B in 0..1.
        uncovered: depth in meters where the rotation leaves none, 0 for none; the authors' code has 255.

    Returns:
        The normalized image [3, 416, 544], float32, and depths [1, 416, 544].

    Raises:
        ImportError: without torchvision.
        ValueError: on other shapes.
    """
    _check_shapes(image, depth.shape)
    check_frame(depth.shape)
    pixels, depths = pixels_of(image).permute(2, 0, 1).float(), torch.from_numpy(np.array(depth))[None]
    rows, columns = NYU_CROP
    pixels, depths = _rotated(generator, pixels[:, rows, columns], depths[:, rows, columns], uncovered)
    pixels, depths = _flipped(generator, pixels, depths)
    rows, columns = _random_crop(pixels.shape[1:], DEPTH_CROP, generator)
    pixels, depths = pixels[:, rows, columns], depths[:, rows, columns]
    if _coin(generator):
        pixels = recolor(pixels, generator)
    return _normalized(pixels, mean, std), depths.contiguous()


def mixed_crop(labels: Tensor, size: int, generator: Generator) -> tuple[slice, slice]:
    """Draw a crop in which no class holds 75 % of the labeled pixels or more; after ten tries, any.

    Args:
        labels: [H, W], 255 to ignore.
        size: pixels of the crop's side; a shorter side of the labels is taken whole.
        generator: draws.

    Returns:
        Rows and columns.
    """
    crop = _random_crop(labels.shape, (size, size), generator)
    for _ in range(TRIES):
        counts = torch.bincount(labels[crop].flatten(), minlength=VOID + 1)[:VOID]
        if counts.max() < LARGEST_SHARE * counts.sum():
            break
        crop = _random_crop(labels.shape, (size, size), generator)
    return crop


def distort(pixels: Tensor, generator: Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, each with probability 1/2, as mmsegmentation does.

    Its contrast multiplies colors, which torchvision calls brightness, and its saturation is that of HSV, not a blend
    with gray as torchvision's.

    Args:
        pixels: [3, H, W] in 0..255, float.
        generator: draws.
    """
    if _coin(generator):
        pixels = (pixels + _uniform(generator, -BRIGHTNESS, BRIGHTNESS)).clamp(0, 255)
    contrast_first = _coin(generator)
    if contrast_first:
        pixels = _contrast(pixels, generator)
    if _coin(generator):
        pixels = saturate(pixels, _uniform(generator, *SATURATION))
    if _coin(generator):
        turn = _uniform(generator, -HUE, HUE)
        pixels = _torchvision().adjust_hue(pixels / 255, turn) * 255
    return pixels if contrast_first else _contrast(pixels, generator)


def saturate(pixels: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, at most up to 1: hue and value stay.

    Args:
        pixels: [3, H, W] in 0..255, float.
        factor: at least 0.
    """
    value = pixels.amax(dim=0)
    below = value - pixels  # of a fixed hue and value, in proportion to the saturation
    most = value / below.amax(dim=0).clamp(min=1e-6)
    return value - below * most.clamp(max=factor)


def recolor(pixels: Tensor, generator: Generator) -> Tensor:
    """Raise colors to a power, then multiply all, then each channel.

    As in the authors' code the power acts on 0..255, where .9 makes 255 a 147; AdaBins's acts on 0..1.

    Args:
        pixels: [3, H, W] in 0..255, float.
        generator: draws.
    """
    pixels = pixels ** _uniform(generator, *GAMMA) * _uniform(generator, *LIGHT)
    tint = [_uniform(generator, *TINT) for _ in range(3)]
    return (pixels * pixels.new_tensor(tint)[:, None, None]).clamp(0, 255)


def _contrast(pixels: Tensor, generator: Generator) -> Tensor:
    return (pixels * _uniform(generator, *CONTRAST)).clamp(0, 255) if _coin(generator) else pixels


def _resize(pixels: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize [3, H, W] and [1, H, W] to (width, height), without antialiasing and by the nearest, as OpenCV does."""
    functional = _torchvision()
    modes = functional.InterpolationMode
    return (
        functional.resize(pixels, list(size[::-1]), modes.BILINEAR, antialias=False),
        functional.resize(labels, list(size[::-1]), modes.NEAREST),
    )


def _rotated(generator: Generator, pixels: Tensor, depths: Tensor, uncovered: float) -> tuple[Tensor, Tensor]:
    """Rotate [3, H, W] and [1, H, W] about the middle, or leave them; pixels that are uncovered are 0."""
    if not _coin(generator):
        return pixels, depths
    functional, angle = _torchvision(), _uniform(generator, -DEGREES, DEGREES)
    modes = functional.InterpolationMode
    turned = functional.rotate(pixels, angle, modes.BILINEAR)
    return turned, functional.rotate(depths, angle, modes.NEAREST, fill=[uncovered])


def _flipped(generator: Generator, *arrays: Tensor) -> tuple[Tensor, ...]:
    return tuple(array.flip(2) for array in arrays) if _coin(generator) else arrays


def _random_crop(shape: tuple[int, ...], size: tuple[int, int], generator: Generator) -> tuple[slice, slice]:
    """Draw rows and columns of a crop of (height, width); a shorter side is taken whole."""
    top, left = (
        int(torch.randint(max(side - part, 0) + 1, (), generator=generator))
        for side, part in zip(shape, size, strict=True)
    )
    return slice(top, top + size[0]), slice(left, left + size[1])


def _normalized(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels / 255 - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _coin(generator: Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)


def _check_shapes(image: Image.Image, shape: tuple[int, ...]) -> None:
    if shape != (image.height, image.width):
        raise ValueError(
            f"the image has {image.height} x {image.width} pixels, its labels {list(shape)}; they must agree"
        )


def _torchvision() -> ModuleType:
    try:
        from torchvision.transforms.v2 import functional
    except ImportError as error:
        raise ImportError("training a probe needs torchvision; pip install 'dvt-timm[evaluate]'") from error
    return functional
