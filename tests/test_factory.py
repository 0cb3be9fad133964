"""`create_model` on the denoised names: heads, weights, and every way the tag of a name gets lost."""

import argparse
import dataclasses
import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import DEMO, EVA, FAMILIES, SMALL, TINY, VIT, create, images, perturb, random_head, size_of
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor

import dvt_timm
from dvt_timm import factory
from dvt_timm.checkpoints.tensors import kind_of
from dvt_timm.manifest import weights_path

BASE_FILE = weights_path("demo/backbone.safetensors")
HEAD_FILE = weights_path("demo/head.safetensors")
SHAPE = {"grid_size": [6, 4], "num_blocks": 2}


@torch.no_grad()
def features(model: Any, size: tuple[int, int] = (56, 70)) -> Tensor:
    return model.eval().forward_features(images(*size))


@pytest.fixture(scope="module")
def demo() -> Any:
    return timm.create_model(DEMO, pretrained=True).eval()


class TestDenoiserArgument:
    def test_a_head(self) -> None:
        head = random_head()
        assert create(VIT, denoiser=head).denoiser is head
        assert create(FAMILIES[VIT], denoiser=head).denoiser is head
        assert create(VIT, denoiser=head, features_only=True).model.denoiser is head

    @pytest.mark.parametrize("as_type", [str, Path])
    def test_a_folder_or_a_file(self, tmp_path: Path, as_type: type) -> None:
        head = random_head(grid_size=(3, 8))
        dvt_timm.save_head(head, tmp_path / "head", base=FAMILIES[VIT])
        for source in (tmp_path / "head", tmp_path / "head" / "model.safetensors"):
            model = create(VIT, denoiser=as_type(source))
            assert model.denoiser.grid_size == (3, 8)
            assert torch.equal(model.denoiser.pos_embed, head.pos_embed)

    @pytest.mark.parametrize("name", [VIT, FAMILIES[VIT], EVA])
    def test_a_shape(self, name: str) -> None:
        model = create(name, denoiser=json.loads(json.dumps(SHAPE)))
        assert model.denoiser.config == SHAPE
        assert features(model, size_of(name)).isfinite().all()

    def test_a_shape_with_pretrained_weights_warns_that_the_head_is_random(self) -> None:
        with pytest.warns(UserWarning, match="random weights"):
            model = timm.create_model(DEMO, pretrained=True, denoiser={"grid_size": [37, 37]})
        model.denoiser.load_state_dict(dvt_timm.load_head(HEAD_FILE).state_dict())

    def test_a_head_where_nobody_published_one(self, tmp_path: Path) -> None:
        """pretrained=True then wants the base weights, here from a file."""
        head = random_head(128, (4, 4))
        name, base = "vit_small_patch16_224.dvt_dino", "vit_small_patch16_224.dino"
        weights = create(base).state_dict()
        save_file(weights, tmp_path / "base.safetensors")
        overlay = {"file": str(tmp_path / "base.safetensors")}
        model = create(name, pretrained=True, denoiser=head, pretrained_cfg_overlay=overlay)
        assert model.denoiser is head
        assert torch.equal(model.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])

    def test_features_only_needs_no_classifier_in_the_file(self, tmp_path: Path) -> None:
        """As in timm, which asks for none then."""
        weights = timm.create_model(TINY, num_classes=0).state_dict()
        save_file(weights, tmp_path / "base.safetensors")
        overlay = {"file": str(tmp_path / "base.safetensors")}
        options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "features_only": True, "out_indices": (-1,)}
        plain = timm.create_model(TINY, **options).eval()
        denoised = timm.create_model(TINY, denoiser=random_head(64, (4, 4)), **options).eval()
        image = torch.randn(1, 3, 160, 160)
        assert denoised(image)[0].shape == plain(image)[0].shape
        assert torch.equal(denoised.model.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])

    @pytest.mark.parametrize(
        ("denoiser", "error", "message"),
        [
            (random_head(192), ValueError, "192 channels wide, the model 128"),
            ({"num_blocks": 1}, ValueError, "grid_size"),
            ({"grid_size": [2, 2], "dim": 128}, ValueError, "grid_size"),
            ({"grid_size": [0, 2]}, ValueError, "at least 1"),
            (3, TypeError, "denoiser must be"),
            (True, TypeError, "denoiser must be"),
            ("nowhere/at/all", FileNotFoundError, "nowhere"),
            (BASE_FILE, ValueError, "no denoiser head but a whole model"),
        ],
    )
    def test_errors(self, denoiser: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            create(VIT, denoiser=denoiser)

    def test_on_architectures_without_a_name_of_ours(self, tmp_path: Path) -> None:
        name, head = "vit_tiny_patch16_224.augreg_in21k", random_head(192)
        model = timm.create_model(name, depth=2, denoiser=head).eval()
        assert model.denoiser is head
        assert timm.create_model(name, depth=2, stride=8).patch_embed.grid_size == (27, 27)
        dvt_timm.save_model(model, tmp_path)
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert torch.equal(features(loaded, (64, 80)), features(model, (64, 80)))

    def test_not_on_a_distilled_name_with_its_weights(self) -> None:
        name = "vit_base_patch14_dinov2.dvt_voc_distilled"
        message = r"distilled weights.*denoiser=\.\.\. to vit_base_patch14_dinov2\.lvd142m"
        with pytest.raises(ValueError, match=message):
            timm.create_model(name, pretrained=True, denoiser=random_head(768))

    def test_architectures_that_are_no_vits_do_not_know_it(self) -> None:
        with pytest.raises(TypeError, match="denoiser"):
            timm.create_model("resnet18", denoiser=SHAPE)

    @pytest.mark.parametrize(
        "arch",
        [
            *("beit_base_patch16_224", "samvit_base_patch16", "vit_relpos_small_patch16_224", "hiera_tiny_224"),
            *("vit_small_r26_s32_224", "naflexvit_base_patch16_gap", "cait_xxs24_224", "xcit_nano_12_p16_224"),
            *(
                "swin_tiny_patch4_window7_224",
                "swinv2_tiny_window8_256",
                "convit_tiny",
                "resnet18",
                "maxvit_tiny_tf_224",
            ),
        ],
    )
    @pytest.mark.parametrize("argument", ["denoiser", "stride"])
    def test_families_that_take_no_head_say_what_does(self, arch: str, argument: str) -> None:
        with pytest.raises(TypeError, match=rf"{arch} .*takes no {argument}.*ViT, DeiT and EVA.*\(B, H, W, C\) map"):
            timm.create_model(arch, **{argument: SHAPE if argument == "denoiser" else 8})

    def test_a_configuration_says_the_callers_head(self, tmp_path: Path) -> None:
        dvt_timm.save_head(random_head(), tmp_path, base=FAMILIES[VIT])
        cfg = create(VIT, denoiser=tmp_path).pretrained_cfg
        assert (cfg["tag"], cfg["notes"]) == ("lvd142m", (f"denoiser: {tmp_path}",))
        assert create(VIT).pretrained_cfg["tag"] == "dvt"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"use_naflex": True}, "use_naflex"),
            ({"patch_drop_rate": 0.5}, "patch_drop_rate=0"),
        ],
    )
    def test_what_a_denoised_model_cannot_do(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            create(VIT, **arguments)


class TestPretrained:
    def test_weights_of_base_and_head(self, demo: Any) -> None:
        base, head = load_file(BASE_FILE), load_file(HEAD_FILE)
        state = demo.state_dict()
        assert state.keys() == base.keys() | {f"denoiser.{key}" for key in head}
        for key, value in base.items():
            assert torch.equal(state[key], value.float())
        for key, value in head.items():
            assert torch.equal(state[f"denoiser.{key}"], value.float())

    def test_timms_adaptations(self, demo: Any) -> None:
        gray = timm.create_model(DEMO, pretrained=True, in_chans=1)
        torch.testing.assert_close(
            gray.patch_embed.proj.weight, demo.patch_embed.proj.weight.sum(1, keepdim=True), atol=1e-4, rtol=1e-3
        )
        small = timm.create_model(DEMO, pretrained=True, img_size=112)
        assert small.patch_embed.grid_size == (8, 8)
        assert small.denoiser.grid_size == (37, 37)
        classifier = timm.create_model(DEMO, pretrained=True, num_classes=3)
        assert classifier(images(28, 28)).shape == (2, 3)
        assert torch.equal(classifier.denoiser.pos_embed, demo.denoiser.pos_embed)

    def test_base_weights_from_a_file(self, demo: Any, tmp_path: Path) -> None:
        base = {key: value.float() for key, value in load_file(BASE_FILE).items()}
        base["norm.bias"] += 1
        save_file(base, tmp_path / "base.safetensors")
        model = timm.create_model(
            DEMO, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "base.safetensors")}
        )
        assert torch.equal(model.norm.bias, base["norm.bias"])
        assert torch.equal(model.denoiser.pos_embed, demo.denoiser.pos_embed)

    def test_base_weights_of_a_cfg_of_ones_own(self, tmp_path: Path) -> None:
        base = {key: value.float() for key, value in load_file(BASE_FILE).items()}
        base["norm.bias"] += 1
        file = str(tmp_path / "base.safetensors")
        save_file(base, file)
        cfg = dataclasses.replace(timm.models.get_pretrained_cfg(DEMO), file=file)
        for own in (cfg, {"tag": "dvt_demo", "file": file, "num_classes": 0}):
            model = timm.create_model("vit_small_patch14_dinov2", pretrained=True, pretrained_cfg=own)
            assert torch.equal(model.norm.bias, base["norm.bias"])
            assert hasattr(model, "denoiser")

    def test_own_weights_of_a_distilled_name(self, tmp_path: Path) -> None:
        state = timm.create_model("vit_base_patch14_dinov2", depth=1).state_dict()
        save_file(state, tmp_path / "mine.safetensors")
        name, overlay = "vit_base_patch14_dinov2.dvt_voc_distilled", {"file": str(tmp_path / "mine.safetensors")}
        model = timm.create_model(name, pretrained=True, depth=1, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.pos_embed, state["pos_embed"])

    def test_own_weights_where_timms_are_in_a_format_of_their_own(self, tmp_path: Path) -> None:
        """augreg's are JAX files, for which timm has a loader."""
        name, head = "vit_base_patch16_384.dvt_augreg", random_head()
        model = create(name, denoiser=head)
        save_file(model.state_dict(), tmp_path / "whole.safetensors")
        overlay = {"file": str(tmp_path / "whole.safetensors")}
        loaded = create(name, pretrained=True, pretrained_cfg_overlay=overlay, denoiser=head.config)
        assert torch.equal(features(loaded, size_of(name)), features(model, size_of(name)))

    def test_checkpoint_path(self, tmp_path: Path, demo: Any) -> None:
        save_file(demo.state_dict(), tmp_path / "whole.safetensors")
        model = timm.create_model(DEMO, checkpoint_path=str(tmp_path / "whole.safetensors"))
        assert torch.equal(features(model), features(demo))
        save_file(load_file(BASE_FILE), tmp_path / "base.safetensors")
        with pytest.raises(RuntimeError, match=r"denoiser\.pos_embed"):
            timm.create_model(DEMO, checkpoint_path=str(tmp_path / "base.safetensors"))

    def test_random_without_pretrained(self) -> None:
        assert not torch.equal(create(VIT).denoiser.pos_embed, dvt_timm.DenoiserHead(128, (37, 37)).pos_embed)


