"""A head trained on timm's weights denoises the same backbone in torch.hub and transformers."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import images, random_head, same_weights
from homes import TIMM, hub_model, image_size, timm_model, transformers_model
from torch import Tensor

import dvt_timm
from dvt_timm import denoise, undenoise

HUB = ["dinov2", "dinov2_registers", "dinov3"]
TRANSFORMERS = list(TIMM)
GRIDS = [(4, 4), (3, 6)]


def photos(home: str, rows: int = 3, columns: int = 6) -> Tensor:
    return images(*image_size(home, rows, columns))


def call(model: Any, x: Tensor, **options: Any) -> Any:
    """A model of transformers on images of any size."""
    siglip = "Siglip" in type(model).__name__
    return model(x, **({"interpolate_pos_encoding": True} if siglip else {}), **options)


def plain_model(home: str, library: str = "transformers", **options: Any) -> Any:
    model = timm_model(home)
    return hub_model(home, model) if library == "hub" else transformers_model(home, model, **options)


def denoised(home: str, library: str = "transformers", **options: Any) -> Any:
    return denoise(plain_model(home, library, **options), random_head())


def prefix_of(home: str) -> int:
    return {"dinov2": 1, "siglip": 0}.get(home, 5)


def run_head(head: Any, patches: Tensor, rows: int = 3, columns: int = 6) -> Tensor:  # [B, N, C] -> [B, N, C]
    return head(patches.unflatten(1, (rows, columns))).flatten(1, 2)


class TestTorchHub:
    @pytest.mark.parametrize("home", HUB)
    @pytest.mark.parametrize("grid", GRIDS)
    @torch.no_grad()
    def test_is_timms_model_with_the_same_head(self, home: str, grid: tuple[int, int]) -> None:
        plain = timm_model(home, flat=grid != (4, 4))
        model, x = denoise(hub_model(home, plain), random_head()), photos(home, *grid)
        expected = denoise(plain, random_head()).forward_features(x)
        output = model.forward_features(x)
        torch.testing.assert_close(output["x_norm_patchtokens"], expected[:, prefix_of(home) :], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output["x_norm_clstoken"], expected[:, 0], atol=1e-5, rtol=1e-5)
        for norm in (True, False):
            (theirs,) = plain.forward_intermediates(x, [1], norm=norm, intermediates_only=True)
            (ours,) = model.get_intermediate_layers(x, n=1, reshape=True, norm=norm)
            assert ours.is_contiguous()
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("home", HUB)
    @torch.no_grad()
    def test_what_is_not_denoised(self, home: str) -> None:
        plain, x = plain_model(home, "hub"), photos(home)
        theirs, earlier = plain.forward_features(x), plain.get_intermediate_layers(x, n=2)[0]
        logits = plain(x)
        model = denoise(plain, random_head())
        ours = model.forward_features(x)
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() - {"x_norm_patchtokens", "masks"}:
            assert torch.equal(ours[key], theirs[key])
        torch.testing.assert_close(ours["x_norm_patchtokens"], run_head(model.denoiser, theirs["x_norm_patchtokens"]))
        assert torch.equal(model(x), logits)
        assert torch.equal(model(x, is_training=True)["x_norm_patchtokens"], ours["x_norm_patchtokens"])
        assert torch.equal(model.get_intermediate_layers(x, n=[0])[0], earlier)
        first, last = model.get_intermediate_layers(x, n=2)
        assert torch.equal(first, earlier)
        assert torch.equal(last, ours["x_norm_patchtokens"])

    @pytest.mark.parametrize("home", HUB)
    @torch.no_grad()
    def test_forms_of_intermediate_layers(self, home: str) -> None:
        model, x = denoised(home, "hub"), photos(home)
        output = model.forward_features(x)
        ((fmap, class_token),) = model.get_intermediate_layers(x, n=[1], reshape=True, return_class_token=True)
        assert torch.equal(fmap.flatten(2).transpose(1, 2), output["x_norm_patchtokens"])
        assert torch.equal(class_token, output["x_norm_clstoken"])
        if home == "dinov3":
            with_extra = model.get_intermediate_layers(x, n=1, return_class_token=True, return_extra_tokens=True)
            assert torch.equal(with_extra[0][0], output["x_norm_patchtokens"])
            assert torch.equal(with_extra[0][2], output["x_storage_tokens"])

    @torch.no_grad()
    def test_lists_and_masks(self) -> None:
        """Masked patches keep their places; a list has batches of several sizes."""
        plain, x, small = plain_model("dinov2", "hub"), photos("dinov2"), photos("dinov2", 2, 3)
        masks = torch.rand(2, 18) < 0.5
        masked = plain.forward_features(x, masks)["x_norm_patchtokens"]
        model = denoise(plain, random_head())
        ours, other = model.forward_features([x, small], [masks, None])
        torch.testing.assert_close(ours["x_norm_patchtokens"], run_head(model.denoiser, masked))
        assert torch.equal(other["x_norm_patchtokens"], model.forward_features(small)["x_norm_patchtokens"])


class TestTransformers:
    @pytest.mark.parametrize("home", TRANSFORMERS)
    @pytest.mark.parametrize("grid", GRIDS)
    @torch.no_grad()
    def test_is_timms_model_with_the_same_head(self, home: str, grid: tuple[int, int]) -> None:
        """Its pooled output too: DINOv3 pools its class token, SigLIP the patch tokens."""
        options = {"global_pool": "token"} if home == "dinov3" else {}
        plain = timm_model(home, flat=grid != (4, 4), **options)
        model, x = denoise(transformers_model(home, plain), random_head()), photos(home, *grid)
        plain = denoise(plain, random_head())
        output = call(model, x)
        torch.testing.assert_close(output.last_hidden_state, plain.forward_features(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.pooler_output, plain(x), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("home", TRANSFORMERS)
    @torch.no_grad()
    def test_what_is_not_denoised(self, home: str) -> None:
        plain, x, prefix = plain_model(home), photos(home), prefix_of(home)
        theirs = call(plain, x, output_hidden_states=True)
        model = denoise(plain, random_head())
        ours = call(model, x, output_hidden_states=True)
        assert ours.keys() == theirs.keys()
        expected = run_head(model.denoiser, theirs.last_hidden_state[:, prefix:])
        torch.testing.assert_close(ours.last_hidden_state[:, prefix:], expected)
        assert torch.equal(ours.last_hidden_state[:, :prefix], theirs.last_hidden_state[:, :prefix])
        assert torch.equal(ours.pooler_output, theirs.pooler_output) == (home != "siglip")
        assert len(ours.hidden_states) == 3
        assert all(map(torch.equal, ours.hidden_states, theirs.hidden_states))

    @pytest.mark.parametrize("home", TRANSFORMERS)
    @torch.no_grad()
    def test_tuples(self, home: str) -> None:
        model, x = denoised(home), photos(home)
        output = call(model, x, output_hidden_states=True)
        last, pooled, hidden = call(model, x, output_hidden_states=True, return_dict=False)
        assert torch.equal(last, output.last_hidden_state)
        assert torch.equal(pooled, output.pooler_output)
        assert torch.equal(hidden[-1], output.hidden_states[-1])
        assert torch.equal(model(pixel_values=photos(home, 4, 4))[0], model(photos(home, 4, 4)).last_hidden_state)

    @torch.no_grad()
    def test_siglip_without_its_pooling(self) -> None:
        model, x = denoised("siglip", vision_use_head=False), photos("siglip", 4, 4)
        assert model(x).pooler_output is None
        assert len(model(x, return_dict=False)) == 1

    @torch.no_grad()
    def test_masked_patches(self) -> None:
        plain, x, mask = plain_model("dinov2"), photos("dinov2"), torch.rand(2, 18) < 0.5
        masked = plain(x, bool_masked_pos=mask).last_hidden_state
        model = denoise(plain, random_head())
        ours = model(x, bool_masked_pos=mask).last_hidden_state
        torch.testing.assert_close(ours[:, 1:], run_head(model.denoiser, masked[:, 1:]))

    def test_in_a_classifier(self) -> None:
        """It reads the mean of the patch tokens; gradients reach head and backbone."""
        config = plain_model("dinov2").config
        transformers = pytest.importorskip("transformers", exc_type=ImportError)
        net = transformers.Dinov2ForImageClassification(config)
        with pytest.raises(TypeError, match=r"Dinov2ForImageClassification.*: denoise its \.dinov2$"):
            denoise(net, random_head())
        x = photos("dinov2")
        before = net(x).logits
        denoise(net.dinov2, random_head())
        assert (net(x).logits - before).abs().max() > 1e-3
        assert "dinov2.denoiser.pos_embed" in net.state_dict()
        net(x, labels=torch.tensor([0, 1])).loss.backward()
        for parameter in (net.dinov2.denoiser.pos_embed, net.dinov2.embeddings.cls_token):
            assert parameter.grad.abs().max() > 0

    def test_saved_by_transformers(self, tmp_path: Path) -> None:
        """The backbone is read back by transformers alone, and the head by us; whoever writes is told."""
        plain = plain_model("dinov2")
        model = denoise(copy.deepcopy(plain), random_head())
        with pytest.warns(UserWarning, match=r"plain Dinov2Model .*dvt_timm\.save_head"):
            model.save_pretrained(tmp_path / "model")
        with pytest.raises(ValueError, match=r"base='arch\.tag'"):
            dvt_timm.save_head(model, tmp_path / "head")
        dvt_timm.save_head(model, tmp_path / "head", base="vit_small_patch14_dinov2.lvd142m")
        again = type(plain).from_pretrained(tmp_path / "model").eval()
        assert again.config.architectures == ["Dinov2Model"]
        assert same_weights(again, plain)
        x = photos("dinov2")
        with torch.no_grad():
            again = denoise(again, tmp_path / "head")
            assert torch.equal(again(x).last_hidden_state, model(x).last_hidden_state)

    def test_other_classes_of_the_same_name(self) -> None:
        stranger = type("Dinov2Model", (torch.nn.Module,), {"__module__": "vllm.models"})()
        with pytest.raises(TypeError, match=r"cannot denoise a Dinov2Model: .*DenoiserHead"):
            denoise(stranger, random_head())

    @torch.no_grad()
    def test_subclasses(self) -> None:
        """One that a user derives, or that FSDP makes."""
        model = plain_model("dinov2")
        plain = type(model)
        model.__class__ = type("Mine", (plain,), {})
        raw, x = model(photos("dinov2")).last_hidden_state, photos("dinov2")
        assert isinstance(denoise(model, random_head()), plain)
        assert (model(x).last_hidden_state - raw).abs().max() > 1e-3
        assert type(undenoise(model)).__name__ == "Mine"


class TestBackbones:
    """What `AutoBackbone` builds; the map of the last stage is head(norm(x))."""

    LAST = ("stage1", "stage2")

    @pytest.mark.parametrize("home", HUB)
    @pytest.mark.parametrize("options", [{}, {"apply_layernorm": False}, {"reshape_hidden_states": False}])
    @torch.no_grad()
    def test_the_last_map(self, home: str, options: dict[str, bool]) -> None:
        plain, x = timm_model(home), photos(home)
        tokens = transformers_model(home, plain)(x).last_hidden_state
        backbone = transformers_model(home, plain, "Backbone", out_features=list(self.LAST), **options)
        theirs = backbone(x)
        model = denoise(backbone, random_head())
        ours = model(x)
        assert torch.equal(ours.feature_maps[0], theirs.feature_maps[0])
        expected = run_head(model.denoiser, tokens[:, prefix_of(home) :])
        fmap = ours.feature_maps[1]
        assert fmap.shape == theirs.feature_maps[1].shape
        patches = fmap.flatten(2).transpose(1, 2) if fmap.ndim == 4 else fmap[:, -18:]
        torch.testing.assert_close(patches, expected, atol=1e-5, rtol=1e-5)
        if fmap.ndim == 3:
            before = fmap.shape[1] - 18
            torch.testing.assert_close(fmap[:, :before], theirs.feature_maps[1][:, :before])
        if home == "dinov3":  # it has an output more
            last = model(x, output_hidden_states=True).last_hidden_state
            torch.testing.assert_close(last[:, 5:], patches)
            torch.testing.assert_close(last[:, :5], tokens[:, :5])
        assert torch.equal(model(x, return_dict=False)[0][1], fmap)

    @torch.no_grad()
    def test_without_the_last_stage_it_warns(self) -> None:
        backbone, x = (
            plain_model("dinov2", kind="Backbone", out_features=["stage1"]),
            photos("dinov2"),
        )
        (raw,) = backbone(x).feature_maps
        denoise(backbone, random_head())
        with pytest.warns(UserWarning, match=r"\['stage1'\] are without 'stage2'"):
            assert torch.equal(backbone(x).feature_maps[0], raw)
        with pytest.raises(TypeError, match="got Dinov2Backbone"):
            dvt_timm.feature_maps(backbone, x)


BOTH = [("dinov2", "hub"), ("dinov3", "hub"), ("dinov2", "transformers"), ("siglip", "transformers")]


def tokens_of(model: Any, x: Tensor) -> Tensor:
    output = model.forward_features(x) if hasattr(model, "forward_features") else call(model, x)
    return output["x_norm_patchtokens" if hasattr(model, "forward_features") else "last_hidden_state"]


@pytest.mark.parametrize(("home", "library"), BOTH)
class TestBoth:
    @torch.no_grad()
    def test_on_and_off_in_place(self, home: str, library: str) -> None:
        plain, x = plain_model(home, library), photos(home)
        kind, raw, keys = type(plain), tokens_of(plain, x), set(plain.state_dict())
        first, second = random_head(), random_head(seed=5)
        model = denoise(plain, first)
        assert model is plain
        assert isinstance(model, kind)
        assert type(model).__name__ == kind.__name__
        assert model.denoiser is first
        assert denoise(model, second).denoiser is second
        assert {key for key in model.state_dict() if key.startswith("denoiser.")} == set(model.state_dict()) - keys
        assert undenoise(model) is plain
        assert type(plain) is kind
        assert torch.equal(tokens_of(plain, x), raw)
        with pytest.raises(TypeError, match="takes a denoised model"):
            undenoise(plain)

    def test_what_does_not_go_on(self, home: str, library: str) -> None:
        model = plain_model(home, library)
        with pytest.raises(ValueError, match="192 channels wide, the model 128"):
            denoise(model, random_head(192))
        with pytest.raises(TypeError, match=r"cannot move the positions of a \w+: .*use a head"):
            denoise(model, positions=8)
        with pytest.raises(TypeError, match="head must be a denoiser head"):
            denoise(model, torch.nn.Linear(2, 2))
        with pytest.raises(TypeError, match="cannot save"):
            dvt_timm.save_model(denoise(model, random_head()), "folder")
        compiled = torch.compile(model, backend="eager")
        for change in (undenoise, lambda model: denoise(model, random_head())):
            with pytest.raises(TypeError, match=r"before torch\.compile"):
                change(compiled)

    def test_a_replaced_method_would_go_round_the_head(self, home: str, library: str) -> None:
        name = "forward_features" if library == "hub" else "forward"
        text = rf"the {name} of this \w+ was replaced .*device_map"
        model = plain_model(home, library)
        vars(model)[name] = getattr(model, name)
        with pytest.raises(TypeError, match=text):
            denoise(model, random_head())
        model = denoised(home, library)
        vars(model)[name] = getattr(model, name)
        with pytest.raises(TypeError, match=text):
            undenoise(model)

    @torch.no_grad()
    def test_projection(self, home: str, library: str) -> None:
        fmap = torch.randn(20, 6, 6, 128, generator=torch.Generator().manual_seed(0))
        head = dvt_timm.evaluate.PositionProjection.fit(fmap, rank=4)
        model = denoised(home, library)
        raw = dvt_timm.feature_maps(model, photos(home)).raw
        expected = head(raw.permute(0, 2, 3, 1)).flatten(1, 2)
        torch.testing.assert_close(tokens_of(denoise(model, head), photos(home))[:, -18:], expected)

    @torch.no_grad()
    def test_dtype_mode_and_autocast(self, home: str, library: str) -> None:
        plain, x = plain_model(home, library), photos(home)
        model = denoise(plain.train().to(torch.bfloat16), random_head())
        assert model.denoiser.pos_embed.dtype == torch.bfloat16
        assert model.denoiser.training
        assert not model.eval().denoiser.training
        assert tokens_of(model, x.bfloat16()).dtype == torch.bfloat16
        model = denoised(home, library)
        exact = tokens_of(model, x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(tokens_of(model, x).float(), exact, atol=0.1, rtol=0.1)

    @torch.no_grad()
    def test_copies(self, home: str, library: str) -> None:
        model, x = denoised(home, library), photos(home)
        expected = tokens_of(model, x)
        copied = copy.deepcopy(model)
        assert type(copied) is type(model)
        model.denoiser.pos_embed.zero_()
        assert torch.equal(tokens_of(copied, x), expected)
        if library == "transformers":  # pickles of torch.hub's models need its code
            file = io.BytesIO()
            torch.save(copied, file)
            file.seek(0)
            assert torch.equal(tokens_of(torch.load(file, weights_only=False), x), expected)

    @pytest.mark.slow
    @torch.no_grad()
    def test_compiled_and_exported(self, home: str, library: str) -> None:
        model, x = denoised(home, library), photos(home, 4, 4)
        expected = tokens_of(model, x)
        compiled = torch.compile(lambda x: tokens_of(model, x), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        if library == "transformers":
            exported = torch.export.export(model, (x,)).module()
            torch.testing.assert_close(exported(x).last_hidden_state, expected)

    @torch.no_grad()
    def test_feature_maps(self, home: str, library: str) -> None:
        plain, x = plain_model(home, library), photos(home)
        raw, prefix = tokens_of(plain, x)[:, -18:], prefix_of(home)
        assert dvt_timm.feature_maps(plain, x).denoised is None
        model = denoise(plain, random_head())
        maps = dvt_timm.feature_maps(model, x.double())
        assert torch.equal(maps.raw.flatten(2).transpose(1, 2), raw)
        assert maps.raw.shape == maps.denoised.shape == (2, 128, 3, 6)
        torch.testing.assert_close(maps.denoised.flatten(2).transpose(1, 2), tokens_of(model, x)[:, -18:])
        assert (maps.class_token is None) == (prefix == 0)
        assert maps.register_tokens.shape == (2, max(prefix - 1, 0), 128)
