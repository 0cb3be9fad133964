"""The features of images, raw and denoised, from one pass of a model; photos of any shape as its input."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from . import homes
from ._util.images import as_image, preprocessing_of
from ._util.modules import uncompiled
from .cleaned import raw_and_clean

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
    if not hasattr(inner, "patch_embed") or not hasattr(inner, "num_prefix_tokens"):
        raise TypeError(
            f"feature_maps takes a timm VisionTransformer or Eva, or another model that denoise takes, got "
            f"{type(inner).__name__}"
        )
    images = images.to(inner.patch_embed.proj.weight)  # device and dtype
    tokens, clean = raw_and_clean(inner, images)
    grid = inner.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
    prefix = tokens[:, : inner.num_prefix_tokens]
    has_class = inner.num_prefix_tokens > getattr(inner, "num_reg_tokens", 0)
    return FeatureMaps(
        raw=_as_maps(tokens[:, inner.num_prefix_tokens :], grid),
        denoised=None if clean is None else _as_maps(clean[:, inner.num_prefix_tokens :], grid),
        class_token=prefix[:, 0] if has_class else None,
        register_tokens=prefix[:, int(has_class) :],
    )


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
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}")
    preprocessing = preprocessing_of(inner, size)
    image = as_image(image)
    check_patches(inner, *preprocessing.size_of(image))
    return preprocessing.to_tensor(preprocessing.resize(image))


def check_patches(model: Any, height: int, width: int) -> None:
    """Raise ValueError if an image of so many pixels makes more patches than attention can take."""
    rows, columns = model.patch_embed.dynamic_feat_size((height, width))
    if rows * columns > MOST_PATCHES:
        raise ValueError(
            f"{height} x {width} pixels make {rows} x {columns} patches, and attention takes at most {MOST_PATCHES:,}; "
            "choose a smaller size"
        )
