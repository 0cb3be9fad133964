"""What a request of create_model means: a table of requests and plans; nothing is read and no model is built."""

from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import random_head
from timm.models import get_pretrained_cfg

from dvt_timm.checkpoints import heads
from dvt_timm.factory import request_of
from dvt_timm.hub import client
from dvt_timm.manifest import Embedded, Own, Published
from dvt_timm.plan import NO_HEAD, RANDOM_HEAD, READS_BLOCKS, Plan, Positions, Request, Shape, plan_of

SMALL, BASE = "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"
HEAD = random_head(384)


@pytest.fixture(autouse=True)
def pure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither disk nor Hub nor a model: whoever asks for one fails."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"plan_of is not pure: {args}")

    for place, name in ((builtins, "open"), (heads, "load_head"), (client, "fetch"), (timm, "create_model")):
        monkeypatch.setattr(place, name, refuse)
    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)


def plan(arch: str, tag: Any, pretrained: bool = True, **options: Any) -> Plan:
    return plan_of(request_of(arch, tag, pretrained, options))


HELD = {"grid_size": [5, 4], "num_blocks": 2}
FILE = {"file": "mine.safetensors"}
OVERLAY = {"pretrained_cfg_overlay": FILE}


@pytest.mark.parametrize(
    ("request_", "backbone", "head", "held"),
    [
        # a name of ours
        ((SMALL, "dvt_demo", True, {}), "base", Embedded, "no"),
        ((SMALL, "dvt", True, {}), "base", Published, "no"),
        ((SMALL, "dvt", False, {}), "random", Shape({"num_blocks": 1, "grid_size": [37, 37]}), "no"),
        ((BASE, "dvt_voc_distilled", True, {}), Published, None, "no"),
        ((BASE, "dvt_voc_distilled", False, {}), "random", None, "no"),
        # a head of one's own
        ((SMALL, "dvt", True, {"denoiser": HEAD}), "base", HEAD, "no"),
        ((SMALL, "lvd142m", True, {"denoiser": "folder"}), "base", Own("folder"), "no"),
        ((SMALL, "lvd142m", False, {"denoiser": Path("f")}), "random", Own(Path("f")), "no"),
        ((SMALL, None, True, {"denoiser": "hf-hub:me/head"}), "base", Own("hf-hub:me/head"), "no"),
        ((SMALL, None, False, {"denoiser": HELD}), "random", Shape({"num_blocks": 2, "grid_size": [5, 4]}), "no"),
        ((SMALL, None, True, {"denoiser": HELD}), "base", Shape({"num_blocks": 2, "grid_size": [5, 4]}), "no"),
        ((SMALL, None, True, {"denoiser": {"positions": 8}}), "base", Positions(8), "no"),
        ((SMALL, "dvt", False, {"denoiser": {"positions": 8}}), "random", Positions(8), "no"),
        ((BASE, "dvt_voc_distilled", True, {"denoiser": {"positions": 8}}), Published, Positions(8), "no"),
        # weights of one's own, which may hold a head
        ((SMALL, "dvt", True, OVERLAY), "own", Published, "maybe"),
        (
            (SMALL, None, True, {**OVERLAY, "denoiser": HELD}),
            "own",
            Shape({"num_blocks": 2, "grid_size": [5, 4]}),
            "maybe",
        ),
        ((SMALL, None, True, {**OVERLAY, "denoiser": HEAD}), "own", HEAD, "no"),
        ((SMALL, "dvt", True, {"pretrained_cfg_overlay": {"hf_hub_id": "me/vit"}}), "own", Published, "maybe"),
        (("vit_giant_patch14_dinov2", "dvt", True, OVERLAY), "own", None, "maybe"),
        # a stride alone
        ((SMALL, None, True, {"stride": 7}), "base", None, "no"),
    ],
)
def test_where_the_weights_come_from(request_: Any, backbone: Any, head: Any, held: str) -> None:
    arch, tag, pretrained, options = request_
    planned = plan(arch, tag, pretrained, **options)
    assert planned.held == held
    for got, wanted in ((planned.backbone, backbone), (planned.head, head)):
        assert isinstance(got, wanted) if isinstance(wanted, type) else (got is wanted or got == wanted)


@pytest.mark.parametrize(
    ("options", "img_size", "built_at"),
    [
        ({}, (518, 518), (518, 518)),
        ({"img_size": 112}, (112, 112), (112, 112)),
        ({"img_size": (112, 140), "dynamic_img_size": False}, (112, 140), (112, 140)),
        ({"img_size": 112, "stride": 7}, (112, 112), (518, 518)),
    ],
)
def test_sizes(options: dict[str, Any], img_size: tuple[int, int], built_at: tuple[int, int]) -> None:
    planned = plan(SMALL, "dvt", **options)
    assert planned.img_size == img_size
    assert planned.options["img_size"] == built_at
    assert planned.cfg.fixed_input_size  # as the plain name's


def test_the_position_embedding_of_a_base_keeps_its_own_grid() -> None:
    planned = plan("vit_base_patch16_224", "dvt_dino")
    assert planned.img_size == (512, 512)
    assert planned.options["img_size"] == (224, 224)


