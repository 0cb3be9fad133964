"""Means over views of the positions: no head, all maps, the plain pass's prefix tokens."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import EVA, FAMILIES, SMALL, VIT, create, images, photo, random_head, same_weights
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import dvt_timm
from dvt_timm import offline
from dvt_timm.positions import sample_position_windows, under_windows

K = 3
EIGHT = {"positions": K}
NAMES = [
    "vit_small_patch14_dinov2",  # class token in the embedding
    "vit_base_patch14_reg4_dinov2",  # registers, outside it
    "deit3_base_patch16_224",  # no_embed_class
    "eva02_base_patch16_clip_224",  # absolute and rotary
    "vit_small_patch16_dinov3",  # rotary only
    "vit_small_patch16_rope_mixed_224",  # rotary, of each block and head
]
both = pytest.mark.parametrize("name", [VIT, EVA])
vit_and_slowly_eva = pytest.mark.parametrize("name", [VIT, pytest.param(EVA, marks=pytest.mark.slow)])


def built(name: str, **options: Any) -> Any:
    model = create(name, **{"denoiser": EIGHT, "dynamic_img_size": True, **options})
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "gamma" in key:  # LayerScale starts near 0
                parameter.fill_(1.0)
            elif "attn" in key and parameter.ndim == 2:  # attention of random weights hardly tells places apart
                parameter.mul_(6)
    return model


def plain_of(model: Any) -> Any:
    return dvt_timm.undenoise(copy.deepcopy(model))


def pixels(name: str, batch: int = 2) -> Tensor:
    return images(*((70, 84) if "patch14" in name else (96, 112)), batch=batch)


def by_hand(plain: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Patches and prefix tokens, one window and one image at a time."""
    windows, prefix = sample_position_windows(K), plain.num_prefix_tokens
    means = []
    for image in x:
        level = plain.forward_features(image[None])[0, prefix:].mean(dim=0)
        views = [
            under_windows(plain, windows[i : i + 1], tuple(x.shape[2:])).forward_features(image[None])[0, prefix:]
            for i in range(K)
        ]
        means.append(sum(view - view.mean(dim=0) + level for view in views) / K)
    return torch.stack(means), plain.forward_features(x)[:, :prefix]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES),
        *((name, {"stride": 10}) for name in (VIT, EVA)),
        *((name, {"dynamic_img_size": False}) for name in (VIT, EVA)),
        (VIT, {"dynamic_img_pad": True}),
        (VIT, {"in_chans": 1}),
    ],
)
@torch.no_grad()
def test_patches_are_means_over_windows_and_prefix_tokens_are_plain(name: str, options: dict[str, Any]) -> None:
    x = pixels(name)[:, : options.get("in_chans", 3)]
    if "dynamic_img_pad" in options:
        x = x[..., 3:, 5:]
    if "stride" in options or "dynamic_img_size" in options:
        options = {"img_size": tuple(x.shape[2:]), **options}
    model = built(name, **options)
    assert isinstance(model, dvt_timm.AveragedEva if isinstance(model, Eva) else dvt_timm.AveragedVisionTransformer)
    tokens, plain = model.forward_features(x), plain_of(model)
    patches, prefix = by_hand(plain, x)
    torch.testing.assert_close(tokens[:, model.num_prefix_tokens :], patches, atol=2e-4, rtol=0)
    torch.testing.assert_close(tokens[:, : model.num_prefix_tokens], prefix, atol=1e-5, rtol=0)
    assert not torch.allclose(patches, plain.forward_features(x)[:, model.num_prefix_tokens :], atol=1e-2)
    torch.testing.assert_close(model.forward_head(tokens), plain(x), atol=1e-4, rtol=0)  # a mean keeps the mean


