"""`dvt-timm list`: the manifest as a summary, a table, JSON and a page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from command import error_of
from helpers import DEMO
from timm.models import get_pretrained_cfg

import dvt_timm
from dvt_timm.cli import list as command
from dvt_timm.cli import main as cli
from dvt_timm.manifest import published_variants, weights_path

PUBLISHED = sorted(published_variants())
UNPUBLISHED = {name for name, variant in published_variants().items() if variant.weights is None}
MAE_NOTE = "vit_base_patch16_224.mae: denoising gains 0.4 mIoU on VOC and loses on ADE20k and NYU"


def printed(capsys: Any, *options: str) -> str:
    assert cli.main(["list", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def names_in(summary: str) -> set[str]:
    """Every name of the short form, aliases unfolded."""
    names = set()
    for line in re.findall(r"^  ([\w.]+(?:, \w+)*)", summary, re.MULTILINE):
        first, *aliases = line.split(", ")
        names |= {first, *(f"{first.partition('.')[0]}.{tag}" for tag in aliases)}
    return names


def test_json(capsys: Any) -> None:
    rows = {row["name"]: row for row in json.loads(printed(capsys, "--json"))}
    assert list(rows) == PUBLISHED == dvt_timm.list_variants()
    demo = rows[DEMO]
    assert demo.pop("note").startswith("a ViT-S/14 of DINOv2's architecture, fine-tuned for saliency")
    assert len(demo.pop("sha256")) == 64
    assert demo == {
        "name": DEMO,
        "base": DEMO,
        "license": "apache-2.0",
        "distilled": False,
        "head_mb": 9.2,
        "voc_miou": None,
        "ade20k_miou": None,
        "nyu_rmse": None,
        "base_figures": None,
        "weights": "embedded",
        "revision": None,
        "size": weights_path("demo/head.safetensors").stat().st_size,
    }
    distilled = rows["vit_base_patch14_dinov2.dvt_voc_distilled"]
    assert distilled["distilled"]
    assert distilled["head_mb"] is None
    assert distilled["voc_miou"] == 85.1
    assert distilled["base_figures"]["voc_miou"] == 83.52
    assert distilled["weights"] == "jjiaweiyang/DVT:voc_distilled/vit_base_patch14_dinov2.lvd142m.pth"
    assert rows["vit_base_patch16_224.dvt_mae"]["license"] == "cc-by-nc-4.0"
    assert rows["vit_giant_patch14_dinov2.dvt"]["weights"] is None


def test_licenses_are_timms(capsys: Any) -> None:
    for row in json.loads(printed(capsys, "--json")):
        assert row["license"] == get_pretrained_cfg(row["base"]).license


@pytest.mark.parametrize(("dim", "grid_size"), [(64, (1, 1)), (384, (37, 37)), (768, (24, 32))])
def test_size_of_a_head(dim: int, grid_size: tuple[int, int]) -> None:
    with torch.device("meta"):
        head = dvt_timm.DenoiserHead(dim, grid_size)
    size = sum(parameter.numel() * parameter.element_size() for parameter in head.parameters())
    assert command.head_megabytes(dim, grid_size) == round(size / 1e6, 1)


def test_long(capsys: Any) -> None:
    header, *lines = printed(capsys, "--long").splitlines()
    assert header.split() == ["name", "base", "license", "head", "MB", "VOC", "ADE20k", "NYU", "weights"]
    assert [line.split()[0] for line in lines] == PUBLISHED
    start = header.index("weights")
    assert all(line[start - 1] == " " and line[start] != " " for line in lines)
    assert {line.split()[0] for line in lines if line.endswith("none published")} == UNPUBLISHED


def test_short(capsys: Any) -> None:
    text = printed(capsys)
    assert max(map(len, text.splitlines())) <= 100
    assert names_in(text) == set(PUBLISHED)
    header, base, line, *_ = text.splitlines()
    assert header.split() == ["base,", "and", "names", "VOC", "ADE20k", "license"]
    assert base == "vit_small_patch14_dinov2.lvd142m"
    assert re.split("  +", line) == [
        "",
        "vit_small_patch14_dinov2.dvt, dvt_voc",
        "81.78 -> 82.78",
        "44.05 -> 45.14",
        "apache-2.0",
    ]
    assert {line.split()[0] for line in text.splitlines() if "(no weights)" in line} == UNPUBLISHED
    assert MAE_NOTE in text
    assert "a ViT-S/14 of DINOv2's architecture, fine-tuned for saliency" in text


def test_markdown(capsys: Any) -> None:
    text = printed(capsys, "--markdown")
    assert text.startswith("# Names\n")
    assert text == printed(capsys, "--markdown")
    for variant in published_variants().values():
        rows = [row for row in text.splitlines() if row.startswith(f"| `{variant.arch}.") and f".{variant.tag}`" in row]
        assert len(rows) >= 1
    assert (
        "| `vit_base_patch16_224.dvt_mae`, `.dvt_mae_voc` | head, `voc_denoised/vit_base_patch16_224.mae.pth` |" in text
    )
    assert "| 50.29 -> 50.65 | 23.84 -> 23.25 | 0.6629 -> 0.6651 |" in text
    assert "| - -> 0.6196 |" in text
    assert "`vit_base_patch16_224.mae`: denoising gains 0.4 mIoU" in text
    assert "not DINOv2-S" in text


def test_pretrained(capsys: Any) -> None:
    text = printed(capsys, "--pretrained", "--long")
    assert "none published" not in text
    assert [line.split()[0] for line in text.splitlines()[1:]] == dvt_timm.list_variants(pretrained=True)
    assert names_in(printed(capsys, "--pretrained")) == set(PUBLISHED) - UNPUBLISHED


def test_filter(capsys: Any) -> None:
    text = printed(capsys, "*reg4*")
    assert names_in(text) == {name for name in PUBLISHED if "reg4" in name}
    assert MAE_NOTE not in text
    assert "saliency" not in text
    assert [row["name"] for row in json.loads(printed(capsys, DEMO, "--json"))] == [DEMO]
    assert "no name matches 'dinov2'" in error_of(capsys, "list", "dinov2")


def test_one_form_at_a_time(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["list", "--json", "--long"])
    assert exit.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
