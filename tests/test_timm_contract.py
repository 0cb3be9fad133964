"""Everything else a timm user reaches for, on the denoised models."""

import copy
import io
import pickle
from importlib import import_module
from typing import Any

import pytest
import timm
import timm.data
import timm.optim
import torch
from helpers import EVA, FAMILIES, VIT, create, create_pair, head_of, images, perturb, random_head, size_of
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from dvt_timm import denoise

both = pytest.mark.parametrize("name", [VIT, EVA])
vit_and_slowly_eva = pytest.mark.parametrize("name", [VIT, pytest.param(EVA, marks=pytest.mark.slow)])


def patch_of(name: str) -> int:
    return int(name.split("_patch")[1].split("_")[0])


class TestImageSizes:
    @both
    @pytest.mark.parametrize("cells", [(1, 1), (3, 7), (9, 2), (16, 16)])
    @torch.no_grad()
    def test_any_size(self, name: str, cells: tuple[int, int]) -> None:
        model, plain = create_pair(name)
        x = images(cells[0] * patch_of(name), cells[1] * patch_of(name))
        ours, theirs = model.forward_features(x), plain.forward_features(x)
        torch.testing.assert_close(ours[:, 1:], head_of(model, theirs, cells))

    @both
    @torch.no_grad()
    def test_padding(self, name: str) -> None:
        model, plain = create_pair(name, dynamic_img_pad=True)
        patch = patch_of(name)
        x = images(2 * patch + 3, 3 * patch + 1)
        assert model.forward_intermediates(x, 1, intermediates_only=True)[0].shape[-2:] == (3, 4)
        ours, theirs = model.forward_features(x), plain.forward_features(x)
        torch.testing.assert_close(ours[:, 1:], head_of(model, theirs, (3, 4)))

    @both
    @torch.no_grad()
    def test_fixed_size(self, name: str) -> None:
        size = (3 * patch_of(name), 5 * patch_of(name))
        model, plain = create_pair(name, dynamic_img_size=False, img_size=size)
        assert model.patch_embed.grid_size == (3, 5)
        ours, theirs = model.forward_features(images(*size)), plain.forward_features(images(*size))
        torch.testing.assert_close(ours[:, 1:], head_of(model, theirs, (3, 5)))
        with pytest.raises(ValueError, match=f"width {size[0]} is not the fixed {size[1]}.*dynamic_img_size=True"):
            model(images(size[0], size[0]))

    @both
    def test_fixed_size_defaults_to_the_input_size_of_the_name(self, name: str) -> None:
        model = create(name, dynamic_img_size=False)
        side = 518 if patch_of(name) == 14 else 512
        assert model.patch_embed.img_size == (side, side)
        assert model.pos_embed.shape[1] == (side // patch_of(name)) ** 2 + 1

    @both
    @pytest.mark.parametrize("dynamic", [True, False])
    def test_the_configuration_asks_for_the_size_as_the_bases_does(self, name: str, dynamic: bool) -> None:
        """Code that may choose a size, timm's own tests for one, would take some that are not whole patches."""
        model = create(name, dynamic_img_size=dynamic)
        plain = create(FAMILIES[name], dynamic_img_size=dynamic)
        assert model.pretrained_cfg["fixed_input_size"] is plain.pretrained_cfg["fixed_input_size"] is True

    @both
    @torch.no_grad()
    def test_set_input_size(self, name: str) -> None:
        model, plain = create_pair(name)
        size = (4 * patch_of(name), 6 * patch_of(name))
        for m in (model, plain):
            m.set_input_size(img_size=size)
        assert model.patch_embed.grid_size == (4, 6)
        ours, theirs = model.forward_features(images(*size)), plain.forward_features(images(*size))
        torch.testing.assert_close(ours[:, 1:], head_of(model, theirs, (4, 6)))

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            (
                VIT,
                (500, 518),
                "height 500 is not a multiple of patch size 14; resize to 490 or pass dynamic_img_pad=True",
            ),
            (EVA, (512, 100), "width 100 is not a multiple of patch size 16; resize to 96"),
            (VIT, (7, 28), "height 7 is not a multiple of patch size 14; resize to 14"),
            (VIT, (28, 0), "width 0 is not a multiple of patch size 14; resize to 14"),
        ],
    )
    def test_a_size_that_does_not_fit_is_refused(self, name: str, size: tuple[int, int], message: str) -> None:
        model = create(name)
        for forward in (model, model.forward_features, model.forward_intermediates):
            with pytest.raises(ValueError, match=message):
                forward(images(*size))
        with pytest.raises(ValueError, match=r"\[B, channels, height, width\]"):
            model(images(*size)[0])

    @pytest.mark.parametrize("pretrained", [False, True])
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"img_size": 7}, "whole patches of 14 pixels; use 14 in place of 7"),
            ({"img_size": (518, 13), "stride": 7}, "use 14 in place of 13"),
            ({"img_size": 500, "dynamic_img_size": False}, "use 490 in place of 500"),
            ({"patch_size": 16, "dynamic_img_size": False}, "whole patches of 16 pixels; use 512 in place of 518"),
        ],
    )
    def test_a_nominal_size_that_does_not_fit_is_refused(self, options: dict, message: str, pretrained: bool) -> None:
        with pytest.raises(ValueError, match=message):
            timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=pretrained, **options)

    def test_fixed_models_that_denoise_made_say_how_to_build_them(self) -> None:
        plain = create(FAMILIES[VIT], img_size=(28, 50), dynamic_img_size=False)
        model = denoise(plain, random_head())
        with pytest.raises(ValueError, match=r"width 50 is not a multiple.*42 or build with that img_size"):
            model(images(28, 50))

    def test_the_position_embedding_stays_the_bases_own(self) -> None:
        """So that a denoised model equals its base at every image size, with one resampling."""
        model = create("vit_base_patch16_224.dvt_dino")
        assert model.patch_embed.grid_size == (14, 14)
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 512, 512)
        if hasattr(timm.models, "get_model_input_config"):
            assert timm.models.get_model_input_config(model)["input_size"] == (3, 512, 512)
            static = create("vit_base_patch16_224.dvt_dino", dynamic_img_size=False)
            for built, fixed in ((model, False), (static, True)):
                assert timm.models.get_model_input_config(built)["fixed_input_size"] == fixed


