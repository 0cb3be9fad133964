"""A head on every kind of timm's ViTs and Evas, with random weights: modern backbones always, all of them slowly."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import ROOT, SMALL, create, head_of, images
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

import dvt_timm
from dvt_timm.names import takes_denoiser

FAMILIES = {
    "DINOv2, registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "LingBot": "vit_small_patch16_lingbot",
    "SigLIP 2": "vit_base_patch16_siglip_256",
    "SigLIP 2, gap": "vit_base_patch16_siglip_gap_256",
    "PE core": "vit_pe_core_tiny_patch16_384",
    "PE spatial": "vit_pe_spatial_tiny_patch16_512",
    "TIPSv2": "vit_base_patch14_reg1_tipsv2",
    "AIMv2": "aimv2_large_patch14_224",
    "RADIO v3": "vit_base_patch16_radio_v3",
    "Sapiens 2": "vit_base_patch16_sapiens2",
    "EVA": "eva_giant_patch14_clip_224",
    "EVA02": "eva02_tiny_patch14_224",
    "BEiT-3": "beit3_base_patch16_224",
    "FlexiViT": "flexivit_small",
    "RoPE": "vit_small_patch16_rope_224",
    "RoPE, mixed": "vit_small_patch16_rope_mixed_224",
    "RoPE, mixed, absolute too": "vit_small_patch16_rope_mixed_ape_224",
    "parallel blocks": "vit_base_patch16_xp_224",
    "norms behind": "vit_base_patch16_rpn_224",
}
DENOISER = {"grid_size": [5, 4], "num_blocks": 1}


def small(name: str) -> dict[str, Any]:
    """Arguments that shrink a model of timm's to two blocks of 128 channels."""
    return {**SMALL, "depth": 2, **({"num_kv_heads": 2} if "sapiens2" in name else {})}


def try_head(name: str, folder: Path) -> None:
    """Build, denoise a map of an odd size, send gradients back, save and load."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this model has no norm before its pooling")
        model = create(name, **small(name), num_classes=0, denoiser=DENOISER)
    plain = dvt_timm.undenoise(copy.deepcopy(model))
    patch, prefix = model.patch_embed.patch_size, model.num_prefix_tokens
    for grid in ((3, 5), (6, 2)):
        x = images(grid[0] * patch[0], grid[1] * patch[1], batch=1)
        with torch.no_grad():
            raw, tokens = plain.forward_features(x), model.forward_features(x)
            (early, last), (plain_early, plain_last) = (
                each.forward_intermediates(x, norm=True, intermediates_only=True) for each in (model, plain)
            )
        assert torch.equal(tokens[:, :prefix], raw[:, :prefix])
        torch.testing.assert_close(tokens[:, prefix:], head_of(model, raw, grid))
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens[:, prefix:])
        assert torch.equal(early, plain_early)
        assert not torch.allclose(last, plain_last, atol=0.1)
    model.train().forward_features(x)[:, prefix:].square().mean().backward()
    for part in (model.denoiser, model.patch_embed, model.blocks):
        assert all(parameter.grad is not None for parameter in part.parameters())
    assert model.denoiser.pos_embed.grad.abs().sum() > 0
    dvt_timm.save_model(model.eval(), folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this model has no norm before its pooling")
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(x), tokens)


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_a_head_on_a_family(name: str, tmp_path: Path) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    try_head(name, tmp_path)


def kinds() -> Iterator[str]:
    """One name of each kind: the classes of its parts, its positions, prefix tokens and pooling."""
    seen = set()
    for arch in timm.list_models():
        if not takes_denoiser(arch):
            continue
        with torch.device("meta"):
            model = timm.create_model(arch, **small(arch))
        if type(model) in (VisionTransformer, Eva) and (kind := kind_of(model)) not in seen:
            seen.add(kind)
            yield arch


def kind_of(model: Any) -> tuple[Any, ...]:
    parts = [type(part) for part in model.modules()]
    return (*parts, model.num_prefix_tokens, model.pos_embed is None, model.no_embed_class, model.global_pool)


@pytest.mark.slow
def test_a_head_on_every_kind(tmp_path: Path) -> None:
    names = list(kinds())
    assert len(names) > 30
    for name in names:
        try_head(name, tmp_path / name)


def test_the_page_names_the_families_that_are_tried() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    assert [name for name in FAMILIES.values() if f"`{name}`" not in page] == []
