"""`dvt-timm distill`: from a folder of images by way of a head to `create_model` and the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from command import FEW, SHORT, error_of
from helpers import TINY, photos, random_head, same_weights
from hub_server import Hub

import dvt_timm
from dvt_timm.cli import distill as distill_command
from dvt_timm.cli import main as cli
from dvt_timm.train.config import DISTILL_PRESETS


def test_from_photos_to_a_model(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fit", "photos", "--model", TINY, "--out", "store", *FEW) == 0
    assert command("train", "--store", "store", "--out", "run", *SHORT) == 0
    assert f"timm.create_model('{TINY}', pretrained=True, denoiser='run')" in capsys.readouterr().out
    model = timm.create_model(TINY, pretrained=True, denoiser="run", img_size=64)
    assert same_weights(model.denoiser.train(), dvt_timm.load_head("run").train())
    distill = ["distill", "--base", TINY, "--denoiser", "run", "--images", "photos", "--size", "64", *SHORT]
    assert command(*distill, "--grad-checkpointing", "--out", "plain") == 0
    assert "timm.create_model('local-dir:plain', pretrained=True)" in capsys.readouterr().out
    plain = timm.create_model("local-dir:plain", pretrained=True)
    assert type(plain) is timm.models.VisionTransformer
    assert json.loads(Path("plain/train.json").read_text())["stage"] == 3


def test_what_training_leaves_is_pushed(
    command: Callable[..., int], hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert command("train", "--online", "photos", "--base", TINY, "--out", "run", *FEW, *SHORT) == 0
    verdict = json.loads(Path("run/verdict.json").read_text())
    assert verdict["worse"]  # after six steps
    assert verdict["sentences"][0] in capsys.readouterr().out
    assert "worse than raw features, says run/verdict.json: trained: +" in error_of(capsys, "push", "run", "me/head")
    for part in ("run/last", "run/model.safetensors"):
        assert "worse than raw features" in error_of(capsys, "push", part, "me/head", "--base", TINY)
    assert "me/head" not in hub.repos
    assert command("push", "run/last", "me/last", "--yes") == 0
    assert verdict["sentences"][0] not in hub.repos["me/last"].files()["README.md"].decode()
    assert command("push", "run", "me/head", "--yes") == 0
    pulled = timm.create_model("hf-hub:me/head", pretrained=True)
    assert same_weights(pulled.denoiser.train(), dvt_timm.load_head("run").train())
    card = hub.repos["me/head"].files()["README.md"].decode()
    (metrics,) = json.loads(Path("run/metrics.json").read_text()).values()
    assert f"| error | {metrics['error']} |" in card
    assert all(f"- {sentence}" in card for sentence in verdict["sentences"])
    distill = ["distill", "--base", TINY, "--denoiser", "run", "--images", "photos", "--size", "64", *SHORT]
    assert command(*distill, "--out", "plain") == 0
    assert "trained: " in capsys.readouterr().out
    assert command("push", "plain", "me/plain", "--yes") == 0
    pulled = timm.create_model("hf-hub:me/plain", pretrained=True)
    assert same_weights(pulled.train(), timm.create_model("local-dir:plain", pretrained=True).train())
    assert f"base_model: timm/{TINY}" in hub.repos["me/plain"].files()["README.md"].decode()
    assert command("push", "hf-hub:me/plain", "me/plain-again") == 0


def test_a_teacher_of_ones_own_tag(command: Callable[..., int]) -> None:
    """A saved model whose tag timm does not know: --base says what it comes from."""
    dvt_timm.save_head(random_head(64, (4, 4)), "head", base=TINY)
    teacher = timm.create_model(TINY, pretrained=True, denoiser="head")
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "tag": "dvt_mine"}
    dvt_timm.save_model(teacher, "mine")
    distill = ["distill", "--denoiser", "mine", "--images", "photos", "--size", "64", *SHORT]
    assert command(*distill, "--base", "test_vit", "--out", "plain") == 0
    assert f"base_model: timm/{TINY}" in Path("plain/README.md").read_text()


def test_out_of_memory(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(distill_command, "_distill", exhausted)
    assert command("distill", "--base", TINY, "--images", "photos", "--out", "run") == 2
    assert "Tried to allocate 9 GiB; raise --accumulation" in capsys.readouterr().err


def test_presets() -> None:
    assert set(distill_command.PRESETS) == DISTILL_PRESETS.keys()
    for name in DISTILL_PRESETS:
        options = ["distill", "--base", "b", "--images", "i", "--out", "r", "--preset", name]
        assert cli._parser().parse_args(options).preset == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], f"{TINY} has no denoiser to learn from; name a head as --denoiser"),
        (["--denoiser", "gone"], "cannot build gone: "),
    ],
)
def test_what_stops_it_is_one_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    distill = ["distill", "--base", TINY, "--images", "photos", "--out", "run", *SHORT, *options]
    assert error_of(capsys, *distill).startswith(f"dvt-timm: error: {message}")


def test_a_folder_of_other_things_is_refused(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    photos(Path("mine"), 1)
    dvt_timm.save_head(random_head(64, (4, 4)), "head", base=TINY)
    distill = ["distill", "--base", TINY, "--denoiser", "head", "--images", "photos", "--size", "64", *SHORT]
    assert "mine is not empty and holds no run of dvt-timm" in error_of(capsys, *distill, "--out", "mine")
    assert [path.name for path in Path("mine").iterdir()] == ["0.png"]