class TestWithoutMemory:
    """On the meta device, as large models are built before their weights are given out."""

    @pytest.mark.parametrize("place", ["device", "argument", "accelerate"])
    @torch.no_grad()
    def test_weights_are_read_and_not_kept(self, demo: Any, place: str) -> None:
        """timm warns that parameters stay as they are, for the plain name too."""
        if place == "accelerate":
            context = pytest.importorskip("accelerate").init_empty_weights()
        else:
            context = torch.device("meta") if place == "device" else nullcontext()
        with warnings.catch_warnings(), context:
            warnings.filterwarnings("ignore", message=".*no-op")
            device = {"device": "meta"} if place == "argument" else {}
            model = timm.create_model(DEMO, pretrained=True, **device).eval()
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 384)
        model.load_state_dict(demo.state_dict(), assign=True)
        assert torch.equal(features(model), features(demo))


class TestLostTags:
    """The ways in on which timm forgets the tag: nothing comes out plain, or random, in silence."""

    def test_pretrained_cfg_dict_with_base_weights(self) -> None:
        with pytest.warns(UserWarning, match=r"comes out plain.*pretrained_cfg_overlay"):
            model = timm.create_model(DEMO, pretrained=True, pretrained_cfg={"file": str(BASE_FILE), "num_classes": 0})
        assert not hasattr(model, "denoiser")

    def test_pretrained_cfg_dict_with_a_denoiser_in_the_file(self, demo: Any, tmp_path: Path) -> None:
        file = str(tmp_path / "whole.safetensors")
        save_file(demo.state_dict(), file)
        for num_classes in (0, 5):
            with pytest.raises(RuntimeError, match=r"holds a denoiser.*denoiser="):
                timm.create_model(DEMO, pretrained=True, pretrained_cfg={"file": file}, num_classes=num_classes)
        cfg = {"file": file, "num_classes": 0, "input_size": (3, 518, 518)}
        model = timm.create_model(DEMO, pretrained=True, pretrained_cfg=cfg, denoiser=demo.denoiser.config)
        assert torch.equal(features(model), features(demo))

    def test_pretrained_cfg_of_a_denoised_model(self, demo: Any) -> None:
        for cfg in (demo.pretrained_cfg, timm.models.get_pretrained_cfg(DEMO)):
            model = timm.create_model("vit_small_patch14_dinov2", pretrained=True, pretrained_cfg=cfg)
            assert torch.equal(features(model), features(demo))

    @pytest.mark.parametrize("form", ["model.safetensors", "model.pth", "state_dict", "wrapped"])
    def test_a_plain_name_over_a_file_with_a_denoiser(self, demo: Any, tmp_path: Path, form: str) -> None:
        """timm drops what does not fit as soon as num_classes differs from the cfg's."""
        state, file = demo.state_dict(), tmp_path / "model.pth"
        if form == "model.safetensors":
            file = tmp_path / form
            save_file(state, file)
        elif form == "wrapped":
            torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, file)
        else:
            torch.save({"state_dict": state} if form == "state_dict" else state, file)
        overlay = {"file": str(file)}
        with pytest.raises(RuntimeError, match=r"holds a denoiser.*denoiser="):
            timm.create_model(FAMILIES[VIT], pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
        model = timm.create_model(DEMO, pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(features(model), features(demo))

    @pytest.mark.parametrize("form", ["zip", "legacy"])
    def test_plain_users_load_every_format_that_timm_reads(self, tmp_path: Path, form: str) -> None:
        state, file = create(FAMILIES[VIT]).state_dict(), tmp_path / "model.pth"
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
        model = create(FAMILIES[VIT], pretrained=True, pretrained_cfg_overlay={"file": str(file)})
        assert torch.equal(model.norm.weight, state["norm.weight"])

    def test_files_that_only_timm_can_read_are_left_to_it(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "jax.npz", kernel=np.zeros(3))
        (tmp_path / "text.pth").write_text("no checkpoint")
        for name in ("jax.npz", "text.pth", "missing.pth"):
            assert kind_of(tmp_path / name) == "unknown"

    def test_a_checkpoint_of_timms_train_script(self, demo: Any, tmp_path: Path) -> None:
        """It holds the script's arguments, and a classifier of its own."""
        trained = timm.create_model(DEMO, pretrained=True, num_classes=5)
        perturb(trained.denoiser)
        file = tmp_path / "model_best.pth.tar"
        torch.save({"state_dict": trained.state_dict(), "args": argparse.Namespace(lr=0.1), "epoch": 3}, file)
        overlay = {"file": str(file)}
        model = timm.create_model(DEMO, pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay)
        assert torch.equal(features(model), features(trained))
        with pytest.raises(RuntimeError, match="holds a denoiser"):
            timm.create_model(FAMILIES[VIT], pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay)

    @pytest.mark.parametrize("num_classes", [0, 5])
    def test_a_state_dict_with_a_denoiser(self, demo: Any, num_classes: int) -> None:
        state = {key: value.clone() for key, value in demo.state_dict().items()}
        state["denoiser.pos_embed"] += 1
        overlay = {"state_dict": state}
        model = timm.create_model(DEMO, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.denoiser.pos_embed, state["denoiser.pos_embed"])
        for stride in (None, 7):
            options = {"num_classes": num_classes, "pretrained_cfg_overlay": overlay, "stride": stride}
            with pytest.raises(RuntimeError, match="holds a denoiser"):
                timm.create_model(FAMILIES[VIT], pretrained=True, **options)

    def test_plain_users_see_nothing(self) -> None:
        overlay = {"file": str(BASE_FILE)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = timm.create_model(FAMILIES[VIT], pretrained=True, pretrained_cfg_overlay=overlay)
            again = timm.create_model("vit_small_patch14_dinov2", pretrained_cfg=model.pretrained_cfg)
            timm.create_model(
                "vit_tiny_patch16_224", pretrained_cfg={"num_classes": 3}
            )  # no name of ours, no tag to lose
        assert type(model).__module__ == type(again).__module__ == "timm.models.vision_transformer"

    def test_naflex(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="use_naflex"):
            timm.create_model(VIT, use_naflex=True)
        if hasattr(timm.models.vision_transformer, "_USE_NAFLEX_DEFAULT"):
            monkeypatch.setattr(timm.models.vision_transformer, "_USE_NAFLEX_DEFAULT", True)
            with pytest.raises(TypeError, match="cannot denoise a NaFlexVit"):
                timm.create_model(VIT)

    @pytest.mark.parametrize("safe", [True, False])
    def test_save_for_hf(self, demo: Any, tmp_path: Path, safe: bool) -> None:
        model = timm.create_model(DEMO, pretrained=True)
        perturb(model)
        save_for_hf(model, tmp_path, safe_serialization=safe)
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert torch.equal(features(loaded), features(model))
        assert not torch.allclose(features(loaded), features(demo))
        fewer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=4)
        assert torch.equal(features(fewer), features(model))

    @pytest.mark.parametrize("name", [VIT, EVA])
    def test_save_for_hf_of_a_model_made_by_denoise(self, name: str, tmp_path: Path) -> None:
        """timm 1.0.21 saves no model_args: then it is an error, unless the head's shape is given."""
        model = dvt_timm.denoise(create(FAMILIES[name], dynamic_img_size=True), random_head())
        save_for_hf(model, tmp_path, safe_serialization=True)
        config = json.loads((tmp_path / "config.json").read_text())
        folder, given = f"local-dir:{tmp_path}", {}
        if "model_args" not in config:
            given = {**{"depth": 3, "embed_dim": 128, "num_heads": 2}, "denoiser": model.denoiser.config}
            for num_classes in (None, 4):
                with pytest.raises(RuntimeError, match="holds a denoiser"):
                    timm.create_model(folder, pretrained=True, num_classes=num_classes)
        loaded = timm.create_model(folder, pretrained=True, **given)
        assert torch.equal(features(loaded, size_of(name)), features(model, size_of(name)))

    @pytest.mark.parametrize("given", ["head", "folder"])
    def test_a_given_head_is_kept(self, given: str, tmp_path: Path) -> None:
        """Also over a saved model's own head, and on a plain model that timm saved."""
        dvt_timm.save_model(create(VIT, denoiser=random_head(seed=1)), tmp_path / "whole")
        save_for_hf(create(FAMILIES[VIT], dynamic_img_size=True), tmp_path / "plain", safe_serialization=True)
        mine = random_head(seed=2, grid_size=(4, 4))
        dvt_timm.save_head(mine, tmp_path / "mine", base=FAMILIES[VIT])
        for folder in ("whole", "plain"):
            config = json.loads((tmp_path / folder / "config.json").read_text())
            options = {} if "model_args" in config else SMALL
            head = mine if given == "head" else tmp_path / "mine"
            model = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True, denoiser=head, **options)
            assert torch.equal(model.denoiser.pos_embed, random_head(seed=2, grid_size=(4, 4)).pos_embed)

    def test_model_args_of_create_model_name_the_shape_not_the_source(self, tmp_path: Path) -> None:
        head = random_head()
        dvt_timm.save_head(head, tmp_path, base=FAMILIES[VIT])
        for source in (head, tmp_path):
            assert create(VIT, denoiser=source)._model_args["denoiser"] == head.config


class TestWarnings:
    """Each is given once, and blames the line of the caller."""

    @pytest.mark.parametrize("options", [{}, {"features_only": True, "out_indices": (-1,)}, {"stride": 7}])
    def test_a_random_head(self, options: dict[str, Any]) -> None:
        with pytest.warns(UserWarning, match="random weights") as caught:
            timm.create_model(DEMO, pretrained=True, denoiser={"grid_size": [4, 4]}, **options)
        assert [warning.filename for warning in caught] == [__file__]

    @pytest.mark.parametrize("options", [{}, {"features_only": True, "out_indices": (-1,)}])
    def test_a_head_of_another_backbone(self, options: dict[str, Any], tmp_path: Path) -> None:
        dvt_timm.save_head(random_head(192), tmp_path, base="vit_tiny_patch16_224.augreg_in21k")
        for head in (tmp_path, dvt_timm.load_head(tmp_path)):
            with pytest.warns(UserWarning, match="was trained on vit_tiny_patch16_224.augreg_in21k, not on") as caught:
                timm.create_model("vit_tiny_patch16_384", depth=1, denoiser=head, **options)
            assert [warning.filename for warning in caught] == [__file__]

    def test_a_lost_tag(self) -> None:
        with pytest.warns(UserWarning, match="comes out plain") as caught:
            timm.create_model(DEMO, pretrained_cfg={"num_classes": 0}, depth=1)
        assert [warning.filename for warning in caught] == [__file__]

    def test_no_norm(self) -> None:
        with pytest.warns(UserWarning, match="no norm before its pooling") as caught:
            timm.create_model("eva02_tiny_patch14_224", depth=1, denoiser=random_head(192), global_pool="avg")
        assert [warning.filename for warning in caught] == [__file__]

    def test_a_random_head_where_a_name_stands_for_a_trained_one_is_logged_once(self, caplog: Any) -> None:
        factory._log_once.cache_clear()
        for _ in range(2):
            create(VIT)
        factory._log_once.cache_clear()
        create(VIT, denoiser=SHAPE)
        assert [record.getMessage() for record in caplog.records if record.name == "dvt_timm"] == [
            f"{VIT} without pretrained=True has a random head, which scrambles features"
        ]


class TestDenoise:
    def test_warns_of_another_backbone(self, tmp_path: Path) -> None:
        dvt_timm.save_head(random_head(192), tmp_path, base="vit_tiny_patch16_224.augreg_in21k")
        with pytest.warns(UserWarning, match="was trained on vit_tiny_patch16_224.augreg_in21k, not on") as caught:
            dvt_timm.denoise(timm.create_model("vit_tiny_patch16_384", depth=1), tmp_path)
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dvt_timm.denoise(timm.create_model("vit_tiny_patch16_224.augreg_in21k", depth=1), tmp_path)

    def test_takes_the_place_of_a_head(self, hub: Any, head: Any, tmp_path: Path) -> None:
        own = random_head()
        dvt_timm.save_head(own, tmp_path, base=FAMILIES[VIT])
        for source in (tmp_path, str(tmp_path / "model.safetensors")):
            model = dvt_timm.denoise(create(FAMILIES[VIT]), source)
            assert torch.equal(model.denoiser.pos_embed, own.pos_embed)
            assert model.denoiser.source.place == str(source)
        model = dvt_timm.denoise(timm.create_model(TINY), "hf-hub:me/head")
        assert torch.equal(model.denoiser.pos_embed, head.pos_embed)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            dvt_timm.denoise(create(FAMILIES[VIT]), "nowhere")


def test_a_refused_head_in_a_folder_is_not_of_a_repository(tmp_path: Path) -> None:
    folder = dvt_timm.save_head(random_head(), tmp_path / "head", base=FAMILIES[VIT])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "grid_size": [0, 4]}))
    with pytest.raises(ValueError, match=r"is refused: .*at least 1.*Save it again, or name another$") as caught:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert "owner" not in str(caught.value)
