"""What viz takes for a feature map and for an image, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dvt_timm import viz
from dvt_timm.viz.arrays import as_image, as_map


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def test_public_names_are_sorted() -> None:
    assert viz.__all__ == sorted(viz.__all__)


LAST = noise(5, 7, 64).astype(np.float32)  # [h, w, C]
FIRST = np.moveaxis(LAST, 2, 0)  # [C, h, w]
FORMS = [LAST, FIRST, FIRST[None], *(torch.from_numpy(part.copy()) for part in (LAST, FIRST, FIRST[None]))]


@pytest.mark.parametrize("features", FORMS, ids=lambda form: f"{type(form).__name__}{tuple(form.shape)}")
@pytest.mark.parametrize(
    "call",
    [
        lambda features: viz.pca_rgb([features])[0],
        lambda features: viz.kmeans_labels([features])[0],
        viz.norm_map,
        lambda features: viz.similarity(features, (4, 6)),
    ],
)
def test_every_function_takes_every_form(call: Callable[[Any], Any], features: Any) -> None:
    np.testing.assert_array_equal(call(features), call(LAST))


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((64, 4, 6), (4, 6)),
        ((63, 4, 6), (63, 4)),  # no ViT has so few channels
        ((384, 300, 6), (300, 6)),
        ((384, 384, 6), (384, 384)),
        ((70, 80, 384), (70, 80)),
        ((1, 5, 4, 6), (4, 6)),  # four axes leave no choice
        ((1, 6, 400, 300), (400, 300)),
    ],
)
def test_which_axis_holds_the_channels(shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    assert as_map(np.zeros(shape)).shape[:2] == grid


@pytest.mark.parametrize("shape", [(4, 6), (2, 64, 4, 6), (1, 1, 64, 4, 6), (0, 6, 8), (1, 0, 6, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    message = (
        rf"\(C, h, w\), \(1, C, h, w\) or \(h, w, C\), got shape {re.escape(str(shape))}; pass the map of one image"
    )
    with pytest.raises(ValueError, match=message):
        as_map(np.zeros(shape))


IMAGE = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
PLANES = np.moveaxis(IMAGE, 2, 0)


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        PLANES,
        PLANES[None],
        torch.from_numpy(IMAGE),
        torch.from_numpy(PLANES.copy()),
        torch.from_numpy(PLANES.copy())[None],
        Image.fromarray(IMAGE),
        Image.fromarray(IMAGE).convert("RGBA"),
    ],
    ids=lambda image: f"{type(image).__name__}{getattr(image, 'shape', getattr(image, 'mode', ''))}",
)
def test_images_of_every_form(image: Any) -> None:
    np.testing.assert_array_equal(as_image(image), IMAGE)
    panels = [viz.feature_panel(picture, {"features": LAST}) for picture in (image, IMAGE)]
    np.testing.assert_array_equal(*panels)


def test_a_gray_pil_image_is_made_rgb() -> None:
    assert as_image(Image.new("L", (5, 4), 7)).tolist() == np.full((4, 5, 3), 7).tolist()


@pytest.mark.parametrize(
    "image",
    [
        IMAGE[..., :1],
        IMAGE[0],
        IMAGE[:0],
        IMAGE.astype(np.float32),
        PLANES[None].repeat(2, axis=0),
        torch.from_numpy(PLANES / 255).requires_grad_(),
        torch.from_numpy(PLANES / 255).bfloat16(),
    ],
    ids=lambda image: f"{tuple(image.shape)} {image.dtype}",
)
def test_other_images_are_refused(image: Any) -> None:
    got = re.escape(str(tuple(image.shape)))
    with pytest.raises(ValueError, match=rf"\(H, W, 3\) uint8 or \(3, H, W\) uint8, got {got} \w+; pass the RGB image"):
        viz.feature_panel(image, {"raw": LAST})


def with_value(value: float) -> NDArray[np.float64]:
    features = noise(4, 6, 8)
    features[1, 2, 3] = value
    return features


def test_one_map_is_no_list_of_maps() -> None:
    for function in (viz.pca_rgb, viz.kmeans_labels):
        with pytest.raises(ValueError, match=r"a list of feature maps is wanted.*pass \[map\]"):
            function(torch.zeros(64, 3, 4))


def test_every_function_refuses_bad_maps() -> None:
    bad = with_value(np.nan)
    for call in (viz.pca_rgb, viz.kmeans_labels):
        with pytest.raises(ValueError, match="NaN"):
            call([bad])
        with pytest.raises(ValueError, match="no feature maps"):
            call([])
    for single in (viz.norm_map, lambda features: viz.similarity(features, (0, 0))):
        with pytest.raises(ValueError, match="NaN"):
            single(bad)
        with pytest.raises(ValueError, match="got shape"):
            single(noise(4, 6))
    with pytest.raises(ValueError, match=r"num_clusters must be 1\.\.24"):
        viz.kmeans_labels([noise(4, 6, 8)], num_clusters=25)
    with pytest.raises(ValueError, match="outside"):
        viz.similarity(noise(4, 6, 8), (1, 6))


def test_paths_and_missing_maps_are_told() -> None:
    with pytest.raises(ValueError, match=r"image must be an image, got the path 'cat.jpg'; open it with PIL"):
        viz.feature_panel("cat.jpg", {"raw": noise(4, 6, 8)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a feature map is missing, got None; a model without a denoiser has no"):
        viz.feature_panel(IMAGE, {"denoised": None})  # type: ignore[dict-item]