@both
@torch.no_grad()
def test_it_is_the_stage_1_of_positions(name: str) -> None:
    model = built(name)
    size = 70 if "patch14" in name else 96
    solution = offline.fit_image(plain_of(model), photo(), kind="positions", num_views=K, size=size)
    x = dvt_timm.preprocess(model, photo().resize((size, size)), size)
    maps = dvt_timm.feature_maps(model, x)
    torch.testing.assert_close(maps.denoised[0].permute(1, 2, 0), solution.semantics, atol=1e-4, rtol=0)
    torch.testing.assert_close(maps.raw[0].permute(1, 2, 0), solution.raw, atol=1e-4, rtol=0)
    same = offline.fit_image(model, photo(), kind="positions", num_views=K, size=size)  # of the averaging model itself
    torch.testing.assert_close(same.semantics, solution.semantics, atol=1e-5, rtol=0)
    jittered = [offline.fit_image(m, photo(), num_views=K, size=size).semantics for m in (model, plain_of(model))]
    torch.testing.assert_close(*jittered, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@both
@torch.no_grad()
def test_every_map_of_forward_intermediates(name: str, output_fmt: Any, norm: bool) -> None:
    model, x = built(name), pixels(name)
    plain, windows = plain_of(model), sample_position_windows(K)
    options: dict[str, Any] = {"output_fmt": output_fmt, "norm": norm, "return_prefix_tokens": True}
    final, maps = model.forward_intermediates(x, **options)
    plain_final, plain_maps = plain.forward_intermediates(x, **options)
    torch.testing.assert_close(final, model.forward_features(x), atol=1e-5, rtol=0)
    over = (2, 3) if output_fmt == "NCHW" else (1,)
    views = [
        under_windows(plain, window_of(windows, i, len(x)), tuple(x.shape[2:])).forward_intermediates(x, **options)[1]
        for i in range(K)
    ]
    for block, ((fmap, prefix), (raw, plain_prefix)) in enumerate(zip(maps, plain_maps, strict=True)):
        expected = sum(view[block][0] - view[block][0].mean(dim=over, keepdim=True) for view in views) / K
        torch.testing.assert_close(fmap, expected + raw.mean(dim=over, keepdim=True), atol=2e-4, rtol=0)
        torch.testing.assert_close(prefix, plain_prefix, atol=1e-5, rtol=0)
    assert final.shape == plain_final.shape


def window_of(windows: Any, i: int, batch: int) -> Any:
    return type(windows)(windows.boxes[i].expand(batch, -1), windows.mirrored[i].expand(batch))


@torch.no_grad()
def test_a_dictionary_of_intermediates() -> None:
    model, x = built(VIT), pixels(VIT)
    output = model.forward_intermediates(x, output_dict=True, return_prefix_tokens=True)
    final, maps = model.forward_intermediates(x, return_prefix_tokens=True)
    torch.testing.assert_close(output["image_features"], final)
    for i, (fmap, prefix) in enumerate(maps):
        torch.testing.assert_close(output["image_intermediates"][i], fmap)
        torch.testing.assert_close(output["image_intermediates_prefix"][i], prefix)


@both
@torch.no_grad()
def test_features_only_and_other_sizes(name: str) -> None:
    net, x = built(name, features_only=True, out_indices=(0, 2)), pixels(name)
    assert net.feature_info.channels() == [SMALL["embed_dim"]] * 2
    maps = net(x)
    expected = built(name).forward_intermediates(x, indices=[0, 2], intermediates_only=True, norm=False)
    for fmap, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(fmap, other)
    fixed = built(name, dynamic_img_size=False, img_size=tuple(x.shape[2:]))
    with pytest.raises(ValueError, match="not the fixed"):
        fixed.forward_features(images(112, 112))


@both
def test_saved_and_built_again(name: str, tmp_path: Path) -> None:
    model = built(name)
    assert model._model_args["denoiser"] == EIGHT
    dvt_timm.save_model(model, tmp_path / "saved")
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert type(again) is type(model)
    assert again.denoiser.config == EIGHT
    assert same_weights(again, model)
    x = pixels(name)
    torch.testing.assert_close(again.forward_features(x), model.forward_features(x))
    with pytest.raises(TypeError, match="save_head saves a DenoiserHead or a denoised model's, got Averaged"):
        dvt_timm.save_head(model, tmp_path / "head")


@both
@torch.no_grad()
def test_put_on_and_taken_off(name: str) -> None:
    model, x = create(FAMILIES[name], dynamic_img_size=True), pixels(name)
    before = model.forward_features(x)
    assert dvt_timm.denoise(model, positions=K) is model
    clean = model.forward_features(x)
    dvt_timm.denoise(model, random_head())  # takes its place
    assert isinstance(model, dvt_timm.DenoisedVisionTransformer | dvt_timm.DenoisedEva)
    dvt_timm.denoise(model, positions=K)  # and back
    assert torch.equal(model.forward_features(x), clean)
    assert not [key for key in model.state_dict() if key.startswith("denoiser")]
    assert type(dvt_timm.undenoise(model)) in (VisionTransformer, Eva)
    assert torch.equal(model.forward_features(x), before)
    assert "denoiser" not in model._model_args


@torch.no_grad()
def test_any_dtype_device_thread_and_image_alone() -> None:
    model, x = built(VIT), pixels(VIT, batch=5)
    expected = model.forward_features(x)
    for i in range(5):
        torch.testing.assert_close(model.forward_features(x[i : i + 1])[0], expected[i], atol=1e-5, rtol=0)
    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(torch.no_grad()(model.forward_features), [x] * 3))
    assert all(torch.equal(a, expected) for a in at_once)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.forward_features(x).float(), expected, atol=0.3, rtol=0.1)
    half = model.to(torch.bfloat16)
    assert half.forward_features(x.bfloat16()).dtype == torch.bfloat16
    assert half.denoiser.windows.boxes.dtype == torch.float64


def test_it_can_be_trained_and_checkpoints_its_blocks() -> None:
    model, x = built(VIT).train(), pixels(VIT)
    model.forward_features(x).square().mean().backward()
    plain = {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.set_grad_checkpointing()
    model.forward_features(x).square().mean().backward()
    for key, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient)
    assert "pos_embed" in plain


