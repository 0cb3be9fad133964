"""Saved models: what `create_model("local-dir:FOLDER")` gives back, and what it adapts."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import DEMO, FAMILIES, VIT, create, images, random_head, same_weights, size_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import dvt_timm
from dvt_timm.manifest import weights_path


@torch.no_grad()
def features(model: Any, size: tuple[int, int] = (56, 70)) -> Tensor:
    return model.eval().forward_features(images(*size))


@pytest.mark.parametrize("name", [*FAMILIES])
@pytest.mark.parametrize("extra", [{}, {"stride": 4}, {"in_chans": 4, "global_pool": "avg", "num_classes": 6}])
def test_round_trip(name: str, extra: dict, tmp_path: Path) -> None:
    model = create(name, denoiser=random_head(), **extra)
    dvt_timm.save_model(model, tmp_path)
    args = json.loads((tmp_path / "config.json").read_text())["model_args"]
    assert args["denoiser"] == {"grid_size": [5, 4], "num_blocks": 1}
    assert "num_classes" not in args
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(*size_of(name), channels=extra.get("in_chans", 3))
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(x), model.forward_features(x))
        assert torch.equal(loaded(x), model(x))
    if "in_chans" not in extra:
        size = timm.data.resolve_model_data_config(model)["input_size"]
        assert tuple(timm.data.resolve_model_data_config(loaded)["input_size"]) == size


@pytest.mark.parametrize(("saved", "wanted"), [(3, 1), (3, 3), (3, 4), (1, 3), (4, 3)])
def test_saved_models_get_other_input_channels_as_in_timm(saved: int, wanted: int, tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head(), in_chans=saved)
    dvt_timm.save_model(model, tmp_path)
    adapt, weight = timm.models.adapt_input_conv, model.patch_embed.proj.weight
    if saved != 3 and "base_chans" not in inspect.signature(adapt).parameters:
        with pytest.raises(ValueError, match=f"3 input channels of {saved}; update timm"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=wanted)
        return
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=wanted)
    expected = weight if saved == wanted else adapt(wanted, weight, **({} if saved == 3 else {"base_chans": saved}))
    torch.testing.assert_close(loaded.patch_embed.proj.weight, expected)


def test_strides_of_saved_models(tmp_path: Path) -> None:
    plain = create(VIT, denoiser=random_head())
    dvt_timm.save_model(plain, tmp_path / "plain")
    dense = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True, stride=7).eval()
    assert dense.patch_embed.grid_size == (73, 73)
    dense.set_input_size(img_size=(70, 182))
    dvt_timm.save_model(dense, tmp_path / "dense")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'dense'}", pretrained=True)
    assert loaded.patch_embed.grid_size == (9, 25)
    assert torch.equal(features(loaded), features(dense))
    with pytest.raises(ValueError, match=r"225 positions.*13 x 13.*set_input_size"):
        timm.create_model(f"local-dir:{tmp_path / 'dense'}", pretrained=True, img_size=(98, 98))


@pytest.mark.parametrize("dynamic_img_size", [True, False])
def test_saved_models_load_at_another_size(dynamic_img_size: bool, tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head())
    dvt_timm.save_model(model, tmp_path)
    size = {"img_size": (56, 70), "dynamic_img_size": dynamic_img_size}
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **size)
    model.set_input_size(img_size=(56, 70))
    assert loaded.patch_embed.grid_size == (4, 5)
    assert torch.equal(features(loaded), features(model))


def test_saved_with_another_patch_size(tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head(), dynamic_img_size=False, img_size=56)
    model.set_input_size(img_size=(64, 64), patch_size=(8, 8))
    dvt_timm.save_model(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(features(loaded, (64, 64)), features(model, (64, 64)))


def test_saved_in_another_shape(tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head())
    model.set_input_size(img_size=(70, 56))
    dvt_timm.save_model(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.patch_embed.grid_size == (5, 4)
    assert torch.equal(features(loaded), features(model))
    features_only = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(-1,))
    with torch.no_grad():
        last = features_only.eval()(images())[0].flatten(2).transpose(1, 2)
    assert torch.equal(last, features(model)[:, 1:])


def test_a_saved_model_without_its_head(tmp_path: Path) -> None:
    dvt_timm.save_model(timm.create_model(DEMO, pretrained=True), tmp_path)
    save_file(load_file(weights_path("demo/backbone.safetensors")), tmp_path / "model.safetensors")
    for num_classes in (None, 4):
        with pytest.raises(RuntimeError, match="does not hold the denoiser"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=num_classes)


def test_features_only_models_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="without features_only"):
        dvt_timm.save_model(create(VIT, features_only=True), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Lora(nn.Module):
    """A layer as peft wraps it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})


def with_lora(model: Any) -> None:
    model.blocks[0].attn.qkv = Lora(model.blocks[0].attn.qkv)


def with_deeper_classifier(model: Any) -> None:
    model.head = nn.Sequential(nn.Linear(128, 4), nn.Linear(4, 2))


