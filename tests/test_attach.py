"""A head goes on a model and off it again, in place."""

import pytest
import timm
import torch
from helpers import EVA, FAMILIES, VIT, create, head_of, images, random_head, size_of

import dvt_timm
from dvt_timm import DenoisedEva, DenoisedVisionTransformer, denoise


class TestUndenoise:
    @pytest.mark.parametrize("name", [VIT, EVA])
    @torch.no_grad()
    def test_the_model_is_timms_again(self, name: str) -> None:
        plain = create(FAMILIES[name], dynamic_img_size=True)
        x = images(*size_of(name))
        tokens, kind, args = plain.forward_features(x), type(plain), dict(plain._model_args)
        model = dvt_timm.undenoise(denoise(plain, random_head()))
        assert model is plain
        assert type(model) is kind
        assert model._model_args == args
        assert torch.equal(model.forward_features(x), tokens)
        assert not [key for key in model.state_dict() if key.startswith("denoiser")]

    def test_a_compiled_model_keeps_its_head(self) -> None:
        """The wrapper would be ruined: what it wraps changes its class before it is compiled."""
        model = torch.compile(create(VIT), backend="eager")
        for change in (dvt_timm.undenoise, lambda model: denoise(model, random_head())):
            with pytest.raises(TypeError, match=r"before torch\.compile"):
                change(model)
        assert model(images()).shape[0] == 2

    def test_a_plain_model_has_no_head_to_take_off(self) -> None:
        with pytest.raises(TypeError, match="takes a denoised model, got VisionTransformer"):
            dvt_timm.undenoise(create(FAMILIES[VIT]))


class TestDenoise:
    @pytest.mark.parametrize(
        ("base", "kind"), [(FAMILIES[VIT], DenoisedVisionTransformer), (FAMILIES[EVA], DenoisedEva)]
    )
    @pytest.mark.parametrize("dynamic", [True, False])
    @torch.no_grad()
    def test_in_place_on_an_instance(self, base: str, kind: type, dynamic: bool) -> None:
        size = (84, 112) if "patch14" in base else (96, 128)
        plain = create(base, dynamic_img_size=dynamic, img_size=size)
        x, head = images(*size), random_head()
        theirs = plain.forward_features(x)
        model = denoise(plain, head)
        assert model is plain
        assert type(model) is kind
        assert model.denoiser is head
        ours, prefix = model.forward_features(x), model.num_prefix_tokens
        assert torch.equal(ours[:, :prefix], theirs[:, :prefix])
        torch.testing.assert_close(ours[:, prefix:], head_of(model, theirs, model.patch_embed.grid_size))

    def test_again_swaps_the_head(self) -> None:
        model, head = create(VIT), random_head(seed=5)
        assert denoise(model, head).denoiser is head
        assert type(model) is DenoisedVisionTransformer

    def test_the_head_follows_dtype_and_mode(self) -> None:
        plain = create(FAMILIES[VIT]).double().train()
        model = denoise(plain, random_head())
        assert model.denoiser.pos_embed.dtype == torch.float64
        assert model.denoiser.training

    def test_wrong_width(self) -> None:
        with pytest.raises(ValueError, match="192 channels wide, the model 128"):
            denoise(create(FAMILIES[VIT]), random_head(192))

    def test_models_without_patch_tokens(self) -> None:
        with pytest.raises(TypeError, match="cannot denoise a ResNet"):
            denoise(timm.create_model("resnet18"), random_head())

    def test_subclasses_with_methods_of_their_own(self) -> None:
        distilled_token = create("deit_tiny_distilled_patch16_224")
        with pytest.raises(TypeError, match="VisionTransformerDistilled"):
            denoise(distilled_token, random_head())

    @pytest.mark.parametrize("name", ["vit_small_patch16_224", "eva02_tiny_patch14_224"])
    def test_models_that_drop_patches(self, name: str) -> None:
        with pytest.raises(ValueError, match="patch_drop_rate=0"):
            denoise(create(name, patch_drop_rate=0.5), random_head())

    @pytest.mark.parametrize(
        ("name", "options"),
        [("vit_small_patch16_224", {"global_pool": "avg"}), ("eva02_tiny_patch14_224", {})],
    )
    @torch.no_grad()
    def test_without_a_final_norm_it_warns(self, name: str, options: dict) -> None:
        plain = create(name, **options)
        assert isinstance(plain.norm, torch.nn.Identity)
        x = images(plain.patch_embed.img_size[0], plain.patch_embed.img_size[1])
        theirs = plain.forward_features(x)
        with pytest.warns(UserWarning, match="fc_norm=False"):
            model = denoise(plain, random_head())
        expected = head_of(model, theirs, model.patch_embed.grid_size)
        torch.testing.assert_close(model.forward_features(x)[:, 1:], expected)

    @pytest.mark.parametrize(
        "name", ["vit_base_patch16_siglip_224", "vit_tiny_r_s16_p8_224", "vit_small_patch16_dinov3"]
    )
    @torch.no_grad()
    def test_other_kinds_of_backbones(self, name: str) -> None:
        """No prefix token and attention pooling; a convolutional stem; registers and rotary positions alone."""
        if not timm.is_model(name):
            pytest.skip(f"timm {timm.__version__} has no {name}")
        plain = create(name)
        x = images(*plain.pretrained_cfg["input_size"][1:], batch=1)
        theirs, prefix = plain.forward_features(x), plain.num_prefix_tokens
        model = denoise(plain, random_head())
        ours, grid = model.forward_features(x), model.patch_embed.grid_size
        assert torch.equal(ours[:, :prefix], theirs[:, :prefix])
        torch.testing.assert_close(ours[:, prefix:], head_of(model, theirs, grid))
        (last,) = model.forward_intermediates(x, 1, intermediates_only=True)
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), ours[:, prefix:])

    def test_no_head(self) -> None:
        with pytest.raises(TypeError, match="load_head"):
            denoise(create(FAMILIES[VIT]), torch.nn.Identity())


@pytest.mark.parametrize("name", [VIT, EVA])
@pytest.mark.parametrize("method", ["forward", "forward_features", "forward_intermediates"])
def test_a_replaced_method_would_go_round_the_denoiser(name: str, method: str) -> None:
    for denoiser in ({"head": random_head()}, {"positions": 2}):
        model = create(FAMILIES[name], dynamic_img_size=True)
        setattr(model, method, model.forward_features)
        with pytest.raises(TypeError, match=rf"the {method} of this \w+ was replaced on the instance"):
            denoise(model, **denoiser)
        delattr(model, method)
        denoise(model, **denoiser)
        setattr(model, method, model.forward_features)
        with pytest.raises(TypeError, match="was replaced on the instance"):
            dvt_timm.undenoise(model)