class TestStride:
    @pytest.mark.parametrize(("name", "stride"), [(VIT, 7), (VIT, 4), (EVA, 8), ("deit3_base_patch16_224.dvt", 4)])
    @torch.no_grad()
    def test_overlapping_patches(self, name: str, stride: int) -> None:
        """Against a plain model whose convolution and position embedding are made dense by hand."""
        patch, prefix = patch_of(name), 1
        size = (4 * patch, 6 * patch)
        grid = ((size[0] - patch) // stride + 1, (size[1] - patch) // stride + 1)
        model, plain = create(name, stride=stride, img_size=size), create(FAMILIES[name], dynamic_img_size=True)
        model_state, plain_state = model.state_dict(), plain.state_dict()
        model.load_state_dict({**model_state, **{k: v for k, v in plain_state.items() if k != "pos_embed"}})
        tokens = 0 if plain.no_embed_class else prefix
        old = int((plain.pos_embed.shape[1] - tokens) ** 0.5)
        dense = resample_abs_pos_embed(plain.pos_embed, grid, (old, old), num_prefix_tokens=tokens)
        model.pos_embed.copy_(dense)
        assert model.patch_embed.grid_size == model.patch_embed.dynamic_feat_size(size) == grid
        assert model.patch_embed.num_patches == grid[0] * grid[1]

        plain.patch_embed.proj.stride = (stride, stride)
        plain.patch_embed.grid_size = grid
        plain.pos_embed = nn.Parameter(dense)
        x = images(*size)
        theirs, ours = plain.forward_features(x), model.forward_features(x)
        assert theirs.shape[1] == grid[0] * grid[1] + prefix
        assert torch.equal(ours[:, :prefix], theirs[:, :prefix])
        torch.testing.assert_close(ours[:, prefix:], head_of(model, theirs, grid))
        assert model.forward_intermediates(x, 1, intermediates_only=True)[0].shape[-2:] == grid

    @pytest.mark.parametrize("name", [VIT, EVA, "vit_base_patch16_224.dvt_dino"])
    def test_the_position_embedding_is_resampled_once_from_the_bases_grid(self, name: str, tmp_path) -> None:
        base = create(FAMILIES[name])
        save_file(base.state_dict(), tmp_path / "base.safetensors")
        overlay = {"file": str(tmp_path / "base.safetensors")}
        stride = patch_of(name) // 2
        model = create(name, stride=stride, pretrained=True, pretrained_cfg_overlay=overlay, denoiser=random_head())
        side = 518 if patch_of(name) == 14 else 512
        cells = (side - patch_of(name)) // stride + 1
        assert model.patch_embed.grid_size == (cells, cells)
        expected = resample_abs_pos_embed(base.pos_embed, (cells, cells), base.patch_embed.grid_size)
        assert torch.equal(model.pos_embed, expected)

    @torch.no_grad()
    def test_real_weights(self) -> None:
        """Every second token of a stride-7 map lies where a stride-14 token lies: they agree far beyond chance."""
        x = images(112, 112, batch=1)
        name = "vit_small_patch14_dinov2.dvt_demo"
        dense, coarse = (timm.create_model(name, pretrained=True, **kw).eval() for kw in ({"stride": 7}, {}))
        a = dense.forward_intermediates(x, 1, intermediates_only=True)[0][:, :, ::2, ::2]
        b = coarse.forward_intermediates(x, 1, intermediates_only=True)[0]
        assert a.shape == b.shape
        assert nn.functional.cosine_similarity(a, b).mean() > 0.6

    @torch.no_grad()
    def test_sizes_features_and_static_models(self) -> None:
        features = create(VIT, stride=7, features_only=True)
        assert features.feature_info.reduction() == [7, 7, 7]
        assert features(images(56, 84))[-1].shape[-2:] == (7, 11)
        assert create(VIT, stride=7, dynamic_img_pad=True).patch_embed.dynamic_feat_size((50, 57)) == (7, 9)
        static = create(EVA, stride=8, dynamic_img_size=False, img_size=64)
        assert static.forward_features(images(64, 64)).shape[1] == 7 * 7 + 1
        static.set_input_size(img_size=(80, 64))
        assert static.patch_embed.grid_size == (9, 7)
        assert static.forward_features(images(80, 64)).shape[1] == 9 * 7 + 1

    def test_errors(self) -> None:
        for stride in (15, -1):
            with pytest.raises(ValueError, match=r"1\.\.14"):
                create(VIT, stride=stride)
        with pytest.raises(ValueError, match=r"1\.\.14.*got 0"):
            create(VIT, stride=0)
        for odd in (True, 7.0, "7", (7, 7)):
            with pytest.raises(TypeError, match="stride must be one integer"):
                create(VIT, stride=odd)
        with pytest.raises(ValueError, match="patch size"):
            create(VIT, stride=7).set_input_size(patch_size=16)

    @vit_and_slowly_eva
    @pytest.mark.parametrize("dynamic_img_size", [True, False])
    @torch.no_grad()
    def test_compilers(self, name: str, dynamic_img_size: bool) -> None:
        size = size_of(name)
        model = create(name, stride=patch_of(name) // 2, dynamic_img_size=dynamic_img_size, img_size=size)
        x = images(*size)
        expected = model(x)
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)

    @torch.no_grad()
    def test_on_plain_and_distilled_names(self) -> None:
        for name in ("vit_base_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.dvt_voc_distilled"):
            model = create(name, stride=7, img_size=56)
            assert not hasattr(model, "denoiser")
            assert model.forward_features(images(56, 56)).shape[1] == 7 * 7 + 1


class TestArguments:
    @both
    @torch.no_grad()
    def test_in_chans(self, name: str) -> None:
        model, plain = create_pair(name, in_chans=5)
        x = images(*size_of(name), channels=5)
        assert torch.equal(model.forward_features(x)[:, 0], plain.forward_features(x)[:, 0])

    @both
    @torch.no_grad()
    def test_classifier(self, name: str) -> None:
        model = create(name, num_classes=7)
        x = images(*size_of(name))
        assert model(x).shape == (2, 7)
        assert model.get_classifier().out_features == 7
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
        model.reset_classifier(0)
        assert torch.equal(model(x), model.forward_features(x)[:, 0])

    @both
    @torch.no_grad()
    def test_average_pooling_pools_denoised_tokens(self, name: str) -> None:
        model = create(name, num_classes=0, global_pool="avg")
        x = images(*size_of(name))
        tokens = model.forward_features(x)
        assert not isinstance(model.norm, nn.Identity)
        torch.testing.assert_close(model(x), tokens[:, 1:].mean(1))
        assert create(name, num_classes=0, global_pool="").forward(x).shape == tokens.shape
        token_pooled = create(name, num_classes=4)
        token_pooled.reset_classifier(4, global_pool="avg")
        assert token_pooled(x).shape == (2, 4)

    def test_average_pooling_with_pretrained_weights(self) -> None:
        model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True, global_pool="avg")
        assert model.norm.weight.mean() != 1

    @both
    def test_drop_path(self, name: str) -> None:
        model = create(name, drop_path_rate=0.5).train()
        assert model.blocks[-1].drop_path1.drop_prob == 0.5
        x = images(*size_of(name))
        assert not torch.equal(model.forward_features(x), model.forward_features(x))

    @both
    def test_grad_checkpointing_covers_the_head(self, name: str) -> None:
        model = create(name).train()
        x = images(*size_of(name))

        def gradients() -> tuple[list[torch.Tensor], int]:
            calls = []
            hook = model.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
            model.zero_grad()
            model.forward_features(x).square().mean().backward()
            hook.remove()
            return [p.grad.clone() for p in model.parameters() if p.grad is not None], len(calls)

        plain, calls = gradients()
        assert calls == 1
        model.set_grad_checkpointing()
        checkpointed, calls = gradients()
        assert calls == 2  # once more in the backward pass
        for a, b in zip(plain, checkpointed, strict=True):
            torch.testing.assert_close(a, b)

    @both
    def test_gradients_reach_every_parameter(self, name: str) -> None:
        model = create(name, num_classes=5, global_pool="avg").train()
        model(images(*size_of(name))).square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] in (
            [],
            ["cls_token"],
        )

    @both
    def test_weight_decay_and_layer_groups(self, name: str) -> None:
        model = create(name, num_classes=5)
        assert {"pos_embed", "cls_token", "denoiser.pos_embed"} <= model.no_weight_decay()
        optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
        names = {id(p): n for n, p in model.named_parameters()}
        scale, decay = {}, {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                scale[names[id(p)]] = group["lr_scale"]
                decay[names[id(p)]] = group["weight_decay"]
        assert set(scale) == set(names.values())
        assert scale["head.weight"] == 1
        assert scale["denoiser.denoiser.mlp.fc1.weight"] == scale["denoiser.pos_embed"] == 0.5
        assert scale["blocks.2.mlp.fc2.weight" if name == VIT else "blocks.2.attn.proj.weight"] == 0.25
        assert scale["patch_embed.proj.weight"] == 0.5**5
        assert decay["denoiser.pos_embed"] == decay["denoiser.denoiser.norm1.weight"] == 0
        assert decay["denoiser.denoiser.attn.qkv.weight"] == 0.1

    @both
    def test_feature_info_and_config(self, name: str) -> None:
        model = create(name)
        assert [info["module"] for info in model.feature_info] == ["blocks.0", "blocks.1", "blocks.2"]
        assert all(info["num_chs"] == 128 and info["reduction"] == patch_of(name) for info in model.feature_info)
        assert model.default_cfg is model.pretrained_cfg
        assert model.pretrained_cfg["tag"] == name.split(".")[1]
        assert model.pretrained_cfg["architecture"] == name.split(".")[0]
        config = timm.data.resolve_model_data_config(model)
        side = 518 if patch_of(name) == 14 else 512
        assert config["input_size"] == (3, side, side)
        assert config["crop_pct"] == 1.0
        timm.data.create_transform(**config)
        features = create(name, features_only=True)
        assert timm.data.resolve_model_data_config(features)["input_size"] == (3, side, side)


class TestCopies:
    @both
    @torch.no_grad()
    def test_deepcopy_pickle_and_torch_save(self, name: str) -> None:
        model, x = create(name), images(*size_of(name))
        expected = model.forward_features(x)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
        for twin in twins:
            assert type(twin) is type(model)
            assert torch.equal(twin.forward_features(x), expected)
            perturb(twin.denoiser)
        assert torch.equal(model.forward_features(x), expected)

    @both
    @torch.no_grad()
    def test_state_dict_round_trip(self, name: str) -> None:
        model, other = create(name), create(name)
        perturb(model)
        x = images(*size_of(name))
        assert not torch.equal(model.forward_features(x), other.forward_features(x))
        other.load_state_dict(model.state_dict())
        assert torch.equal(model.forward_features(x), other.forward_features(x))

    @both
    @torch.no_grad()
    def test_the_checkpoint_filter_beside_the_class(self, name: str) -> None:
        """It keeps the head, and fits positions to the model's grid, as that of timm's family does."""
        smaller, larger = (create(name, img_size=side * patch_of(name)) for side in (4, 6))
        perturb(smaller)
        filtered = import_module(type(larger).__module__).checkpoint_filter_fn(smaller.state_dict(), larger)
        larger.load_state_dict(filtered)
        assert larger.patch_embed.grid_size == (6, 6)
        x = torch.ones(1, 2, 3, 128)
        assert torch.equal(larger.denoiser(x), smaller.denoiser(x))
        assert torch.equal(larger.norm.weight, smaller.norm.weight)


class TestPrecision:
    @both
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @torch.no_grad()
    def test_half(self, name: str, dtype: torch.dtype) -> None:
        model, x = create(name), images(*size_of(name))
        expected = model.forward_features(x)
        with torch.autocast("cpu", dtype):
            mixed = model.forward_features(x)
        half = model.to(dtype).forward_features(x.to(dtype))
        assert half.dtype == dtype
        for output in (mixed, half):
            assert nn.functional.cosine_similarity(output.float(), expected, dim=-1).min() > 0.99

    @both
    @torch.no_grad()
    def test_channels_last(self, name: str) -> None:
        model, x = create(name), images(*size_of(name))
        expected = model.forward_features(x)
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model.forward_features(x), expected, atol=1e-4, rtol=1e-4)


