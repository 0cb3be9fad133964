"""Raw and denoised maps, class and register tokens from one pass; photos of any shape as a model's input."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import FAMILIES, SMALL, create, create_pair, head_of, images, photo, size_of
from PIL import Image

import dvt_timm


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_maps_and_tokens_are_the_models(name: str) -> None:
    denoised, plain = create_pair(name)
    x = images(*size_of(name))
    maps = dvt_timm.feature_maps(denoised, x)
    tokens = plain.forward_features(x)
    (last,) = denoised.forward_intermediates(x, 1, intermediates_only=True)
    assert torch.equal(maps.denoised, last)
    B, C, H, W = maps.raw.shape
    assert torch.equal(maps.raw.flatten(2).transpose(1, 2), tokens[:, plain.num_prefix_tokens :])
    assert torch.equal(maps.denoised.flatten(2).transpose(1, 2), head_of(denoised, tokens, (H, W)))
    assert torch.equal(maps.class_token, tokens[:, 0])
    assert torch.equal(maps.register_tokens, tokens[:, 1 : plain.num_prefix_tokens])
    assert maps.register_tokens.shape == (B, 4 if "reg4" in name else 0, C)


@torch.no_grad()
def test_a_plain_model_and_one_without_a_class_token() -> None:
    model = timm.create_model("vit_base_patch16_siglip_224", **SMALL).eval()
    maps = dvt_timm.feature_maps(model, images(224, 224))
    assert maps.denoised is None
    assert maps.class_token is None
    assert maps.raw.shape == (2, 128, 14, 14)
    assert maps.register_tokens.shape == (2, 0, 128)


@pytest.mark.parametrize("part", ["nothing", "model", "head"])
@torch.no_grad()
def test_one_pass_even_when_compiled_and_strided(part: str) -> None:
    model = create("vit_small_patch14_dinov2.dvt", stride=7)
    expected = dvt_timm.feature_maps(model, images())
    passes: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    if part == "head":
        model.denoiser = torch.compile(model.denoiser, backend="eager")
    maps = dvt_timm.feature_maps(torch.compile(model, backend="eager") if part == "model" else model, images())
    assert maps.raw.shape == (2, 128, 7, 9)
    assert torch.equal(maps.raw, expected.raw)
    torch.testing.assert_close(maps.denoised, expected.denoised)
    assert not torch.equal(maps.raw, maps.denoised)
    assert len(passes) == 1


@torch.no_grad()
def test_images_get_the_models_dtype() -> None:
    model = create("vit_small_patch14_dinov2.dvt").to(torch.bfloat16)
    maps = dvt_timm.feature_maps(model, dvt_timm.preprocess(model, photo(), size=56))
    assert maps.raw.dtype == maps.denoised.dtype == torch.bfloat16


def test_preprocess_of_a_features_only_model_and_of_one_without_patches() -> None:
    model = create("vit_small_patch14_dinov2.dvt", features_only=True)
    assert dvt_timm.preprocess(model, photo(), 56).shape == (1, 3, 56, 70)
    with pytest.raises(TypeError, match="takes a timm VisionTransformer or Eva, got ResNet"):
        dvt_timm.preprocess(timm.create_model("resnet18"), photo())


def test_threads_do_not_mix_their_maps() -> None:
    model = create("vit_small_patch14_dinov2.dvt")
    pictures = [torch.randn(1, 3, 56, 70, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    alone = [dvt_timm.feature_maps(model, picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(partial(dvt_timm.feature_maps, model), pictures))
    for one, other in zip(alone, at_once, strict=True):
        torch.testing.assert_close(one.raw, other.raw)
        torch.testing.assert_close(one.denoised, other.denoised)


def test_what_has_no_patch_tokens() -> None:
    with pytest.raises(TypeError, match="takes a timm VisionTransformer or Eva, got ResNet"):
        dvt_timm.feature_maps(timm.create_model("resnet18"), images())
    for name in ("vit_small_patch14_dinov2.dvt", "vit_small_patch14_dinov2.lvd142m"):
        with pytest.raises(ValueError, match="not a multiple of patch size"):
            dvt_timm.feature_maps(create(name, dynamic_img_size=True), images(57, 70))


@pytest.mark.parametrize(("size", "shape"), [(None, (518, 644)), (56, (56, 70)), (3, (14, 14))])
def test_preprocess_keeps_the_whole_photo(size: int | None, shape: tuple[int, int], tmp_path: Path) -> None:
    model = create("vit_small_patch14_dinov2.dvt")
    image = photo()  # 150 x 120
    image.save(tmp_path / "a.png")
    pixels = dvt_timm.preprocess(model, image, size)
    assert pixels.shape == (1, 3, *shape)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, dvt_timm.preprocess(model, os.fspath(tmp_path / "a.png"), size))
    assert dvt_timm.feature_maps(model, pixels).raw.shape[2:] == (shape[0] // 14, shape[1] // 14)


def test_preprocess_is_timms_transform_where_nothing_is_cropped() -> None:
    model = create("vit_small_patch14_dinov2.dvt")
    image = photo().resize((518, 518))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    torch.testing.assert_close(dvt_timm.preprocess(model, image)[0], transform(image))


@pytest.mark.parametrize(
    ("image", "size", "error", "message"),
    [
        (torch.zeros(3, 4, 4), None, TypeError, "a PIL image or the path of one"),
        (Image.new("RGB", (4, 4)), 0, ValueError, "at least 1, got 0"),
        (Image.new("RGB", (4, 4)), "112", ValueError, "whole number of pixels"),
        ("nowhere.png", None, dvt_timm.offline.ImageError, "nowhere.png"),
    ],
)
def test_errors(image: Any, size: int | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dvt_timm.preprocess(create("vit_small_patch14_dinov2.dvt"), image, size)