def with_nan(model: Any) -> None:
    model.norm.weight.data[0] = float("nan")


def cut(model: Any) -> None:
    model.blocks = model.blocks[:2]


CHANGES = {
    "lora": (with_lora, r"blocks\.0\.attn\.qkv\.base_layer\.weight.*call merge_and_unload\(\) first"),
    "pruned": (lambda m: prune.l1_unstructured(m.blocks[0].attn.qkv, "weight", 0.5), r"weight_orig.*prune\.remove"),
    "weight norm": (lambda m: weight_norm(m.blocks[0].attn.qkv), r"original0.*remove_parametrizations"),
    "classifier": (with_deeper_classifier, r"has head\.0\.weight, .*reset_classifier"),
    "wider classifier": (lambda m: setattr(m, "head", nn.Linear(128, 9)), r"has head\.weight.*reset_classifier"),
    "buffer": (lambda m: m.register_buffer("extra", torch.ones(1)), r"has extra; save a model as create_model builds"),
    "cut": (cut, r"lacks blocks\.2\.norm1\.weight, .* and \d+ more"),
    "pruned head": (
        lambda m: prune.l1_unstructured(m.denoiser.denoiser.mlp.fc1, "weight", 0.5),
        r"has denoiser\..*remove",
    ),
    "meta": (lambda m: m.to("meta"), "is on the meta device, without values"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_could_not_be_read_again_is_refused(change: str, tmp_path: Path) -> None:
    model, (make, message) = create(VIT, denoiser=random_head(), num_classes=3), CHANGES[change]
    make(model)
    with pytest.raises(TypeError, match=f"cannot save this DenoisedVisionTransformer.*{message}"):
        dvt_timm.save_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head())
    with_nan(model)
    with pytest.raises(ValueError, match=r"the model: values of norm\.weight are not finite"):
        dvt_timm.save_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_quantized_models_are_refused(tmp_path: Path) -> None:
    model = torch.ao.quantization.quantize_dynamic(create(VIT, denoiser=random_head()), {nn.Linear})
    with pytest.raises(TypeError, match="save it before it is quantized"):
        dvt_timm.save_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_no_name_of_timm_builds_is_refused(tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head())
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": "my_vit"}
    with pytest.raises(TypeError, match=r"could not be built again: .*my_vit"):
        dvt_timm.save_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tied_weights_are_read_back(tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head())
    model.blocks[1] = model.blocks[0]
    dvt_timm.save_model(model, tmp_path)
    assert torch.equal(features(timm.create_model(f"local-dir:{tmp_path}", pretrained=True)), features(model))


@pytest.mark.parametrize("change", ["half", "channels_last", "other classes", "shared storage"])
def test_what_is_changed_and_read_back(change: str, tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head(), num_classes=3)
    if change == "half":
        model = model.half()
    elif change == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    elif change == "other classes":
        model.reset_classifier(5)
    else:
        model.blocks[0].attn.qkv.weight.data = torch.cat([model.blocks[0].attn.qkv.weight.data] * 2)[:384]
    dvt_timm.save_model(model, tmp_path)
    assert same_weights(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).to(model.norm.weight.dtype), model)


def test_what_its_configuration_says(tmp_path: Path) -> None:
    model = create(VIT, denoiser=random_head(), drop_path_rate=0.3, num_classes=5)
    assert dvt_timm.save_model(torch.compile(model), tmp_path / "mine", base="x.y") == tmp_path / "mine"
    config = json.loads((tmp_path / "mine/config.json").read_text())
    assert (config["library"], config["kind"], config["base"]) == ("dvt-timm", "model", "x.y")
    assert config["num_classes"] == 5
    assert not {"num_classes", "drop_path_rate"} & config["model_args"].keys()
    dvt_timm.save_model(model, tmp_path / "nameless")
    assert "base" not in json.loads((tmp_path / "nameless/config.json").read_text())


def test_it_does_not_say_where_its_head_lay(tmp_path: Path) -> None:
    dvt_timm.save_head(random_head(), tmp_path / "secret-project", base=FAMILIES[VIT])
    model = create(FAMILIES[VIT], denoiser=str(tmp_path / "secret-project"))
    assert "secret-project" in model.pretrained_cfg["notes"][0]
    for folder in (
        dvt_timm.save_model(model, tmp_path / "a"),
        dvt_timm.save_model(dvt_timm.undenoise(model), tmp_path / "b"),
    ):
        assert "secret-project" not in (folder / "config.json").read_text()


def test_one_that_a_newer_version_wrote(tmp_path: Path) -> None:
    dvt_timm.save_model(create(VIT, denoiser=random_head()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "schema": 99}))
    with pytest.raises(ValueError, match=r"has schema 99 .*update dvt-timm"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_what_was_undenoised_is_read_back_plain(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True, img_size=56).eval()
    dvt_timm.save_model(dvt_timm.undenoise(model), tmp_path)
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(read) is type(model)
    assert same_weights(read, model)
