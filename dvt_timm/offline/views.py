"""Features of many views of an image.

Letters: V views, h x w patches, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Integral
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from .._util.images import Preprocessing, as_image, pixels_of, preprocessing_of
from .._util.modules import uncompiled
from .._util.threads import made_ahead
from ..cleaned import plain_intermediates
from ..features import check_patches
from ..positions import SIDES, WHOLE, PositionWindows, sample_position_windows, under_windows
from .coords import PatchGrid, Windows, patch_xy
from .solution import Views
from .windows import SHIFT, ZOOM, sample_windows

Kind = Literal["jitter", "crops", "positions", "jitter+positions"]
DEFAULT_VIEWS = {"jitter": 24, "crops": 768, "positions": 8, "jitter+positions": 24}
MOST_ZOOM = 4  # sides of an image that a view may show


@dataclass(frozen=True)
class ViewStream:
    """Views of one image, computed batch by batch while one iterates; the last view is the whole image."""

    model: Any  # timm VisionTransformer or Eva
    image: Image.Image  # RGB
    windows: Windows  # V of them
    positions: PositionWindows | None  # V of them, where views move the positions
    xy: Tensor  # [V, h, w, 2] in [0, 1], image frame, on the device of the features
    preprocessing: Preprocessing
    size: tuple[int, int]  # (H, W) of every view in pixels
    layer: int  # block whose output is read
    batch_size: int
    autocast: torch.dtype
    progress: bool

    @property
    def num_views(self) -> int:
        """How many views there are (V), the whole image included."""
        return len(self.windows)

    def __iter__(self) -> Iterator[Views]:
        with tqdm(total=self.num_views, unit="view", leave=False, disable=None if self.progress else True) as bar:
            start = 0
            for pixels in self._batches():
                features = self._features(pixels, start).to(self.xy.device)
                yield Views(features, self.xy[start : start + len(pixels)])
                start += len(pixels)
                bar.update(len(pixels))

    def _batches(self) -> Iterator[Tensor]:  # uint8 [b, H, W, 3]
        """Make the pixels of the views; threads make the next batch while one is in use."""
        view = partial(self._view, *_mirrored(self.image, self.windows))
        views = made_ahead(view, range(self.num_views), threads=None, most=2 * self.batch_size)
        while batch := list(islice(views, self.batch_size)):
            yield torch.stack(batch)

    def _view(self, canvas: Image.Image, corner: tuple[int, int], i: int) -> Tensor:  # uint8 [H, W, 3]
        if self.windows.boxes[i].tolist() == WHOLE:  # as it is anywhere else
            view = self.preprocessing.squeeze(self.image, self.size)
        else:
            width, height = self.image.size
            left, top, right, bottom = self.windows.boxes[i].tolist()
            x, y = corner
            box = (x + left * width, y + top * height, x + right * width, y + bottom * height)
            view = canvas.resize(self.size[::-1], Image.Resampling[self.preprocessing.interpolation.upper()], box=box)
        if self.windows.flipped[i]:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return pixels_of(view)

    @torch.no_grad()
    def _features(self, pixels: Tensor, start: int) -> Tensor:  # [b, h, w, C]
        """The features of a batch, whose first view is the one at `start`."""
        weight, model = self.model.patch_embed.proj.weight, self.model
        if self.positions is not None:
            model = under_windows(model, self.positions[start : start + len(pixels)], self.size)
        images = self.preprocessing.normalize(pixels.to(weight.device)).to(weight.dtype)
        with torch.autocast(weight.device.type, self.autocast, enabled=self.autocast != torch.float32):
            maps = plain_intermediates(model, images, self.layer)
        return maps.permute(0, 2, 3, 1).float()


def sample_views(
    model: Any,
    image: Image.Image | str | PathLike[str],
    *,
    num_views: int | None = None,
    kind: Kind = "jitter",
    seed: int = 0,
    layer: int = -1,
    size: int | None = None,
    keep_aspect: bool = False,
    edge_to_edge: bool = False,
    zoom: tuple[float, float] = ZOOM,
    shift: float = SHIFT,
    sides: tuple[float, float] = SIDES,
    batch_size: int = 8,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> ViewStream:
    """Take views of an image, and the model's features of each, computed while one iterates.

    `jitter`: windows of 0.6 to 1.25 times the image's sides (log-uniform), off its center by up to a quarter, half of
    them mirrored; beyond its border the image is reflected. They keep the context that features depend on. The windows
    are spread evenly (a Sobol sequence).
    `crops`: those of the paper, 0.1 to 0.5 of the area, width / height 3/4 to 4/3, half of them mirrored.
    `positions`: the whole image every time; what moves is the position embedding, which is read through a window of
    itself, half to all of it wide, half of them mirrored. Their mean is a clean map (`MeanSolver`).
    `jitter+positions`: both at once.

    The same arguments give the same places on every machine, and the same features to the bit on one CPU.

    Args:
        model: a timm `VisionTransformer` or `Eva` in evaluation mode; of a denoised one the raw features are read.
        image: an image of any mode, or the path of one; converted to RGB, upright as its EXIF orientation says.
        num_views: besides the whole image, which comes last; 24 (jitter), 768 (crops) or 8 (positions) by default.
        kind: which views to take, as above.
        seed: decides which windows are drawn.
        layer: block whose output is read, through the model's final norm; -1 for the last one.
        size: pixels of both sides of every view, or with `keep_aspect` of the shorter one; at least two patches,
            rounded to whole ones. By default the size that the model was built for.
        keep_aspect: give views the image's aspect ratio, rather than squeeze it to the model's.
        edge_to_edge: place the outermost patches on a view's border, half a patch outside their centers, as the
            released code does.
        zoom: the smallest and the largest side of jitter's windows, relative to the image's.
        shift: the farthest that their centers are off the image's, as a share of the image.
        sides: the shortest and the longest side of the windows of positions, relative to the embedding's.
        batch_size: views per forward pass.
        autocast: dtype of the forward passes; bfloat16 on CUDA and float32 elsewhere by default.
        progress: whether to show a bar on a terminal.

    Returns:
        An iterable of `Views` of up to `batch_size` views each, float32 on the model's device, with the places of all
        in `.xy` ahead of the first forward pass.

    Raises:
        ImageError: if the file is no image.
        TypeError: if the model is no timm `VisionTransformer` or `Eva`, or its patches do not come from `PatchEmbed`;
            on a number that is not whole.
        ValueError: on arguments out of range, a model in training mode, or a size that the model does not take.
    """
    model = uncompiled(model)
    check_arguments(model, num_views, kind, layer, size, batch_size, zoom, shift, sides)
    preprocessing = preprocessing_of(model, size or min(model.patch_embed.img_size))
    image = as_image(image)
    pixels = preprocessing.size_of(image) if keep_aspect else squeezed_size(model, size)
    check_fits(model, pixels)
    embed = model.patch_embed
    grid = PatchGrid(pixels, embed.patch_size, embed.proj.stride)
    num_views = DEFAULT_VIEWS[kind] if num_views is None else num_views
    windows = sample_windows(num_views, kind, seed, pixels, zoom, shift)
    places = grid.edge_to_edge() if edge_to_edge else grid.centers()
    return ViewStream(
        model=model,
        image=image,
        windows=windows,
        positions=_position_windows(kind, num_views, seed, sides),
        xy=patch_xy(windows, *places).to(features_device(model)),
        preprocessing=preprocessing,
        size=pixels,
        layer=layer,
        batch_size=batch_size,
        autocast=autocast or default_autocast(model),
        progress=progress,
    )


def features_device(model: Any) -> torch.device:
    """Say where features are kept: on the model's own device, but on the CPU where that knows no float64."""
    device: torch.device = model.patch_embed.proj.weight.device
    return torch.device("cpu") if device.type == "mps" else device


