"""`dvt-timm train` and `dvt-timm distil`: from a folder of images to `create_model` and the Hub."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from helpers import TINY, photos, random_head, same_weights, serve_base
from hub_server import Hub

import dvt_timm
from dvt_timm.cli import main as cli
from dvt_timm.cli import train as train_command
from dvt_timm.train import TrainConfig
from dvt_timm.train.loop import Trainer

SHORT = ["--steps", "6", "--batch-size", "4", "--workers", "0", "--eval-every", "4", "--checkpoint-every", "3"]
FEW = ["--views", "3", "--size", "64"]


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`dvt-timm ...` in a folder of its own with some photos and the tiny model on the Hub."""
    serve_base(hub)
    photos(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda *arguments: cli.main(arguments)


def test_from_photos_to_a_model(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "photos", "--model", TINY, "--out", "store", *FEW) == 0
    assert run("train", "--store", "store", "--out", "run", *SHORT) == 0
    assert f"timm.create_model('{TINY}', pretrained=True, denoiser='run')" in capsys.readouterr().out
    model = timm.create_model(TINY, pretrained=True, denoiser="run", img_size=64)
    assert same_weights(model.denoiser.train(), dvt_timm.load_head("run").train())
    assert run("distil", "--base", TINY, "--denoiser", "run", "--images", "photos", "--out", "plain", "--size", "64",
               "--grad-checkpointing", *SHORT) == 0  # fmt: skip
    assert "timm.create_model('local-dir:plain', pretrained=True)" in capsys.readouterr().out
    plain = timm.create_model("local-dir:plain", pretrained=True)
    assert type(plain) is timm.models.VisionTransformer
    assert json.loads(Path("plain/train.json").read_text())["stage"] == 3


def test_it_goes_on_from_a_head(run: Callable[..., int]) -> None:
    head = random_head(64, (3, 5))
    dvt_timm.save_head(head, "head", base=TINY)
    train = ["train", "--online", "photos", "--base", TINY, *FEW, *SHORT, "--lr", "1e-9"]
    assert run(*train, "--initial-head", "head", "--out", "run") == 0
    trained = dvt_timm.load_head("run/last")
    assert trained.config == head.config
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, head.state_dict()[name], rtol=0, atol=1e-4)


def test_what_training_leaves_is_pushed(run: Callable[..., int], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run("train", "--online", "photos", "--base", TINY, "--out", "run", *FEW, *SHORT) == 0
    assert run("push", "run", "me/head") == 0
    pulled = timm.create_model("hf-hub:me/head", pretrained=True)
    assert same_weights(pulled.denoiser.train(), dvt_timm.load_head("run").train())
    card = hub.repos["me/head"].files()["README.md"].decode()
    (metrics,) = json.loads(Path("run/metrics.json").read_text()).values()
    assert f"| error | {metrics['error']} |" in card
    distil = ["distil", "--base", TINY, "--denoiser", "run", "--images", "photos", "--size", "64", *SHORT]
    assert run(*distil, "--out", "plain") == 0
    assert run("push", "plain", "me/plain") == 0
    pulled = timm.create_model("hf-hub:me/plain", pretrained=True)
    assert same_weights(pulled.train(), timm.create_model("local-dir:plain", pretrained=True).train())
    assert f"base_model: timm/{TINY}" in hub.repos["me/plain"].files()["README.md"].decode()
    assert run("push", "hf-hub:me/plain", "me/plain-again") == 0


def test_a_teacher_of_ones_own_tag(run: Callable[..., int]) -> None:
    """A saved model whose tag timm does not know: --base says what it comes from."""
    dvt_timm.save_head(random_head(64, (4, 4)), "head", base=TINY)
    teacher = timm.create_model(TINY, pretrained=True, denoiser="head")
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "tag": "dvt_mine"}
    dvt_timm.save_model(teacher, "mine")
    distil = ["distil", "--denoiser", "mine", "--images", "photos", "--size", "64", *SHORT]
    assert run(*distil, "--base", "test_vit", "--out", "plain") == 0
    assert f"base_model: timm/{TINY}" in Path("plain/README.md").read_text()


