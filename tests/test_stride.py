"""Overlapping patches: which pixels they cover, and what becomes of the position embedding."""

from typing import Any

import pytest
import timm
import torch
from helpers import TINY, images

from dvt_timm.stride import OverlapPatchEmbed, overlapping_grid, set_stride


def tiny(**options: Any) -> Any:
    return timm.create_model(TINY, dynamic_img_size=True, num_classes=0, **options).eval()


@pytest.mark.parametrize(
    ("stride", "grid"), [((16, 16), (4, 6)), ((8, 8), (7, 11)), ((5, 5), (10, 17)), ((16, 8), (4, 11))]
)
def test_grid(stride: tuple[int, int], grid: tuple[int, int]) -> None:
    assert overlapping_grid((64, 96), (16, 16), stride) == grid
    rows, columns = (range(0, side - 16 + 1, step) for side, step in zip((64, 96), stride, strict=True))
    assert (len(rows), len(columns)) == grid


@torch.no_grad()
def test_each_patch_covers_its_own_pixels() -> None:
    model = tiny()
    plain = model.patch_embed.proj.weight, model.patch_embed.proj.bias
    set_stride(model, 8)
    x = images(64, 96)
    tokens = model.patch_embed(x)
    assert tokens.shape[1:3] == (7, 11)
    for row, column in ((0, 0), (3, 5), (6, 10)):
        window = x[..., 8 * row : 8 * row + 16, 8 * column : 8 * column + 16]
        expected = torch.nn.functional.conv2d(window, *plain).flatten(1)
        torch.testing.assert_close(tokens[:, row, column], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_position_embedding_is_resampled_once() -> None:
    model, resampled = tiny(), tiny()
    resampled.load_state_dict(model.state_dict())
    resampled.set_input_size(img_size=(16 * 19, 16 * 19))  # as many patches as overlapping ones have
    set_stride(model, 8)
    assert model.patch_embed.grid_size == (19, 19)
    assert torch.equal(model.pos_embed, resampled.pos_embed)
    assert {info["reduction"] for info in model.feature_info} == {8}
    assert isinstance(model.patch_embed, OverlapPatchEmbed)
    assert model.patch_embed.feat_ratio() == 8
    assert model.patch_embed.feat_ratio(as_scalar=False) == (8, 8)


def test_padding_counts() -> None:
    model = tiny(dynamic_img_pad=True)
    set_stride(model, 8)
    assert model.patch_embed.dynamic_feat_size((50, 64)) == (7, 7)
    assert model(images(50, 64)).shape == (2, 64)


@pytest.mark.parametrize(
    ("stride", "error", "message"),
    [
        (0, ValueError, r"stride must be 1\.\.16 \(the patch size\) in pixels, got 0"),
        (17, ValueError, "got 17"),
        (True, TypeError, "one integer"),
        ((8, 8), TypeError, "one integer"),
    ],
)
def test_strides_that_are_none(stride: Any, error: type[Exception], message: str) -> None:
    model = tiny()
    with pytest.raises(error, match=message):
        set_stride(model, stride)
    assert not isinstance(model.patch_embed, OverlapPatchEmbed)


def test_models_without_timms_patches() -> None:
    with pytest.raises(TypeError, match="stride needs timm's PatchEmbed, this model has HybridEmbed"):
        set_stride(timm.create_model("vit_tiny_r_s16_p8_224"), 4)


def test_the_patch_size_is_fixed_then() -> None:
    model = tiny()
    set_stride(model, 8)
    model.set_input_size(img_size=(32, 48), patch_size=16)
    assert model.patch_embed.grid_size == (3, 5)
    with pytest.raises(ValueError, match=r"cannot change from \(16, 16\) to 8; change it before the stride is set"):
        model.set_input_size(patch_size=8)