def default_autocast(model: Any) -> torch.dtype:
    """Choose the dtype of the forward passes where none is asked for."""
    return torch.bfloat16 if features_device(model).type == "cuda" else torch.float32


def check_arguments(
    model: Any,
    num_views: int | None = None,
    kind: str = "jitter",
    layer: int = -1,
    size: int | None = None,
    batch_size: int = 1,
    zoom: tuple[float, float] = ZOOM,
    shift: float = SHIFT,
    sides: tuple[float, float] = SIDES,
    **_: Any,
) -> None:
    """Raise what `sample_views` raises whatever the image."""
    if not isinstance(model, VisionTransformer | Eva):
        raise TypeError(f"views are taken through a timm VisionTransformer or Eva, got {type(model).__name__}")
    if not isinstance(model.patch_embed, PatchEmbed):
        raise TypeError(f"the places of patches are those of timm's PatchEmbed, got {type(model.patch_embed).__name__}")
    if model.training:
        raise ValueError("the model is in training mode, where views of one place differ; call model.eval()")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    for name, value in (("num_views", num_views), ("layer", layer), ("size", size), ("batch_size", batch_size)):
        if not isinstance(value, Integral) and not (value is None and name in ("num_views", "size")):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
    if num_views is not None and num_views < 1:
        raise ValueError(f"num_views must be at least 1, got {num_views}; about 24 give a clean map")
    depth = len(model.blocks)
    if not -depth <= layer < depth:
        raise ValueError(f"layer must be {-depth}..{depth - 1} (the model has {depth} blocks), got {layer}")
    if size is not None:
        check_size(model, (size, size))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 < zoom[0] <= zoom[1] <= MOST_ZOOM:
        raise ValueError(
            f"zoom must be 0 < smallest <= largest <= {MOST_ZOOM}, relative to the image's sides, got {zoom}"
        )
    if not 0 <= shift <= 1:
        raise ValueError(f"shift must be 0..1, a share of the image, got {shift}")
    if moves_positions(kind):
        sample_position_windows(1, sides=sides)


