"""The position embedding read through windows of itself: whole windows change nothing, others say where they read."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from helpers import SMALL, create, images, random_head
from torch import Tensor
from torch.nn.functional import grid_sample

import dvt_timm
from dvt_timm.positions import PositionWindows, sample_position_windows, under_windows

# absolute, with registers, without a class token's position; absolute and rotary; rotary alone, of a model, per block
ABSOLUTE = ("vit_small_patch14_dinov2.dvt", "vit_base_patch14_reg4_dinov2.dvt", "deit3_base_patch16_224.dvt")
ROTARY = ("eva02_base_patch16_clip_224.dvt", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224")
SIZE = {14: (70, 98), 16: (96, 112)}  # 5 x 7 and 6 x 7 patches


def built(name: str, **options: Any) -> Any:
    options = {"dynamic_img_size": True, **options}
    model = create(name, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "gamma" in key or "norm" in key or "pos_embed" in key:  # every position, block and norm matters
                parameter.copy_(torch.rand_like(parameter) + 0.5 * key.endswith("weight"))
    return model


def pixels(model: Any, batch: int = 1) -> Tensor:
    return images(*SIZE[model.patch_embed.patch_size[0]], batch=batch)


def windows(*boxes: list[float], mirrored: list[bool] | None = None) -> PositionWindows:
    return PositionWindows(torch.tensor(boxes, dtype=torch.float64), torch.tensor(mirrored or [False] * len(boxes)))


WHOLE = [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in (*ABSOLUTE, *ROTARY)),
        *((name, {"stride": 8}) for name in (*ABSOLUTE, *ROTARY[:2])),  # timm's mixed one is of one size
    ],
)
@torch.no_grad()
def test_whole_windows_give_the_plain_model_to_the_bit(name: str, options: dict[str, Any]) -> None:
    model = built(name, **options)
    x = pixels(model).expand(3, -1, -1, -1)
    twin = under_windows(model, windows(WHOLE, [0.1, 0.2, 0.8, 0.9], WHOLE), tuple(x.shape[2:]))
    expected, moved = model.forward_features(x), twin.forward_features(x)
    assert torch.equal(moved[0], expected[0])
    assert torch.equal(moved[2], expected[2])
    assert not torch.allclose(moved[1], expected[1], atol=1e-2)
    for index in (0, 2):
        (ours,), (theirs,) = (m.forward_intermediates(x, [index], intermediates_only=True) for m in (twin, model))
        assert ours.shape == theirs.shape
        assert torch.equal(ours[0], theirs[0])


def read_slowly(model: Any, box: list[float], mirrored: bool) -> Any:
    """A model whose position embedding is that of one window, patch by patch."""
    slow = copy.deepcopy(model)
    height, width = model.patch_embed.grid_size
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    plane = model.pos_embed[:, prefix:].reshape(1, height, width, -1).permute(0, 3, 1, 2)
    rows = []
    for i in range(height):
        for j in range(width):
            across = (j + 0.5) / width
            x = box[0] + (1 - across if mirrored else across) * (box[2] - box[0])
            y = box[1] + (i + 0.5) / height * (box[3] - box[1])
            place = torch.tensor([[[[2 * x - 1, 2 * y - 1]]]], dtype=torch.float32)
            rows.append(grid_sample(plane, place, "bicubic", "border", align_corners=False).flatten())
    with torch.no_grad():
        slow.pos_embed[0, prefix:] = torch.stack(rows)
    return slow


@pytest.mark.parametrize("name", ABSOLUTE)
@torch.no_grad()
def test_windows_equal_their_slow_twin(name: str) -> None:
    patch = 14 if "patch14" in name else 16
    model = built(name, img_size=SIZE[patch])
    x = pixels(model, batch=3)
    boxes, mirrored = [[0.0, 0.25, 0.5, 0.75], [0.3, 0.0, 1.0, 0.7], WHOLE], [False, True, True]
    moved = under_windows(model, windows(*boxes, mirrored=mirrored), SIZE[patch]).forward_features(x)
    for i in range(3):
        expected = read_slowly(model, boxes[i], mirrored[i]).forward_features(x[i : i + 1])
        torch.testing.assert_close(moved[i : i + 1], expected, atol=2e-4, rtol=1e-3)


def test_a_rotary_embedding_is_read_between_its_places() -> None:
    """Half of the plane at a grid is a quarter of the grid of twice the size, where coordinates are normalized."""
    model = built("vit_small_patch16_dinov3")
    twin = under_windows(model, windows([0.5, 0.0, 1.0, 0.5]), (96, 112))
    fine = model.rope.get_embed(shape=[12, 14]).reshape(12, 14, -1)
    torch.testing.assert_close(twin.rope.get_embed()[0, 0].reshape(6, 7, -1), fine[:6, 7:], atol=1e-4, rtol=0)


def test_a_stretched_rotary_embedding_is_read_between_its_places() -> None:
    """EVA02's places are stretched to its own 16 x 16: a quarter of a step is a step of a grid four times as fine."""
    model = built("eva02_base_patch16_clip_224.dvt")
    twin = under_windows(model, windows([0.0, 0.0, 0.5, 0.5]), (96, 112))
    fine = model.rope.get_embed(shape=[24, 28]).reshape(24, 28, -1)
    read = twin.rope.get_embed()[0, 0].reshape(6, 7, -1)
    torch.testing.assert_close(read[1:, 1:], fine[1:11:2, 1:13:2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ROTARY)
def test_a_mirrored_rotary_embedding(name: str) -> None:
    model = built(name)
    twin = under_windows(model, windows(WHOLE, mirrored=[True]), (96, 112))
    plain = model.rope.get_embed(shape=[6, 7])
    plain = plain.unflatten(-2, (6, 7)).flip(-2).flatten(-3, -2)
    torch.testing.assert_close(
        twin.rope.get_embed().squeeze(-4 if plain.ndim > 2 else 0).squeeze(0), plain, atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_prefix_tokens_keep_their_positions() -> None:
    model = built("vit_base_patch14_reg4_dinov2.dvt")
    twin = under_windows(model, windows([0.0, 0.0, 0.5, 0.5]), SIZE[14])
    (plain, moved) = (m._pos_embed(m.patch_embed(pixels(m))) for m in (model, twin))
    assert torch.equal(moved[:, : model.num_prefix_tokens], plain[:, : model.num_prefix_tokens])


@torch.no_grad()
def test_compiled_autocast_and_half_precision() -> None:
    model = built("vit_small_patch14_dinov2.dvt")
    x, some = pixels(model, batch=2), sample_position_windows(2)
    expected = under_windows(model, some, SIZE[14]).forward_features(x)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(under_windows(compiled, some, SIZE[14]).forward_features(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rough = under_windows(model, some, SIZE[14]).forward_features(x)
    torch.testing.assert_close(rough.float(), expected, atol=0.3, rtol=0.1)
    half = model.to(torch.bfloat16)
    assert under_windows(half, some, SIZE[14]).forward_features(x.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
def test_the_model_stays_as_it_was() -> None:
    model = built("vit_small_patch14_dinov2.dvt")
    x = pixels(model, batch=2)
    before, state = model.forward_features(x), {key: value.clone() for key, value in model.state_dict().items()}

    def run(seed: int) -> Tensor:
        return under_windows(model, sample_position_windows(2, seed), SIZE[14]).forward_features(x)

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        at_once = list(pool.map(torch.no_grad()(run), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, at_once, strict=True))
    assert torch.equal(model.forward_features(x), before)
    assert model.dynamic_img_size
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_a_denoised_model_denoises_every_window() -> None:
    model = built("vit_small_patch14_dinov2.lvd142m")
    x, some = pixels(model, batch=2), sample_position_windows(2)
    plain = under_windows(model, some, SIZE[14]).forward_features(x)
    denoised = under_windows(dvt_timm.denoise(model, random_head()), some, SIZE[14]).forward_features(x)
    expected = model.denoiser(plain[:, 1:].reshape(2, 5, 7, -1)).flatten(1, 2)
    torch.testing.assert_close(denoised[:, 1:], expected)


def test_sampled_windows() -> None:
    drawn = sample_position_windows(64, seed=3, sides=(0.4, 0.9))
    sides = drawn.boxes[:, 2:] - drawn.boxes[:, :2]
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    assert sides.min() >= 0.4
    assert sides.max() <= 0.9
    assert 25 <= int(drawn.mirrored.sum()) <= 39
    assert torch.equal(drawn.boxes, sample_position_windows(64, seed=3, sides=(0.4, 0.9)).boxes)
    assert not torch.equal(drawn.boxes, sample_position_windows(64, seed=4, sides=(0.4, 0.9)).boxes)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, (70, 99), "width 99 is not a multiple of patch size 14"),
        ({"dynamic_img_size": False, "img_size": (70, 98)}, (70, 112), "width 112 is not the fixed 98"),
    ],
)
def test_images_that_do_not_fit(options: dict[str, Any], size: tuple[int, int], message: str) -> None:
    model = built("vit_small_patch14_dinov2.dvt", **options)
    with pytest.raises(ValueError, match=message):
        under_windows(model, windows(WHOLE), size)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample_position_windows(0), ValueError, "at least 1"),
        (lambda: sample_position_windows(4, sides=(0.9, 0.5)), ValueError, "shortest <= longest"),
        (lambda: windows([0.5, 0.0, 0.4, 1.0]), ValueError, "left < right"),
        (lambda: windows([-0.1, 0.0, 0.4, 1.0]), ValueError, "boxes must be"),
        (lambda: PositionWindows(torch.zeros(2, 4), torch.zeros(3)), ValueError, r"boxes \[V, 4\]"),
        (lambda: under_windows(timm.create_model("resnet18"), windows(WHOLE), (64, 64)), TypeError, "got ResNet"),
        (
            lambda: under_windows(
                timm.create_model("vit_tiny_patch16_224", pos_embed="none"), windows(WHOLE), (224, 224)
            ),
            ValueError,
            "no position embedding",
        ),
        (
            lambda: under_windows(timm.create_model("vit_small_patch16_dinov3", **SMALL), windows(WHOLE), (64, 64)),
            ValueError,
            "at least 5 patches a side",
        ),
        (  # its fastest frequency would turn by more than half a turn from patch to patch
            lambda: under_windows(create("eva02_base_patch16_clip_224.dvt"), windows(WHOLE), (80, 112)),
            ValueError,
            r"at least 6 patches a side to be read between them, got \(5, 7\); take larger images",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