def test_a_head_for_weights_of_ones_own(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """It says so where it is put on the published ones."""
    torch.manual_seed(1)
    timm.models.save_for_hf(timm.create_model(TINY), "mine", model_config={}, safe_serialization=True)
    weights = "mine/model.safetensors"
    assert run("fit", "photos", "--model", TINY, "--checkpoint", weights, "--out", "store", *FEW) == 0
    assert run("train", "--store", "store", "--base", "test_vit", "--out", "run", *SHORT) == 0
    assert "denoiser='run', pretrained_cfg_overlay={'file': CHECKPOINT})" in capsys.readouterr().out
    timm.create_model(TINY, pretrained=True, denoiser="run", pretrained_cfg_overlay={"file": weights})
    with pytest.warns(UserWarning, match=f"the head was trained on other weights of {TINY}"):
        timm.create_model(TINY, pretrained=True, denoiser="run")


def test_out_of_memory(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(train_command, "_distil", exhausted)
    assert run("distil", "--base", TINY, "--images", "photos", "--out", "run") == 2
    assert "Tried to allocate 9 GiB; raise --accumulation" in capsys.readouterr().err


def test_interrupted(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    take_step = Trainer._take_step

    def interrupting(trainer: Trainer, *arguments: object) -> None:
        take_step(trainer, *arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_take_step", interrupting)
    assert run("train", "--online", "photos", "--base", TINY, "--out", "run", *FEW, *SHORT) == 130
    assert "interrupted after step 1 of 6; run the same again to go on" in capsys.readouterr().err


def test_online_is_the_store(run: Callable[..., int]) -> None:
    assert run("fit", "photos", "--model", TINY, "--out", "store", *FEW) == 0
    assert run("train", "--store", "store", "--out", "a", *SHORT, "--held-out", "2") == 0
    assert run("train", "--online", "photos", "--base", TINY, "--out", "b", *FEW, *SHORT, "--held-out", "2") == 0
    a, b = (torch.load(f"{name}/checkpoint.pt", weights_only=True)["module"] for name in "ab")
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-6)


def test_validation_on_a_store_of_other_images(run: Callable[..., int]) -> None:
    assert run("fit", "photos", "--model", TINY, "--out", "store", *FEW) == 0
    photos(Path("others"), 3, first=8)
    assert run("fit", "others", "--model", TINY, "--out", "others-store", *FEW) == 0
    for source in (["--store", "store"], ["--online", "photos", "--base", TINY, *FEW]):
        out = source[0].strip("-")
        assert run("train", *source, "--validation", "others-store", "--out", out, *SHORT) == 0
        assert list(json.loads(Path(out, "metrics.json").read_text())) == ["held-out images (3)"]
        assert len(list(Path(out, "pictures").glob("000006-*.png"))) == 3


def test_presets_and_numbers() -> None:
    from dvt_timm.cli.train import _config
    from dvt_timm.train.config import DISTIL_PRESETS, TRAIN_PRESETS

    def config(*options: str) -> TrainConfig:
        arguments = cli._parser().parse_args(["train", "--store", "s", "--out", "r", *options])
        return _config(arguments, TRAIN_PRESETS[arguments.preset], 10_000)

    for command, presets in (("train", TRAIN_PRESETS), ("distil", DISTIL_PRESETS)):
        for name in presets:
            required = ["--store", "s"] if command == "train" else ["--base", "b", "--images", "i"]
            assert cli._parser().parse_args([command, *required, "--out", "r", "--preset", name]).preset == name
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


def test_what_stops_it_is_one_line(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvt_timm.save_head(random_head(64, (4, 4)), "head", base=TINY)
    train, distil = ["train", "--out", "run", *SHORT], ["distil", "--out", "run", *SHORT]
    for arguments, message in (
        ([*train, "--store", "nothing"], "nothing holds no feature store (no store.json)"),
        ([*train, "--store", "store", "--layer", "3", "--field-steps", "9"], "--layer, --field-steps would not matter"),
        ([*train, "--store", "store", "--view-pairs", "3"], "--view-pairs would not matter"),
        ([*train, "--online", "photos"], "--online needs --base"),
        ([*train, "--online", "photos", "gone.png", "--base", TINY], "1 of the images named do not exist"),
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
        ([*distil, "--base", TINY, "--images", "photos"], "has no denoiser to learn from"),
        ([*distil, "--base", TINY, "--denoiser", "gone", "--images", "photos"], "cannot build"),
    ):
        assert run(*arguments) == 2, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("dvt-timm: error: ")
        assert message in error


def test_without_accelerate(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    assert run("train", "--online", "photos", "--base", TINY, "--out", "run") == 2
    assert "training needs accelerate; pip install accelerate tensorboard" in capsys.readouterr().err
