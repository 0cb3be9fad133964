"""The features of images, raw and denoised, from one pass of a model; photos of any shape as its input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from . import homes
from ._util.images import as_image, preprocessing_of
from ._util.modules import uncompiled
from .cleaned import seen_by

MOST_PATCHES = 2**18  # of an image, 512 x 512: more than attention can take


class FeatureMaps(NamedTuple):
    """Features of B images after the model's final norm: H x W patches of C channels.

    Attributes:
        raw: [B, C, H, W], the patch tokens of the backbone.
        denoised: [B, C, H, W], the same from the denoiser; None for a model without one.
        class_token: [B, C]; None for a model without one.
        register_tokens: [B, R, C]; R is 0 for most models.
    """

    raw: Tensor
    denoised: Tensor | None
    class_token: Tensor | None
    register_tokens: Tensor


def feature_maps(model: Any, images: Tensor) -> FeatureMaps:
    """Compute raw and denoised maps, class and register tokens of images in one pass.

    >>> maps = feature_maps(model, preprocess(model, "photo.jpg"))
    >>> maps.raw, maps.denoised  # [1, C, H, W] each

    Args:
        model: a timm `VisionTransformer` or `Eva`, or a model of torch.hub or transformers that `denoise` takes (but no
            `...Backbone`, which gives maps itself); denoised or not.
        images: [B, 3, height, width], normalized as the model wants it, on any device, in any floating dtype.

    Returns:
        The features, on the model's device and in its dtype.

    Raises:
        TypeError: if the model has no patch tokens.
        ValueError: if the images do not fit the model.
    """
    inner = uncompiled(model)
    if homes.home_of(inner) is not None:
        prefix, raw, clean = homes.raw_and_clean(inner, images)
        return FeatureMaps(raw, clean, prefix[:, 0] if prefix.shape[1] else None, prefix[:, 1:])
    return maps_and_layers(vit_of(inner, "feature_maps"), images, ())[0]


def maps_and_layers(
    model: Any, images: Tensor, layers: Sequence[int]
) -> tuple[FeatureMaps, dict[int, Tensor]]:  # [B, C, H, W] each
    """Compute what `feature_maps` gives, and the maps of some blocks after the final norm, in one pass.

    Args:
        model: from `vit_of`.
        images: as `feature_maps` takes them.
        layers: from `layers_of`. The map of the last one is the denoised one, if there is one.
    """
    images = images.to(model.patch_embed.proj.weight)  # device and dtype
    last = len(model.blocks) - 1
    earlier = [layer for layer in layers if layer != last]
    tokens, clean, found = seen_by(model, images, earlier)
    grid = model.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
    prefix = tokens[:, : model.num_prefix_tokens]
    has_class = model.num_prefix_tokens > getattr(model, "num_reg_tokens", 0)
    maps = FeatureMaps(
        raw=_as_maps(tokens[:, model.num_prefix_tokens :], grid),
        denoised=None if clean is None else _as_maps(clean[:, model.num_prefix_tokens :], grid),
        class_token=prefix[:, 0] if has_class else None,
        register_tokens=prefix[:, int(has_class) :],
    )
    by_layer = dict(zip(earlier, found, strict=True))
    if last in layers:
        by_layer[last] = maps.raw if maps.denoised is None else maps.denoised
    return maps, by_layer


def vit_of(model: Any, caller: str) -> Any:
    """Give the model within what torch.compile made of it; raise TypeError unless it has patch tokens."""
    inner = uncompiled(model)
    if not hasattr(inner, "patch_embed") or not hasattr(inner, "num_prefix_tokens"):
        raise TypeError(f"{caller} takes a timm VisionTransformer or Eva, got {type(inner).__name__}")
    return inner


def layers_of(model: Any, layers: Sequence[int]) -> tuple[int, ...]:
    """Give the numbers of blocks, counted from 0, ascending; raise ValueError if there is no such block, or one twice.

    Args:
        model: from `vit_of`.
        layers: whole numbers; negative ones count from the last block, -1.
    """
    depth = len(model.blocks)
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not -depth <= layer < depth:
            raise ValueError(f"layers must be {-depth}..{depth - 1} (the model has {depth} blocks), got {layer!r}")
    found = sorted(layer % depth for layer in layers)
    if len(set(found)) < len(found):
        raise ValueError(f"layers must be different blocks, got {list(layers)}; leave one of two out")
    return tuple(found)


def _as_maps(patches: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, H * W, C] -> [B, C, H, W]
    return patches.unflatten(1, grid).permute(0, 3, 1, 2)


def preprocess(model: Any, image: Image.Image | str | os.PathLike[str], size: int | None = None) -> Tensor:
    """Make a model's input of a photo of any shape: resize it to whole patches, crop nothing, normalize it.

    timm's own transform (`timm.data.create_transform`) crops the photo to the model's square instead.

    Args:
        model: a timm model that takes images of any size (`dynamic_img_size=True`, the default of denoised names).
        image: an image of any mode, or the path of one.
        size: pixels of the shorter side, rounded to whole patches; the model's own by default.

    Returns:
        [1, 3, height, width] float32, on the CPU.

    Raises:
        ImageError: if the file is no image.
        TypeError: if the model has no patches, or `image` is neither an image nor a path.
        ValueError: if `size` is no whole number from 1 on, the image has no pixels, or it would make more patches than
            attention can take.
    """
    inner = uncompiled(model)
    inner = getattr(inner, "model", inner)  # of features_only=True
    if not hasattr(inner, "patch_embed"):
        raise TypeError(f"preprocess takes a timm VisionTransformer or Eva, got {type(inner).__name__}")
    check_size(size)
    preprocessing = preprocessing_of(inner, size)
    image = as_image(image)
    check_patches(inner, *preprocessing.size_of(image))
    return preprocessing.to_tensor(preprocessing.resize(image))


def check_size(size: Any) -> None:
    """Raise ValueError unless a size is None or a whole number from 1 on."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}")


def check_patches(model: Any, height: int, width: int) -> None:
    """Raise ValueError if an image of so many pixels makes more patches than attention can take."""
    rows, columns = model.patch_embed.dynamic_feat_size((height, width))
    if rows * columns > MOST_PATCHES:
        raise ValueError(
            f"{height} x {width} pixels make {rows} x {columns} patches, and attention takes at most {MOST_PATCHES:,}; "
            "choose a smaller size"
        )
