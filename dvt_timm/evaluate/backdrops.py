"""An object on a featureless ground: what varies in a map away from the object is artifact.

A wholly featureless image is no test of stage 1: its views are all the same, and F is flat by construction.

Letters: N photos, H x W pixels, h x w patches, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from .estimates import Estimate, mean_over
from .truth import Method, maps_by, raw_maps

Ground = Literal["plain", "noise"]
NOISE = 8.0  # standard deviation of a noisy ground, of 255
FAR = 3  # patches between a patch and the object
FEWEST = 16  # patches that far from an object


def on_backdrop(image: Image.Image, mask: NDArray[np.bool_], ground: Ground = "plain", seed: int = 0) -> Image.Image:
    """Put an object on a ground of one color, in the place of what is around it.

    Args:
        image: RGB, H x W.
        mask: [H, W], True on the object.
        ground: "plain", or "noise" for fine noise on it (normal, a standard deviation of 8 of 255).
        seed: decides the color and the noise.

    Raises:
        ValueError: if the ground is none of these, or the mask is not as large as the image.
    """
    if ground not in get_args(Ground):
        raise ValueError(f"ground must be one of {get_args(Ground)}, got {ground!r}")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"the mask is {list(mask.shape)}, the image {list(pixels.shape[:2])}; give one of its size")
    random = np.random.default_rng(seed)
    backdrop = np.broadcast_to(random.uniform(32, 224, size=3), pixels.shape)
    if ground == "noise":
        backdrop = backdrop + NOISE * random.standard_normal(pixels.shape)
    pasted = np.where(mask[:, :, None], pixels, backdrop)
    return Image.fromarray(pasted.round().clip(0, 255).astype(np.uint8))


def far_patches(mask: NDArray[np.bool_], grid: tuple[int, int], patches: int = FAR) -> Tensor:
    """Say which patches are so many and more away from an object, in rows and columns: [h, w] bool.

    Args:
        mask: [H, W], True on the object.
        grid: (h, w).
        patches: 1 for all that do not touch it.
    """
    touched = adaptive_max_pool2d(torch.from_numpy(mask).float()[None, None], grid)
    return max_pool2d(touched, 2 * patches - 1, 1, patches - 1)[0, 0] == 0


def backdrops(
    model: Any,
    photos: Sequence[Image.Image],
    masks: Sequence[NDArray[np.bool_]],
    methods: Mapping[str, Method],
    *,
    raw: Method = raw_maps,
    ground: Ground = "plain",
    progress: bool = False,
) -> dict[str, Estimate]:
    """Measure how much maps vary on a featureless ground, three patches and more away from an object on it.

    Args:
        model: given to the methods.
        photos: N of them.
        masks: [H, W] of each, True on the object that is pasted on the ground.
        methods: ways of denoising by name, as `planted` takes them.
        raw: the features before denoising.
        ground: "plain" or "noise".
        progress: whether to show a bar on a terminal.

    Returns:
        The variance of the maps over far patches, over that of the photos' raw maps; by method, "raw" first. The
        difference of two is paired.

    Raises:
        ValueError: if an object leaves fewer than 16 patches, a method is called "raw", or as `on_backdrop`.
    """
    if "raw" in methods:
        raise ValueError('"raw" is the name of the features before denoising; give the method another one')
    spread = torch.tensor([_variance(fmap.flatten(0, 1)) for fmap in maps_by(raw, model, photos, "photos", progress)])
    pasted = [on_backdrop(*of_photo, ground, seed) for seed, of_photo in enumerate(zip(photos, masks, strict=True))]
    results = {}
    for name, method in {"raw": raw, **methods}.items():
        maps = maps_by(method, model, pasted, name, progress)
        values = [_far_variance(fmap, mask, i) for i, (fmap, mask) in enumerate(zip(maps, masks, strict=True))]
        results[name] = mean_over(torch.tensor(values)) / mean_over(spread)
    return results


def _far_variance(fmap: Tensor, mask: NDArray[np.bool_], photo: int) -> float:
    far = far_patches(mask, (fmap.shape[0], fmap.shape[1]))
    if far.sum() < FEWEST:
        raise ValueError(
            f"photo {photo} has {int(far.sum())} patches {FAR} and more away from its object, {FEWEST} are needed; "
            "leave it out"
        )
    return _variance(fmap[far])


def _variance(patches: Tensor) -> float:  # [M, C]
    """Average over patches the squared distance to their mean."""
    patches = patches.double()
    return float((patches - patches.mean(dim=0)).square().sum(dim=1).mean())