def moves_positions(kind: str) -> bool:
    """Whether views of a kind move the position embedding."""
    return kind.endswith("positions")


def _position_windows(kind: str, num_views: int, seed: int, sides: tuple[float, float]) -> PositionWindows | None:
    """Draw the windows of the positions; None where positions stay.

    Crossed with jitter they are shuffled: two Sobol sequences go together.
    """
    if not moves_positions(kind):
        return None
    drawn = sample_position_windows(num_views, seed, sides=sides)
    if kind != "positions":
        drawn = drawn[torch.randperm(num_views, generator=torch.Generator().manual_seed(seed))]
    return drawn.with_plane()


def squeezed_size(model: Any, size: int | None) -> tuple[int, int]:
    """Give the size (H, W) in pixels that images are squeezed to, in whole patches; by default the model's."""
    embed = model.patch_embed
    if size is None:
        height, width = (side // patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True))
    else:
        height, width = (round(size / patch) for patch in embed.patch_size)
    return max(height, 1) * embed.patch_size[0], max(width, 1) * embed.patch_size[1]


def check_fits(model: Any, size: tuple[int, int]) -> None:
    """Raise ValueError if a model is built for images of one size, and that is not (H, W); or as `check_size` does."""
    check_size(model, size)
    embed = model.patch_embed
    if embed.strict_img_size and size != tuple(embed.img_size):
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels do not fit a model built for {embed.img_size[0]} x "
            f"{embed.img_size[1]}; build it with dynamic_img_size=True"
        )


def check_size(model: Any, size: tuple[int, int]) -> None:
    """Raise ValueError if images of (H, W) pixels have fewer than two patches a side, or more than attention takes."""
    least = 2 * max(model.patch_embed.patch_size)
    if min(size) < least:
        raise ValueError(f"size must be at least two patches, {least} pixels, got {min(size)}")
    check_patches(model, *size)


def _mirrored(image: Image.Image, windows: Windows) -> tuple[Image.Image, tuple[int, int]]:
    """Put as much of its reflection around an image as the windows show, and say where its corner (x, y) lies."""
    beyond = torch.maximum(-windows.boxes[:, :2], windows.boxes[:, 2:] - 1).amax(dim=0).clamp(min=0)  # (x, y)
    x, y = (math.ceil(share * side) for share, side in zip(beyond.tolist(), image.size, strict=True))
    padded = np.pad(np.asarray(image), ((y, y), (x, x), (0, 0)), mode="symmetric")
    return Image.fromarray(padded), (x, y)
