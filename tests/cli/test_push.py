"""`dvt-timm convert` and `dvt-timm push`: what they write, send, say and return."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import TINY, random_head, same_weights, serve_base
from hub_server import Hub
from huggingface_hub import ModelCard

import dvt_timm
from dvt_timm.cli import main as cli

SMALL = "vit_small_patch14_dinov2.lvd142m"
TINY_224 = "vit_tiny_patch16_224.augreg_in21k"


def as_published(path: Path, kind: str, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({kind: state, "optimizer": {"lr": np.float64(1e-4)}, "step": 7}, path)
    return path


def error_of(capsys: Any, *args: Any) -> str:
    """The one line of a command that ends with status 2."""
    assert cli.main(list(map(str, args))) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("dvt-timm: error: ")
    assert captured.out == ""
    return line


class TestConvert:
    def test_a_file(self, tmp_path: Path, capsys: Any) -> None:
        head = random_head(384, (6, 6))
        file = as_published(tmp_path / "mine.pth", "denoiser", head.state_dict())
        assert cli.main(["convert", str(file), "--base", SMALL, "--out", str(tmp_path / "out")]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
        assert same_weights(dvt_timm.load_head(tmp_path / "out"), head)

    def test_a_folder_of_both_kinds(self, tmp_path: Path, capsys: Any) -> None:
        head = random_head(192, (6, 6))
        plain = timm.create_model(TINY_224, num_classes=0)
        as_published(tmp_path / f"dvt/voc_denoised/{TINY_224}.pth", "denoiser", head.state_dict())
        state = {f"model.{key}": value for key, value in plain.state_dict().items()}
        as_published(tmp_path / f"dvt/voc_distilled/{TINY_224}.pth", "model", state)
        (tmp_path / "dvt/README.md").touch()
        out = tmp_path / "out"
        assert cli.main(["convert", str(tmp_path / "dvt"), "--out", str(out)]) == 0
        folders = [out / f"{kind}/{TINY_224}" for kind in ("voc_denoised", "voc_distilled")]
        assert capsys.readouterr().out.split() == [str(folder) for folder in folders]
        assert same_weights(dvt_timm.load_head(folders[0]), head)
        assert same_weights(timm.create_model(f"local-dir:{folders[1]}", pretrained=True), plain)

    def test_a_bad_file_does_not_stop_the_others(self, tmp_path: Path, capsys: Any) -> None:
        as_published(tmp_path / f"dvt/{SMALL}.pth", "denoiser", random_head(384, (6, 6)).state_dict())
        (tmp_path / f"dvt/a/{SMALL}.pth").parent.mkdir()
        (tmp_path / f"dvt/a/{SMALL}.pth").write_bytes(b"no checkpoint")
        assert cli.main(["convert", str(tmp_path / "dvt"), "--out", str(tmp_path / "out")]) == 1
        captured = capsys.readouterr()
        assert captured.out == f"{tmp_path / 'out' / SMALL}\n"
        assert f"skipped {tmp_path}/dvt/a/{SMALL}.pth cannot be read as a checkpoint" in captured.err

    def test_errors(self, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        assert "none.pth not found" in error_of(capsys, "convert", tmp_path / "none.pth", "--base", SMALL, "--out", out)
        assert "no .pth file in" in error_of(capsys, "convert", tmp_path, "--out", out)
        file = as_published(tmp_path / f"{SMALL}.pth", "other", {})
        assert "neither 'denoiser' nor 'model'" in error_of(capsys, "convert", file, "--out", out)
        assert "--base goes with one file" in error_of(capsys, "convert", tmp_path, "--base", SMALL, "--out", out)
        assert not out.exists()


class TestPush:
    @pytest.fixture(autouse=True)
    def logged_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")

    @pytest.fixture
    def folder(self, hub: Hub, tmp_path: Path) -> Path:
        hub.absent.add(f"timm/{TINY}")  # where no test serves it
        return dvt_timm.save_head(random_head(64, (5, 4)), tmp_path / "head", base=TINY)

    def test_a_heads_folder(self, hub: Hub, folder: Path, tmp_path: Path, capsys: Any) -> None:
        serve_base(hub)
        metrics = tmp_path / "metrics.json"
        metrics.write_text(json.dumps({"VOC": {"mIoU": 84.9}}))
        options = ["--metrics", metrics, "--dataset", "a", "--dataset", "b", "--private", "--message", "First"]
        assert cli.main(["push", str(folder), "me/head", *map(str, options)]) == 0
        repo = hub.repos["me/head"]
        assert capsys.readouterr().out == f"{hub.url}/me/head/commit/{repo.branches['main']}\n"
        assert repo.private
        assert repo.messages[-1] == "First"
        data = ModelCard(repo.files()["README.md"].decode()).data
        assert data.datasets == ["a", "b"]
        assert data.eval_results[0].metric_value == 84.9
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), dvt_timm.load_head(folder))

    def test_merged_with_its_base(self, hub: Hub, folder: Path, capsys: Any) -> None:
        base = serve_base(hub)
        assert cli.main(["push", str(folder), "me/merged", "--merged"]) == 0
        model = timm.create_model("hf-hub:me/merged", pretrained=True)
        assert same_weights(model.blocks, base.blocks)
        assert same_weights(model.denoiser, dvt_timm.load_head(folder))

    def test_a_models_folder(self, hub: Hub, tmp_path: Path, capsys: Any) -> None:
        model = timm.create_model(TINY, denoiser=random_head(64))
        dvt_timm.save_model(model, tmp_path / "whole")
        assert cli.main(["push", str(tmp_path / "whole"), "me/whole"]) == 0
        assert same_weights(timm.create_model("hf-hub:me/whole", pretrained=True), model)

    def test_a_file_and_its_base(self, hub: Hub, folder: Path, capsys: Any) -> None:
        file = folder / "model.safetensors"
        assert "does not say which backbone" in error_of(capsys, "push", file, "me/head")
        assert cli.main(["push", str(file), "me/head", "--base", TINY]) == 0
        assert json.loads(hub.repos["me/head"].files()["config.json"])["base"] == TINY

    def test_a_pull_request_and_a_branch(self, hub: Hub, folder: Path, capsys: Any) -> None:
        hub.repo("you/head", {"README.md": b""})
        assert cli.main(["push", str(folder), "you/head", "--create-pr"]) == 0
        assert capsys.readouterr().out == f"{hub.url}/you/head/discussions/1\n"
        assert cli.main(["push", str(folder), "me/head", "--revision", "dev"]) == 0
        assert "model.safetensors" in hub.repos["me/head"].files("dev")

    def test_errors(self, hub: Hub, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
        assert "nowhere not found" in error_of(capsys, "push", tmp_path / "nowhere", "me/head")
        assert "me/a/b" in error_of(capsys, "push", folder, "me/a/b")
        (tmp_path / "metrics.json").write_text("[1]")
        assert "JSON object" in error_of(capsys, "push", folder, "me/head", "--metrics", tmp_path / "metrics.json")
        monkeypatch.delenv("HF_TOKEN")
        hub.absent.add("me/head")
        assert "HF_TOKEN" in error_of(capsys, "push", folder, "me/head")
        assert hub.repos == {}


def test_features_with_heads_and_models_of_the_hub(hub: Hub, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from PIL import Image
    from safetensors.torch import load_file

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    serve_base(hub)
    model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64))
    dvt_timm.push_to_hub(model, "me/head")
    dvt_timm.push_to_hub(model, "me/merged", merged=True)
    Image.new("RGB", (60, 60), (90, 120, 30)).save(tmp_path / "a.png")
    maps = []
    for options in (["--model", TINY, "--checkpoint", "hf-hub:me/head"], ["--checkpoint", "hf-hub:me/merged"]):
        args = ["features", str(tmp_path / "a.png"), "--size", "64", "--out", str(tmp_path / "out"), *options]
        assert cli.main(args) == 0
        maps.append(load_file(tmp_path / "out/a.safetensors"))
    assert torch.equal(maps[0]["denoised"], maps[1]["denoised"])
    assert not torch.equal(maps[0]["denoised"], maps[0]["raw"])