class Maps(nn.Module):
    """The last map of a model, as an exported graph would give it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.forward_intermediates(x, indices=1, intermediates_only=True)[0]


class TestCompilers:
    @vit_and_slowly_eva
    @pytest.mark.parametrize("entry", ["forward_features", "forward_intermediates"])
    @torch.no_grad()
    def test_compile_fullgraph(self, name: str, entry: str) -> None:
        torch._dynamo.reset()
        model, x = create(name), images(*size_of(name))
        function = model.forward_features if entry == "forward_features" else Maps(model)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x))
        perturb(model.denoiser)
        torch.testing.assert_close(compiled(x), function(x))

    @pytest.mark.slow
    @both
    def test_compile_with_inductor_and_gradients(self, name: str) -> None:
        torch._dynamo.reset()
        model, x = create(name), images(*size_of(name))
        compiled = torch.compile(model.forward_features, fullgraph=True)
        compiled(x).square().mean().backward()
        ours = [p.grad.clone() for p in model.denoiser.parameters()]
        model.zero_grad()
        model.forward_features(x).square().mean().backward()
        for a, p in zip(ours, model.denoiser.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, atol=1e-5, rtol=1e-3)

    @vit_and_slowly_eva
    @pytest.mark.parametrize("dynamic_img_size", [True, False])
    @torch.no_grad()
    def test_export_with_a_dynamic_batch(self, name: str, dynamic_img_size: bool) -> None:
        size = size_of(name)
        model = Maps(create(name, dynamic_img_size=dynamic_img_size, img_size=size))
        program = torch.export.export(model, (images(*size),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        x = images(*size, batch=5)
        torch.testing.assert_close(program.module()(x), model(x))

    @pytest.mark.slow
    @both
    @torch.no_grad()
    def test_onnx(self, name: str, tmp_path) -> None:
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
        size = size_of(name)
        model = Maps(create(name, img_size=size))
        path = str(tmp_path / "model.onnx")
        torch.onnx.export(model, (images(*size),), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},))
        session = onnxruntime.InferenceSession(path)
        x = images(*size, batch=3)
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), model(x), atol=1e-4, rtol=0)

    @pytest.mark.slow
    @both
    @pytest.mark.parametrize("form", [Maps, lambda model: model])
    def test_onnx_by_torchscript_at_a_fixed_size(self, name: str, form, tmp_path) -> None:
        """ONNX knows no antialiased resampling: the head's positions are a constant, as the backbone's are."""
        pytest.importorskip("onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
        size = size_of(name)
        model = form(create(name, img_size=size, dynamic_img_size=False, global_pool="avg", num_classes=3))
        path, x = str(tmp_path / "model.onnx"), images(*size)
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
        session = onnxruntime.InferenceSession(path)
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), model(x).detach(), atol=1e-4, rtol=0)
        assert not torch.jit.is_tracing()

    @both
    @torch.no_grad()
    def test_jit(self, name: str) -> None:
        model = create(name, num_classes=0, global_pool="avg")
        x, other = images(*size_of(name)), images(*size_of(name)).neg()
        for compiled in (torch.jit.trace(model, x), torch.jit.script(model)):
            torch.testing.assert_close(compiled(other), model(other))

    @pytest.mark.parametrize("options", [{}, {"norm": True}, {"output_fmt": "NLC"}])
    @torch.no_grad()
    def test_jit_of_maps(self, options: dict[str, Any]) -> None:
        """timm's own ViTs cannot be scripted so, its Evas can."""
        model = create(EVA)
        getter = FeatureGetterNet(model, out_indices=[0, 2], **options)
        scripted = torch.jit.script(getter)
        for size in ((64, 80), (112, 96)):
            early, last = getter(images(*size))
            torch.testing.assert_close(scripted(images(*size)), [early, last])

    @pytest.mark.parametrize("indices", [[2], [0, 1]])
    @torch.no_grad()
    def test_jit_of_maps_and_final_features(self, indices: list[int]) -> None:
        model = create(EVA)

        class Client(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model
                self.indices = indices

            def forward(self, x: Tensor, mask: Tensor | None = None):
                return self.model.forward_intermediates(x, self.indices, attn_mask=mask)

        client, x = Client(), images(*size_of(EVA))
        scripted = torch.jit.script(client)
        torch.testing.assert_close(scripted(x), client(x))
        with pytest.raises(torch.jit.Error, match="annotated to be ignored"):
            scripted(x, torch.ones(1, 1, 21, 21, dtype=torch.bool))
