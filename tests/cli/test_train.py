"""`dvt-timm train`: from photos or a store to a head."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from command import FEW, SHORT, error_of
from helpers import TINY, photos, random_head
from hub_server import Hub

import dvt_timm
from dvt_timm.checkpoints.heads import base_at_hand, base_sha256
from dvt_timm.cli import main as cli
from dvt_timm.cli import train as train_command
from dvt_timm.cli import training
from dvt_timm.train import TrainConfig
from dvt_timm.train.config import TRAIN_PRESETS
from dvt_timm.train.loop import Trainer
from dvt_timm.train.origin import base_sha256_of


def test_it_goes_on_from_a_head(command: Callable[..., int]) -> None:
    head = random_head(64, (3, 5))
    dvt_timm.save_head(head, "head", base=TINY)
    train = ["train", "--online", "photos", "--base", TINY, *FEW, *SHORT, "--lr", "1e-9"]
    assert command(*train, "--initial-head", "head", "--out", "run") == 0
    trained = dvt_timm.load_head("run/last")
    assert trained.config == head.config
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, head.state_dict()[name], rtol=0, atol=1e-4)


def test_a_head_for_weights_of_ones_own(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """It says so where it is put on the published ones."""
    torch.manual_seed(1)
    timm.models.save_for_hf(timm.create_model(TINY), "mine", model_config={}, safe_serialization=True)
    weights = "mine/model.safetensors"
    assert command("fit", "photos", "--model", TINY, "--weights", weights, "--out", "store", *FEW) == 0
    assert command("train", "--store", "store", "--base", "test_vit", "--out", "run", *SHORT) == 0
    assert "denoiser='run', pretrained_cfg_overlay={'file': WEIGHTS})" in capsys.readouterr().out
    timm.create_model(TINY, pretrained=True, denoiser="run", pretrained_cfg_overlay={"file": weights})
    with pytest.warns(UserWarning, match=f"the head was trained on other weights of {TINY}"):
        timm.create_model(TINY, pretrained=True, denoiser="run")


def test_a_head_knows_which_weights_it_is_of(
    command: Callable[..., int], hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    tuned = timm.create_model(TINY)
    timm.models.save_for_hf(tuned, "tuned", model_config={}, safe_serialization=True)
    hub.repo("me/tuned", {name: Path("tuned", name).read_bytes() for name in ("config.json", "model.safetensors")})
    assert base_sha256_of({"weights_sha256": "", "stride": [16]}, TINY) == ""  # it is not at hand
    for name, is_official in ((TINY, True), ("hf-hub:me/tuned", False)):
        store, out = f"store-{is_official}", f"run-{is_official}"
        assert command("fit", "photos", "--model", name, "--out", store, *FEW) == 0
        assert command("train", "--store", store, "--base", TINY, "--out", out, *SHORT) == 0
        assert ("pretrained_cfg_overlay" in capsys.readouterr().out) == (not is_official)
        config = json.loads(Path(out, "config.json").read_text())
        assert config["base_sha256"] == (base_sha256(TINY) if is_official else None)
        assert base_sha256(TINY) is not None
    state = torch.get_rng_state()
    assert base_sha256_of({"weights_sha256": "of others", "stride": [16]}, TINY) == ""
    assert torch.equal(torch.get_rng_state(), state)
    base_at_hand(TINY)[0].write_bytes(b"damaged")
    assert base_sha256_of({"weights_sha256": "of others", "stride": [16]}, TINY) == ""


def test_interrupted(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    take_step = Trainer._take_step

    def interrupting(trainer: Trainer, *arguments: object) -> None:
        take_step(trainer, *arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_take_step", interrupting)
    assert command("train", "--online", "photos", "--base", TINY, "--out", "run", *FEW, *SHORT) == 130
    assert "interrupted after step 1 of 6; run the same again to go on" in capsys.readouterr().err


@pytest.mark.parametrize("calibrated", [(), ("--calibrate", "3")])
def test_online_is_the_store(command: Callable[..., int], calibrated: tuple[str, ...]) -> None:
    assert command("fit", "photos", "--model", TINY, "--out", "store", *FEW, *calibrated) == 0
    assert command("train", "--store", "store", "--out", "a", *SHORT, "--held-out", "2") == 0
    online = ["train", "--online", "photos", "--base", TINY, *FEW, *SHORT, *calibrated, "--held-out", "2"]
    assert command(*online, "--out", "b") == 0
    assert Path("b/artifact.safetensors").exists() == bool(calibrated)
    assert command(*online, "--out", "b") == 0  # it was finished
    a, b = (torch.load(f"{name}/checkpoint.pt", weights_only=True)["module"] for name in "ab")
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-6)


def test_validation_on_a_store_of_other_images(command: Callable[..., int]) -> None:
    assert command("fit", "photos", "--model", TINY, "--out", "store", *FEW) == 0
    photos(Path("others"), 3, first=8)
    assert command("fit", "others", "--model", TINY, "--out", "others-store", *FEW) == 0
    for source in (["--store", "store"], ["--online", "photos", "--base", TINY, *FEW]):
        out = f"run-{source[0].strip('-')}"
        assert command("train", *source, "--validation", "others-store", "--out", out, *SHORT) == 0
        assert list(json.loads(Path(out, "metrics.json").read_text())) == ["held-out images (3)"]
        assert len(list(Path(out, "pictures").glob("000006-*.png"))) == 3


def test_presets_and_numbers() -> None:
    def config(*options: str) -> TrainConfig:
        arguments = cli._parser().parse_args(["train", "--store", "s", "--out", "r", *options])
        return training.config_of(arguments, TRAIN_PRESETS[arguments.preset], 10_000)

    assert set(train_command.PRESETS) == TRAIN_PRESETS.keys()
    for name in TRAIN_PRESETS:
        assert config("--preset", name) == TRAIN_PRESETS[name].config(10_000)
    assert config() == TrainConfig()
    assert config("--preset", "paper") == TrainConfig(steps=1562, batch_size=64)
    assert config("--preset", "quick", "--lr", "1e-3") == TrainConfig(steps=2000, batch_size=8, lr=1e-3)
    given = ["--accumulation", "2", "--warmup", "0", "--weight-decay", "0", "--precision", "bf16", "--seed", "3"]
    given += ["--workers", "0", "--held-out", "7", "--eval-every", "9", "--checkpoint-every", "8"]
    assert config(*given) == TrainConfig(
        accumulation=2,
        warmup=0,
        weight_decay=0,
        precision="bf16",
        seed=3,
        workers=0,
        held_out=7,
        eval_every=9,
        checkpoint_every=8,
    )


def test_what_stops_it_is_one_line(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dvt_timm.save_head(random_head(64, (4, 4)), "head", base=TINY)
    train = ["train", "--out", "run", *SHORT]
    for arguments, message in (
        ([*train, "--store", "nothing"], "nothing holds no feature store (no store.json)"),
        ([*train, "--store", "store", "--layer", "3", "--field-steps", "9"], "--layer, --field-steps would not matter"),
        ([*train, "--store", "store", "--view-pairs", "3"], "--view-pairs would not matter"),
        ([*train, "--online", "photos"], "--online needs --base"),
        ([*train, "--online", "gone.png", "--base", TINY], "gone.png not found; give JPEG, PNG or WebP files"),
        ([*train, "--online", "nothing", "--base", TINY], "no image in nothing"),
        ([*train, "--online", "photos", "--base", TINY, "--views", "1", "--layer", "99"], "layer must be"),
        ([*train, "--online", "photos", "--base", TINY, *FEW, "--lr", "-1"], "lr must be positive"),
        ([*train, "--online", "photos", "--base", TINY, *FEW, "--held-out", "8"], "8 samples are too few to hold 8"),
        (
            [*train, "--store", "s", "--validation", "v", "--held-out", "8"],
            "--validation takes the place of --held-out",
        ),
        ([*train, "--store", "s", "--initial-head", "head", "--num-blocks", "2"], "--num-blocks is of a new head"),
        (
            [*train, "--online", "photos", "--base", TINY, *FEW, "--initial-head", "gone"],
            "cannot load --initial-head gone: gone not found",
        ),
    ):
        assert command(*arguments) == 2, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("dvt-timm: error: ")
        assert message in error


def test_a_broken_image_is_skipped_and_may_be_removed(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list names it still, and one that has never been there."""
    Path("photos/3.png").write_bytes(b"no image")
    Path("photos/list.txt").write_text("".join(f"{i}.png\n" for i in range(9)))
    train = [
        "train",
        "--online",
        "photos/list.txt",
        "--base",
        TINY,
        *FEW,
        *SHORT,
        "--preset",
        "quick",
        "--held-out",
        "2",
    ]
    assert command(*train, "--out", "whole") == 1
    errors = capsys.readouterr().err
    assert errors.count("dvt-timm: skipped photos/3.png: not a JPEG, PNG or WebP image\n") == 1
    assert errors.count("dvt-timm: skipped photos/8.png: not found\n") == 1
    assert "dvt-timm: 2 inputs skipped\n" in errors
    take_step = Trainer._take_step

    def interrupting(trainer: Trainer, *arguments: object) -> None:
        take_step(trainer, *arguments)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as context:
        context.setattr(Trainer, "_take_step", interrupting)
        assert command(*train, "--out", "parts") == 130
    Path("photos/3.png").unlink()
    assert command(*train, "--out", "parts") == 1
    whole, parts = (torch.load(f"{run}/checkpoint.pt", weights_only=True)["module"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    photos(Path("photos"), 1, first=20)
    assert command(*train[:2], "photos", *train[3:], "--out", "parts") == 2
    assert "new: 1, first photos/20.png); name the same" in capsys.readouterr().err


def test_without_accelerate(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    assert command("train", "--online", "photos", "--base", TINY, "--out", "run") == 2
    assert "training needs accelerate; pip install 'dvt-timm[train]'" in capsys.readouterr().err


def test_a_folder_of_other_things_is_refused(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    photos(Path("mine"), 1)
    train = ["train", "--online", "photos", "--base", TINY, *FEW, *SHORT]
    assert "mine is not empty and holds no run of dvt-timm" in error_of(capsys, *train, "--out", "mine")
    assert [path.name for path in Path("mine").iterdir()] == ["0.png"]


def test_a_stopped_run_goes_on_under_the_same_command(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "--online", "photos", "--base", TINY, *FEW, *SHORT]
    assert command(*train, "--out", "whole") == 0
    take_step, steps = Trainer._take_step, []

    def counted(trainer: Trainer, *arguments: object) -> None:
        take_step(trainer, *arguments)
        steps.append(trainer)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_take_step", counted)
    assert [command(*train, "--out", "parts") for _ in range(3)] == [130, 0, 0]
    assert len(steps) == 6
    whole, parts = (torch.load(f"{run}/checkpoint.pt", weights_only=True)["module"] for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
