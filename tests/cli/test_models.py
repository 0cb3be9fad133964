"""Which model a command line names: timm's names, heads and models in files, folders and on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command import error_of, metadata_of, saved
from helpers import DEMO, TINY, random_head, serve_base
from hub_server import Hub
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf

import dvt_timm
from dvt_timm import manifest
from dvt_timm.cli import main as cli

DEMO_HEAD = manifest.weights_path("demo/head.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no_such_model"], "timm has no model no_such_model; `dvt-timm list` names those of this package"),
        (["--model", "vit_small_patch14_dinov2.dvt_nope"], "no variant vit_small_patch14_dinov2.dvt_nope"),
        (["--model", "vit_giant_patch14_dinov2.dvt"], "no published weights"),
        (["--model", "resnet18"], "resnet18 is no timm VisionTransformer or Eva"),
        (["--weights", "missing.safetensors"], "missing.safetensors not found"),
        *(
            (["--device", each], f"cannot use device '{each}': ")
            for each in ("nonsense", "meta", "hpu", "xla", "cuda:99")
        ),
    ],
)
def test_what_cannot_be_built(tmp_path: Path, capsys: Any, options: list[str], message: str) -> None:
    image = saved(tmp_path / "a.png")
    assert message in error_of(capsys, "features", str(image), "--out", str(tmp_path / "out"), *options)


@pytest.mark.parametrize("device", ["meta", "nonsense"])
def test_the_device_is_looked_at_first(tmp_path: Path, capsys: Any, monkeypatch: Any, device: str) -> None:
    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was built, or downloaded")

    monkeypatch.setattr(timm, "create_model", built)
    monkeypatch.setattr("dvt_timm.cli.models.kind_of", built)
    image = saved(tmp_path / "a.png")
    for command in ("features", "fit", "debias"):
        options = ["--out", str(tmp_path / command), "--weights", "hf-hub:me/head", "--device", device]
        line = error_of(capsys, command, str(image), *options)
        assert line.startswith(f"dvt-timm: error: cannot use device '{device}': ")
        assert line.endswith("; pass another as --device, cpu say")


@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224.in1k_ft_in22k",
        "samvit_base_patch16",
        "vit_relpos_base_patch16_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_families_that_take_no_head(tmp_path: Path, capsys: Any, name: str) -> None:
    line = error_of(capsys, "features", saved(tmp_path / "a.png"), "--out", tmp_path / "out", "--model", name)
    assert line.startswith(f"dvt-timm: error: {name} is no timm VisionTransformer or Eva")
    assert "dvt_timm.DenoiserHead denoises a map (B, H, W, C) of any model" in line


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    hub.absent.add("jjiaweiyang/DVT")
    name = "vit_small_patch14_dinov2.dvt"
    line = error_of(capsys, "features", str(saved(tmp_path / "a.png")), "--out", str(tmp_path / "out"), "--model", name)
    assert line.startswith(f"dvt-timm: error: cannot build {name}: cannot get jjiaweiyang/DVT/voc_denoised/vit_small")
    assert "HF_TOKEN" in line


def test_damaged_checkpoint(tmp_path: Path, capsys: Any) -> None:
    damaged = tmp_path / "head.safetensors"
    damaged.write_bytes(DEMO_HEAD.read_bytes()[:1000])
    image = saved(tmp_path / "a.png")
    line = error_of(capsys, "features", str(image), "--out", str(tmp_path / "out"), "--weights", str(damaged))
    assert "damaged" in line


def test_weights_of_every_form(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    dvt_timm.save_head(random_head(384, (5, 4)), tmp_path / "head", base="vit_small_patch14_dinov2.lvd142m")
    whole = timm.create_model(DEMO, pretrained=True, num_classes=0)
    with torch.no_grad():
        whole.denoiser.pos_embed += 1
    dvt_timm.save_model(whole, tmp_path / "whole")
    save_for_hf(whole, tmp_path / "timm", safe_serialization=False)
    results = []
    for form in (DEMO_HEAD, "head", "head/model.safetensors", "whole", "whole/model.safetensors", "timm"):
        assert run("a.png", "--weights", form) == 0
        assert metadata_of(tmp_path / "out/a.safetensors")["weights"] == str(form)
        results.append(load_file(tmp_path / "out/a.safetensors"))
    for result in results[1:]:
        torch.testing.assert_close(result["raw"], results[0]["raw"])
    published, folder, file, whole_folder, whole_file, timms = (result["denoised"] for result in results)
    assert torch.equal(folder, file)
    assert torch.equal(whole_folder, whole_file)
    assert torch.equal(whole_folder, timms)
    assert not torch.allclose(published, folder, atol=0.1)
    assert not torch.allclose(published, whole_folder, atol=0.1)


def test_the_old_word_for_weights(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    assert run("a.png", "--checkpoint", str(DEMO_HEAD)) == 0
    assert metadata_of(tmp_path / "out/a.safetensors")["weights"] == str(DEMO_HEAD)


def test_a_saved_model_keeps_its_stride(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    dvt_timm.save_model(timm.create_model(DEMO, pretrained=True, num_classes=0, stride=7), tmp_path / "dense")
    assert run("a.png", "--weights", "dense") == 0
    assert load_file(tmp_path / "out/a.safetensors")["denoised"].shape == (7, 11, 384)
    metadata = metadata_of(tmp_path / "out/a.safetensors")
    assert (metadata["model"], metadata["weights"], metadata["stride"]) == (DEMO, "dense", "[7, 7]")


def test_features_with_heads_and_models_of_the_hub(hub: Hub, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    serve_base(hub)
    model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64))
    dvt_timm.push_to_hub(model, "me/head")
    dvt_timm.push_to_hub(model, "me/merged", merged=True)
    Image.new("RGB", (60, 60), (90, 120, 30)).save(tmp_path / "a.png")
    maps = []
    for options in (["--model", TINY, "--weights", "hf-hub:me/head"], ["--weights", "hf-hub:me/merged"]):
        args = ["features", str(tmp_path / "a.png"), "--size", "64", "--out", str(tmp_path / "out"), *options]
        assert cli.main(args) == 0
        maps.append(load_file(tmp_path / "out/a.safetensors"))
    assert torch.equal(maps[0]["denoised"], maps[1]["denoised"])
    assert not torch.equal(maps[0]["denoised"], maps[0]["raw"])