def test_timms_arguments_pass_and_ours_do_not() -> None:
    planned = plan(SMALL, "dvt", features_only=True, out_indices=[-1], feature_cls="getter", in_chans=4, stride=7)
    assert planned.options == {"in_chans": 4, "dynamic_img_size": True, "img_size": (518, 518)}
    assert (planned.features, planned.stride) == ([-1], 7)
    assert plan(SMALL, "dvt", features_only=True).features == 3  # timm's default
    assert plan(SMALL, "dvt").features is None
    assert plan(SMALL, "dvt", global_pool="avg").options["fc_norm"] is False
    assert plan("eva02_base_patch16_clip_224", "dvt", global_pool="avg").options["use_fc_norm"] is False
    assert "fc_norm" not in plan(SMALL, None, global_pool="avg", stride=7).options


def test_the_configuration_says_whose_head_it_is() -> None:
    named = plan(SMALL, "dvt", denoiser="my-head").cfg
    assert (named.tag, named.notes) == ("lvd142m", ("denoiser: my-head",))
    assert plan(SMALL, "dvt", denoiser=HEAD).cfg.tag == "lvd142m"
    assert plan(SMALL, "dvt").cfg.tag == "dvt"
    assert plan(SMALL, "dvt").cfg.notes is None


def test_the_base() -> None:
    assert plan(SMALL, "dvt").base == "vit_small_patch14_dinov2.lvd142m"
    embedded = plan(SMALL, "dvt_demo")
    assert embedded.base == "vit_small_patch14_dinov2.dvt_demo"
    assert len(embedded.base_sha256) == 64
    assert embedded.cfg.file.endswith("backbone.safetensors")


def test_warnings_are_part_of_the_plan() -> None:
    assert plan(SMALL, None, denoiser=HELD).warnings == (RANDOM_HEAD,)
    assert plan(SMALL, None, pretrained=False, denoiser=HELD).warnings == ()
    assert plan(SMALL, "dvt").warnings == ()
    assert plan(SMALL, "dvt", features_only=True, feature_cls="getter").warnings == ()
    assert plan(SMALL, "dvt", features_only=True, feature_cls="fx").warnings == (READS_BLOCKS.format(kind="fx"),)
    assert plan(SMALL, None, stride=7, features_only=True, feature_cls="fx").warnings == ()
    assert plan(SMALL, "dvt", pretrained=False).scrambles
    assert not plan(SMALL, "dvt", pretrained=False, denoiser=HELD).scrambles


def test_a_head_in_the_place_of_a_model() -> None:
    """timm passes a part of its config.json on: the whole of it is part of the request."""
    config = {
        "kind": "head",
        "base": "vit_small_patch14_dinov2.lvd142m",
        "grid_size": [5, 4],
        "num_blocks": 2,
        "patch_size": 14,
        "model_args": {"denoiser": HELD, "stride": 7},
    }
    cfg = dataclasses.replace(get_pretrained_cfg(f"{SMALL}.lvd142m"), source="local-dir", file="folder")
    for pretrained, head in ((True, Own("folder")), (False, Shape({"num_blocks": 2, "grid_size": [5, 4]}))):
        request = Request(SMALL, cfg, pretrained, {"denoiser": HELD, "stride": 7}, None, ("folder", config))
        planned = plan_of(request)
        assert planned.head == head
        assert planned.backbone == ("base" if pretrained else "random")
        assert (planned.stride, planned.img_size) == (7, (42, 35))
    for wrong in ({"patch_size": "14"}, {"base": "vit_small_patch14_dinov2.nope"}, {"model_args": {"depth": 3}}):
        request = Request(SMALL, cfg, True, {}, None, ("folder", {**config, **wrong}))
        with pytest.raises(ValueError, match="folder is refused"):
            plan_of(request)


def test_a_pretrained_cfg_of_the_callers() -> None:
    cfg = dataclasses.replace(get_pretrained_cfg(f"{SMALL}.dvt"), file="mine.safetensors")
    assert plan(SMALL, cfg).backbone == "own"
    assert plan(SMALL, {"tag": "dvt", "file": "mine.safetensors"}).held == "maybe"
    assert plan(SMALL, get_pretrained_cfg(f"{SMALL}.dvt")).backbone == "base"


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ((SMALL, "dvt_none", True, {}), RuntimeError, "no variant .*dvt_none; the denoised ones"),
        (("vit_giant_patch14_dinov2", "dvt", True, {}), RuntimeError, NO_HEAD.partition("}")[2][:25]),
        ((BASE, "dvt_voc_distilled", True, {"denoiser": HEAD}), ValueError, "distilled weights"),
        ((SMALL, "dvt", True, {"denoiser": 3}), TypeError, "denoiser must be"),
        ((SMALL, "dvt", True, {"denoiser": {"num_blocks": 1}}), ValueError, "grid_size"),
        ((SMALL, "dvt", True, {"denoiser": {"grid_size": [0, 1]}}), ValueError, "at least 1"),
        ((SMALL, "dvt", True, {"img_size": 7}), ValueError, "not whole patches of 14"),
        ((SMALL, "dvt", True, {"img_size": 30, "dynamic_img_size": False}), ValueError, "use 28 in place of 30"),
        ((SMALL, "dvt", True, {"use_naflex": True}), ValueError, "use_naflex"),
        (
            (SMALL, None, True, {"denoiser": {"positions": 8}, "features_only": True, "feature_cls": "fx"}),
            ValueError,
            "feature_cls='fx' reads the blocks themselves.*several views",
        ),
    ],
)
def test_errors(request_: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(*request_[:3], **request_[3])
