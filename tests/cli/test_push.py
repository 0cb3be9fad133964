"""`dvt-timm push`: what it sends, says and returns."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from command import error_of
from helpers import TINY, random_head, same_weights, serve_base
from hub_server import Hub
from huggingface_hub import ModelCard

import dvt_timm
from dvt_timm.cli import main as cli


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
        assert "--metrics none.json not found" in error_of(capsys, "push", folder, "me/head", "--metrics", "none.json")
        monkeypatch.delenv("HF_TOKEN")
        hub.absent.add("me/head")
        assert "HF_TOKEN" in error_of(capsys, "push", folder, "me/head")
        assert hub.repos == {}