@torch.no_grad()
def test_masks_are_those_of_each_image() -> None:
    model, x = built(VIT), pixels(VIT)
    tokens = model.forward_features(x).shape[1]
    mask = torch.zeros(len(x), 1, tokens, tokens)
    mask[0, :, :, 1 : tokens // 2] = -torch.inf
    heads = torch.zeros(SMALL["num_heads"], tokens, tokens)  # one for each head, as PyTorch takes them
    torch.testing.assert_close(model.forward_features(x, attn_mask=heads), model.forward_features(x))
    masked = model.forward_features(x, attn_mask=mask)
    torch.testing.assert_close(masked[1], model.forward_features(x)[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(masked[0], model.forward_features(x[:1], attn_mask=mask[0, 0])[0], atol=1e-4, rtol=0)
    assert not torch.allclose(masked[0], model.forward_features(x)[0], atol=1e-2)


def test_what_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match="has no position embedding to move"):
        create("vit_small_patch14_dinov2", pos_embed="none", denoiser=EIGHT)
    for number in (0, -1, "8", 8.0, True, None, 10**9):
        with pytest.raises(ValueError, match=rf"positions must be a whole number of views, 1\.\.1024, got {number!r}"):
            create(VIT, denoiser={"positions": number})
    with pytest.raises(ValueError, match="drops positions that are to be moved; build it with pos_drop_rate=0"):
        create(VIT, denoiser=EIGHT, pos_drop_rate=0.5)
    with pytest.raises(ValueError, match=r"use torch\.export"):
        create_feature_extractor(create(VIT, denoiser=EIGHT, dynamic_img_size=False), ["norm"])
    with pytest.raises(TypeError, match=r"patches come from timm's PatchEmbed, got HybridEmbed"):
        dvt_timm.denoise(timm.create_model("vit_tiny_r_s16_p8_224"), positions=8)
    with pytest.raises(ValueError, match=r'should be .* or \{"positions": n\}'):
        create(VIT, denoiser={"positions": 8, "grid_size": [5, 5]})
    with pytest.raises(ValueError, match="drops patches"):
        create(VIT, denoiser=EIGHT, patch_drop_rate=0.5)
    with pytest.raises(TypeError, match="cannot move the positions of a ResNet"):
        dvt_timm.denoise(timm.create_model("resnet10t"), positions=8)
    with pytest.raises(TypeError, match="takes no denoiser"):
        timm.create_model("resnet10t", denoiser=EIGHT)
    model = create(FAMILIES[VIT])
    for wrong in ({}, {"head": random_head(), "positions": 8}):
        with pytest.raises(TypeError, match="pass one of them"):
            dvt_timm.denoise(model, **wrong)
    with pytest.raises(TypeError, match="a compiled model"):
        dvt_timm.denoise(torch.compile(model, backend="eager"), positions=8)
    averaged = built(VIT)
    with pytest.raises(AssertionError, match="repeats its batch itself"):
        averaged._pos_embed(averaged.patch_embed(pixels(VIT)))


class Maps(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_intermediates(x, indices=2, intermediates_only=True)[1]


class TestCompilers:
    @vit_and_slowly_eva
    @pytest.mark.parametrize("entry", ["forward_features", "forward_intermediates"])
    @torch.no_grad()
    def test_compile_fullgraph(self, name: str, entry: str) -> None:
        torch._dynamo.reset()
        model, x = built(name), pixels(name)
        function = model.forward_features if entry == "forward_features" else Maps(model)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x), atol=1e-5, rtol=1e-4)

    @vit_and_slowly_eva
    @pytest.mark.parametrize("dynamic_img_size", [True, False])
    @torch.no_grad()
    def test_export_with_a_dynamic_batch(self, name: str, dynamic_img_size: bool) -> None:
        x = pixels(name)
        model = Maps(built(name, dynamic_img_size=dynamic_img_size, img_size=tuple(x.shape[2:])))
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        many = pixels(name, batch=5)
        torch.testing.assert_close(program.module()(many), model(many), atol=1e-5, rtol=1e-4)

    @pytest.mark.slow
    @both
    @torch.no_grad()
    def test_onnx(self, name: str, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
        x = pixels(name)
        model = Maps(built(name, img_size=tuple(x.shape[2:])))
        path = str(tmp_path / "model.onnx")
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},))
        session = onnxruntime.InferenceSession(path)
        many = pixels(name, batch=3)
        (output,) = session.run(None, {session.get_inputs()[0].name: many.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), model(many), atol=1e-4, rtol=0)

    @pytest.mark.slow
    @both
    @torch.no_grad()
    def test_traced(self, name: str) -> None:
        model, x = Maps(built(name)), pixels(name)
        traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x.neg()), model(x.neg()), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(traced(x), Maps(plain_of(model.model))(x), atol=1e-2)
