"""Views of an image: what they show lies where they say, for every kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import FAMILIES, TINY, create, create_pair, images, photo, random_head
from PIL import Image
from planting import ramps, seeing
from torch import nn

import dvt_timm
from dvt_timm.offline import ImageError, fit_image, sample_views
from dvt_timm.offline.solution import collect
from dvt_timm.offline.windows import sample_windows
from dvt_timm.positions import sample_position_windows

SIZE = 160  # pixels, 10 x 10 patches


@pytest.mark.parametrize("kind", ["jitter", "crops"])
@pytest.mark.parametrize("stride", [16, 8])
def test_features_lie_where_xy_says(kind: Any, stride: int) -> None:
    views = collect(sample_views(seeing(stride=stride), ramps(), kind=kind, num_views=12, batch_size=5))
    side = (SIZE - 16) // stride + 1
    assert views.features.shape == (13, side, side, 64)
    assert views.features.dtype == torch.float32
    seen = views.features[..., :2]
    # a patch on the mirror line averages both of its sides
    inside = ((views.xy - 0.5).abs() < 0.42).all(dim=-1)
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(seen[inside], views.xy[inside], atol=0.01, rtol=0)


def test_the_last_view_is_the_whole_image_and_some_are_mirrored() -> None:
    stream = sample_views(seeing(), ramps(), num_views=12)
    assert stream.num_views == 13
    assert stream.windows.boxes[-1].tolist() == [0, 0, 1, 1]
    assert not stream.windows.flipped[-1]
    assert 0 < stream.windows.flipped.sum() < 12
    centers = (torch.arange(10) + 0.5) / 10
    torch.testing.assert_close(stream.xy[-1, 0, :, 0], centers)
    torch.testing.assert_close(stream.xy[-1, :, 0, 1], centers)


@pytest.mark.parametrize("kind", ["jitter", "jitter+positions"])
def test_the_whole_image_is_mirrored_too(kind: Any) -> None:
    views = collect(sample_views(seeing(), ramps(), kind=kind, num_views=8, zoom=(1, 1), shift=0))
    assert len({float(xy[0, 0, 0]) for xy in views.xy}) == 2  # some are mirrored
    torch.testing.assert_close(views.features[..., :2], views.xy, atol=0.01, rtol=0)


def test_kinds_are_as_documented() -> None:
    jitter = sample_windows(2000, "jitter", 0, (100, 200)).boxes[:-1]
    sides = jitter[:, 2:] - jitter[:, :2]
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    assert 0.6 <= sides.min() < 0.61
    assert 1.24 < sides.max() <= 1.25
    center = (jitter[:, 2:] + jitter[:, :2]) / 2
    assert 0.24 < (center - 0.5).abs().max() <= 0.25
    crops = sample_windows(2000, "crops", 0, (100, 200)).boxes[:-1]
    assert crops.min() >= 0
    assert crops.max() <= 1
    width, height = (crops[:, 2:] - crops[:, :2]).unbind(1)
    assert 0.1 <= (width * height).min() < 0.11
    assert (width * height).max() <= 0.5
    aspect = 200 * width / (100 * height)  # in pixels
    assert 0.75 <= aspect.min() < 0.76
    assert aspect.max() <= 4 / 3


def test_places_are_known_before_the_first_pass_and_hold_for_every_image() -> None:
    model = seeing()
    one, other = (sample_views(model, photo(seed), seed=3, num_views=5) for seed in (0, 1))
    assert torch.equal(one.xy, other.xy)
    assert torch.equal(collect(one).xy, one.xy)
    assert not torch.equal(one.xy, sample_views(model, photo(), seed=4, num_views=5).xy)


def test_a_seed_gives_the_same_bits() -> None:
    model = create(TINY)
    first, second = (collect(sample_views(model, photo(), num_views=4, seed=7)) for _ in range(2))
    assert torch.equal(first.features, second.features)


def test_size_and_aspect() -> None:
    model, image = seeing(), ramps(300, 200)
    assert sample_views(model, image).size == (160, 160)
    assert sample_views(model, image, size=100).size == (96, 96)
    stream = sample_views(model, image, size=96, keep_aspect=True, num_views=3)
    assert stream.size == (96, 144)
    views = collect(stream)
    assert views.features.shape == (4, 6, 9, 64)
    torch.testing.assert_close(views.features[-1, ..., :2], views.xy[-1], atol=0.01, rtol=0)


def test_models_of_odd_sizes() -> None:
    padded = timm.create_model(TINY, img_size=100, dynamic_img_size=True, dynamic_img_pad=True).eval()
    views = collect(sample_views(padded, photo(), num_views=1))
    assert views.features.shape[1:3] == (6, 6)
    wide = timm.create_model(TINY, img_size=(64, 96), dynamic_img_size=False).eval()
    assert fit_image(wide, photo(), num_views=2).semantics.shape == (4, 6, 64)
    assert fit_image(wide, ramps(96, 64), num_views=2, keep_aspect=True).semantics.shape == (4, 6, 64)


def test_images_are_read_upright_and_of_any_depth(tmp_path: Any) -> None:
    model = seeing()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    ramps(160, 80).save(tmp_path / "a.png", exif=exif)
    by_image, by_path = (
        fit_image(model, source, num_views=2).raw for source in (Image.open(tmp_path / "a.png"), tmp_path / "a.png")
    )
    assert torch.equal(by_image, by_path)
    deep = Image.fromarray(np.linspace(0, 65535, 160 * 160).astype(np.uint16).reshape(160, 160))
    assert collect(sample_views(model, deep, num_views=1)).features[-1, 5, 5, 0].item() == pytest.approx(0.55, abs=0.02)


def test_edge_to_edge_moves_places_only() -> None:
    centers, edges = (sample_views(seeing(), ramps(), num_views=2, edge_to_edge=on) for on in (False, True))
    assert torch.equal(collect(centers).features, collect(edges).features)
    torch.testing.assert_close(edges.xy[-1, 0, :, 0], torch.linspace(0, 1, 10))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.dvt", "eva02_base_patch16_clip_224.dvt"])
def test_of_a_denoised_model_the_raw_features_are_read(name: str) -> None:
    denoised, plain = create_pair(name)
    size = 56 if "patch14" in name else 64
    for layer in (-1, 1):
        views, expected = (
            collect(sample_views(model, photo(), num_views=2, size=size, layer=layer)).features
            for model in (denoised, plain)
        )
        assert torch.equal(views, expected)
        stream = sample_views(plain, photo(), num_views=2, size=size)
        pixels = stream.preprocessing.to_tensor(photo().resize((size, size), Image.Resampling.BICUBIC))
        index = layer % len(plain.blocks)
        (fmap,) = plain.forward_intermediates(pixels, [index], norm=True, intermediates_only=True)
        torch.testing.assert_close(views[-1], fmap[0].permute(1, 2, 0), atol=1e-4, rtol=1e-4)


def test_every_family_has_views() -> None:
    for name in FAMILIES:
        views = collect(sample_views(create(name), photo(), num_views=1, size=64))
        assert views.features.isfinite().all()


def test_a_compiled_model_will_do() -> None:
    model = seeing()
    compiled = torch.compile(model)
    assert torch.equal(*(collect(sample_views(m, photo(), num_views=1)).features for m in (model, compiled)))


def test_autocast_changes_little() -> None:
    model = create(TINY)
    exact, rounded = (
        collect(sample_views(model, photo(), num_views=2, autocast=dtype)).features for dtype in (None, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.05 * exact.norm()


def test_what_cannot_be_viewed() -> None:
    model = create(TINY)
    with pytest.raises(TypeError, match="timm VisionTransformer or Eva, got Linear"):
        sample_views(nn.Linear(2, 2), photo())
    with pytest.raises(ValueError, match=r"training mode.*call model.eval\(\)"):
        sample_views(timm.create_model(TINY), photo())
    with pytest.raises(ValueError, match=r"kind must be one of \('jitter', 'crops', .*\), got 'crop'"):
        sample_views(model, photo(), kind="crop")
    with pytest.raises(ValueError, match="num_views must be at least 1, got 0"):
        sample_views(model, photo(), num_views=0)
    with pytest.raises(ValueError, match="size must be at least two patches, 32 pixels, got 16"):
        sample_views(model, photo(), size=16)
    with pytest.raises(TypeError, match=r"size must be a whole number, got \(64, 80\)"):
        sample_views(model, photo(), size=(64, 80))
    with pytest.raises(TypeError, match=r"num_views must be a whole number, got 2\.5"):
        sample_views(model, photo(), num_views=2.5)
    with pytest.raises(TypeError, match="layer must be a whole number, got None"):
        sample_views(model, photo(), layer=None)
    with pytest.raises(TypeError, match=r"a PIL image or the path of one, got ndarray; PIL.Image.fromarray"):
        sample_views(model, np.zeros((64, 64, 3)))
    with pytest.raises(ValueError, match="the image has no pixels: 0 x 4"):
        sample_views(model, Image.new("RGB", (0, 4)))
    with pytest.raises(ImageError, match=r"^nowhere.png: No such file or directory$"):
        sample_views(model, "nowhere.png")
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224").eval()
    with pytest.raises(TypeError, match="the places of patches are those of timm's PatchEmbed, got HybridEmbed"):
        sample_views(hybrid, photo())
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sample_views(model, photo(), batch_size=0)
    with pytest.raises(ValueError, match=r"layer must be -3..2 \(the model has 3 blocks\), got 3"):
        sample_views(model, photo(), layer=3)
    fixed = create(TINY, dynamic_img_size=False, img_size=64)
    with pytest.raises(ValueError, match=r"96 x 96 pixels do not fit a model built for 64 x 64; build it with"):
        sample_views(fixed, photo(), size=96)
    assert sample_views(fixed, photo()).size == (64, 64)


def test_the_models_mode_and_gradients_are_left_alone() -> None:
    model = create(TINY)
    dvt_timm.denoise(model, random_head(128))
    model.requires_grad_(True)
    views = collect(sample_views(model, photo(), num_views=1))
    assert not views.features.requires_grad
    assert model(images(64, 64)).requires_grad


def test_positions_move_apart_from_the_picture() -> None:
    """Crossed, the windows of both are drawn independently: which way one went says nothing of the other."""
    model = create(FAMILIES["vit_small_patch14_dinov2.dvt"], dynamic_img_size=True)
    moved = []
    for seed in range(40):
        stream = sample_views(model, photo(), num_views=24, kind="jitter+positions", seed=seed, size=70)
        center = stream.windows.boxes[:-1].reshape(-1, 2, 2).mean(dim=1)
        places = stream.positions.boxes[:-1].reshape(-1, 2, 2).mean(dim=1)
        moved.append(torch.corrcoef(torch.stack([center[:, 0], places[:, 0]]))[0, 1])
    together = torch.stack(moved).square().mean().sqrt()
    assert together < 0.35  # chance alone: .21; two sequences with one seed: .86
    alone = sample_views(model, photo(), num_views=24, kind="positions", seed=3, size=70).positions
    assert torch.equal(alone.boxes[:-1], sample_position_windows(24, 3).boxes)
