"""Which names exist, and what is behind each."""

import pytest
import timm
from timm.models import get_pretrained_cfg

import dvt_timm
from dvt_timm.manifest import Own
from dvt_timm.names import backbone_of, find_variant, full_name, name_of, plain_model, takes_denoiser

DEMO = "vit_small_patch14_dinov2.dvt_demo"


def test_the_embedded_backbone_says_what_it_is() -> None:
    note = find_variant(DEMO).note
    assert "fine-tuned for saliency" in note
    assert "not DINOv2-S" in note
    assert "loses on ADE20k" in find_variant("vit_base_patch16_224.dvt_mae").note


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ("*giant*", {"vit_giant_patch14_dinov2.dvt", "vit_giant_patch14_reg4_dinov2.dvt"}),
        ("*.dvt_demo", {DEMO}),
        ("nothing*", set()),
    ],
)
def test_list_variants_takes_a_filter(filter: str, found: set[str]) -> None:
    assert set(dvt_timm.list_variants(filter)) == found
    assert set(dvt_timm.list_variants(filter="*dinov2*")) == {n for n in dvt_timm.list_variants() if "dinov2" in n}


def test_list_variants_with_weights() -> None:
    assert dvt_timm.list_variants("*dinov2.dvt_demo", pretrained=True) == [DEMO]
    assert dvt_timm.list_variants("*giant*", pretrained=True) == []


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("vit_base_patch16_224.dvt_dino", "vit_base_patch16_224.dino"),
        ("vit_base_patch14_dinov2.dvt_voc_distilled", "vit_base_patch14_dinov2.lvd142m"),
        (DEMO, DEMO),  # whose backbone has no other name
        ("vit_base_patch16_224.dino", "vit_base_patch16_224.dino"),
        ("vit_nano.none", "vit_nano.none"),
    ],
)
def test_backbone_of(name: str, backbone: str) -> None:
    assert backbone_of(name) == backbone


@pytest.mark.parametrize(("base", "backbone"), [("vit_base_patch16_224.dvt_mae", "vit_base_patch16_224.mae")])
def test_backbone_of_a_users_own_name(base: str, backbone: str, own_names: None) -> None:
    dvt_timm.register_variant("vit_base_patch16_224.dvt_names", base=base, head="folder")
    assert backbone_of("vit_base_patch16_224.dvt_names") == backbone
    assert find_variant("vit_base_patch16_224.dvt_names").weights == Own("folder")


def test_backbone_of_a_users_own_name_on_the_embedded_one(own_names: None) -> None:
    dvt_timm.register_variant("vit_small_patch14_dinov2.dvt_names", base=DEMO, head="folder")
    assert backbone_of("vit_small_patch14_dinov2.dvt_names") == DEMO


def test_name_of() -> None:
    model = timm.create_model("test_vit", pretrained_cfg="r160_in1k")
    assert name_of(model) == name_of(model.pretrained_cfg) == "test_vit.r160_in1k"
    assert name_of(get_pretrained_cfg(DEMO)) == DEMO
    assert name_of({"architecture": "vit_nano"}) == "vit_nano"


def test_full_name() -> None:
    assert full_name("vit_small_patch14_dinov2") == "vit_small_patch14_dinov2.lvd142m"
    for unknown in ("vit_nano", "vit_base_patch16_224.nope"):
        with pytest.raises(ValueError, match=r"timm knows no model.*list_models"):
            full_name(unknown)


def test_plain_model_of_a_denoised_name_is_its_backbone() -> None:
    assert plain_model(DEMO) is plain_model("vit_small_patch14_dinov2.lvd142m")
    assert not hasattr(plain_model(DEMO), "denoiser")
    with pytest.raises(ValueError, match="no ViT"):
        plain_model("resnet18")


def test_who_takes_a_head() -> None:
    assert takes_denoiser("vit_small_patch14_dinov2.lvd142m")
    assert not takes_denoiser("beit_base_patch16_224")
