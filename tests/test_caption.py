"""The line below a picture: what made it, without the paths of the machine."""

from __future__ import annotations

from pathlib import Path

import timm
from helpers import DEMO, TINY, create, random_head

import dvt_timm
from dvt_timm.caption import caption_of


def test_a_head_of_a_file_has_its_name_and_hash(tmp_path: Path) -> None:
    model = timm.create_model(DEMO, pretrained=True)
    sha256 = model.denoiser.source.sha256[:12]
    assert caption_of(model, (37, 49)) == (
        f"{DEMO} | head: demo/head.safetensors, sha256 {sha256} | 518 x 686 pixels, 37 x 49 patches | "
        f"dvt-timm {dvt_timm.__version__}"
    )
    assert "| unexplained 3 % | dvt-timm" in caption_of(model, (4, 4), ["unexplained 3 %"])


def test_other_models() -> None:
    plain = create(TINY, embed_dim=64)
    assert f"{TINY} | no head | 32 x 48 pixels, 2 x 3 patches" in caption_of(plain, (2, 3))
    model = dvt_timm.denoise(plain, random_head(64))
    assert "head without a source" in caption_of(model, (2, 3))
    averaged = create(TINY, embed_dim=64, denoiser={"positions": 3})
    assert "no head, means over 3 views of positions" in caption_of(averaged, (2, 3))
    model.denoiser.source = dvt_timm.HeadSource("hf-hub:me/head@main")
    assert "| head: hf-hub:me/head@main |" in caption_of(model, (2, 3))


def test_overlapping_patches_have_the_size_of_the_image() -> None:
    dense = create("vit_small_patch14_dinov2.dvt", stride=7, img_size=56)
    assert "56 x 70 pixels, 7 x 9 patches" in caption_of(dense, dense.patch_embed.dynamic_feat_size((56, 70)))
