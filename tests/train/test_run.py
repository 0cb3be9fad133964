"""Runs: results in a folder, taken up to the bit after any stop, refused where settings differ."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from filelock import FileLock
from helpers import TINY, fitter, full_disk, photos, same_weights, size_of
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from training import GRID, SHORT, InterruptingStore, equal, planted, store_of, teacher, weights

import dvt_timm
from dvt_timm._util.errors import RunError
from dvt_timm.offline import FeatureStore, ImageFitter, open_store
from dvt_timm.offline.run import settings_of
from dvt_timm.publish.card import eval_results
from dvt_timm.train import (
    DenoiserStage,
    OnlinePairs,
    RunInterruptedError,
    TrainConfig,
    distill,
    make_accelerator,
    train_denoiser,
)
from dvt_timm.train.log import read_log
from dvt_timm.train.loop import CHECKPOINT, Trainer
from dvt_timm.train.record import begun_with

KILLS = 4


def test_a_head_that_learns(store: FeatureStore, tmp_path: Path) -> None:
    config = TrainConfig(steps=60, batch_size=8, lr=3e-3, workers=0, held_out=4, eval_every=20)
    run = tmp_path / "run"
    train_denoiser(store, TINY, run, config)
    (metrics,) = json.loads((run / "metrics.json").read_text()).values()
    assert metrics["error"] < 0.5 * metrics["error, raw features"]
    lines = read_log(run)
    held_out = [line for line in lines if line["group"] == "held out"]
    assert [line["step"] for line in held_out] == [20, 40, 60]
    assert min(line["loss"] for line in held_out) == pytest.approx(metrics["loss"], abs=1e-4)
    assert [line["step"] for line in lines if line["group"] == "train"] == [10, 20, 30, 40, 50, 60]
    assert list((run / "tensorboard").iterdir())
    head = dvt_timm.load_head(run)
    assert head.grid_size == GRID
    assert same_weights(dvt_timm.load_head(run / "last").train(), head.train()) == (
        held_out[-1]["loss"] == min(line["loss"] for line in held_out)
    )
    card = (run / "README.md").read_text()
    assert f'denoiser="{run}"' in card
    assert "| held-out images (4) | error |" in card
    model = timm.create_model(TINY, denoiser=str(run), pretrained=False)
    assert same_weights(model.denoiser.train(), head)


def test_the_same_again_does_nothing(store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, str(tmp_path / "run"), SHORT)
    before = weights(tmp_path / "run")
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    assert equal(weights(tmp_path / "run"), before)
    assert [line["step"] for line in read_log(tmp_path / "run") if line["group"] == "held out"] == [4, 6]


@pytest.mark.parametrize(
    "name",
    [
        "eva02_tiny_patch14_224.mim_in22k",
        pytest.param("vit_small_patch14_reg4_dinov2.lvd142m", marks=pytest.mark.slow),
        pytest.param("deit3_small_patch16_224.fb_in1k", marks=pytest.mark.slow),
    ],
)
def test_other_families(name: str, tmp_path: Path) -> None:
    """Register tokens, rotary positions, a classifier: a head, then a plain ViT that plain timm would load."""
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size_of(name), num_classes=7, dynamic_img_size=True).eval()
    paths = photos(tmp_path / "photos", 4)
    config = TrainConfig(steps=2, batch_size=2, workers=0, lr=1e-3, warmup=0)
    stage = DenoiserStage(OnlinePairs(paths, ImageFitter(model, num_views=3)), name)
    (tmp_path / "head").mkdir()
    Trainer(stage, config, tmp_path / "head", make_accelerator(config, "cpu")).train()
    head = dvt_timm.load_head(tmp_path / "head")
    assert head.grid_size == model.patch_embed.grid_size
    distill(dvt_timm.denoise(model, head), list(map(str, paths)), tmp_path / "plain", config)
    plain = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True)
    assert type(plain) in (VisionTransformer, Eva)
    changed = {key for key, value in plain.state_dict().items() if not torch.equal(value, model.state_dict()[key])}
    kept = {key for key, parameter in plain.named_parameters() if key not in changed}
    assert kept == {"head.weight", "head.bias"} | {key for key in kept if key.startswith("fc_norm.")}


def test_numbers_that_may_change_and_numbers_that_may_not(store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    train_denoiser(store, TINY, tmp_path / "run", replace(SHORT, eval_every=3, checkpoint_every=1))
    with pytest.raises(RunError, match="was made with other settings: seed is 0, not 1"):
        train_denoiser(store, TINY, tmp_path / "run", replace(SHORT, seed=1))
    other = store_of(tmp_path / "other", planted(11))
    with pytest.raises(RunError, match=r"run was made with 12 images, .*\(not named now: 1, first 11.png\); name the"):
        train_denoiser(other, TINY, tmp_path / "run", SHORT)


def test_other_images_are_told_by_their_names(store: FeatureStore, tmp_path: Path) -> None:
    paths, run = photos(tmp_path / "photos", 6), tmp_path / "run"
    distill(teacher(), paths[:5], run, SHORT)
    for named, changes in (
        (paths, f"new: 1, first {paths[5]}"),
        (paths[1:], f"not named now: 1, first {paths[0]}; new: 1, first {paths[5]}"),
        (paths[2:5], f"not named now: 2, first {paths[0]}"),
    ):
        with pytest.raises(RunError, match=rf"made with 5 images, now others are named \({changes}\); name the same"):
            distill(teacher(), named, run, SHORT)
    distill(teacher(), paths[4::-1], run, SHORT)  # another order is none
    (run / "images.json").unlink()  # a run of an earlier version
    distill(teacher(), paths[:5], run, SHORT)
    train_denoiser(store, TINY, tmp_path / "head", SHORT, validation=store_of(tmp_path / "v", planted(3), first=20))
    with pytest.raises(RunError, match=r"made with 3 images, .*\(not named now: 1, first 22.png\)"):
        train_denoiser(store, TINY, tmp_path / "head", SHORT, validation=store_of(tmp_path / "w", planted(2), first=20))


def test_a_name_that_is_no_utf_8_is_recorded(tmp_path: Path) -> None:
    paths, run = photos(tmp_path / "photos", 5), tmp_path / "run"
    paths[2] = paths[2].rename(tmp_path / "photos" / os.fsdecode(b"caf\xe9.png"))
    distill(teacher(), paths, run, SHORT)
    paths[0].unlink()
    assert begun_with(run, paths[1:]) == paths


def test_other_features_of_the_same_images_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    crops = store_of(tmp_path / "crops", planted(12), views=settings_of(fitter(kind="crops"), half=False)["views"])
    with pytest.raises(RunError, match=r"features\.views\.kind is 'jitter', not 'crops'"):
        train_denoiser(crops, TINY, tmp_path / "run", SHORT)
    paths = photos(tmp_path / "photos", 6)
    train_denoiser(OnlinePairs(paths, fitter()), TINY, tmp_path / "online", SHORT)
    with pytest.raises(RunError, match=r"features\.views\.num_views is 3, not 4"):
        train_denoiser(OnlinePairs(paths, fitter(num_views=4)), TINY, tmp_path / "online", SHORT)


def test_other_features_to_validate_on_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, tmp_path / "run", SHORT, validation=store_of(tmp_path / "v", planted(3), first=20))
    other = store_of(tmp_path / "w", planted(3), first=20, views={**store.settings["views"], "kind": "crops"})
    with pytest.raises(RunError, match=r"validation\.features\.views\.kind is 'jitter', not 'crops'"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT, validation=other)


def test_a_folder_of_other_things_is_not_written_into(store: FeatureStore, tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 4)
    for start in (
        lambda folder: train_denoiser(store, TINY, folder, SHORT),
        lambda folder: distill(teacher(), paths, folder, SHORT),
    ):
        for folder in (tmp_path / "photos", store.folder):
            before = sorted(folder.iterdir())
            with pytest.raises(RunError, match=r"is not empty and holds no run of dvt-timm \(no train.json\)"):
                start(folder)
            assert sorted(folder.iterdir()) == before


def test_a_folder_in_use(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"), pytest.raises(BlockingIOError, match="another run is writing"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT)


def test_what_a_killed_run_left_half_written_is_removed(store: FeatureStore, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".0123abcd.train.json").write_bytes(b"half")
    train_denoiser(store, TINY, run, SHORT)
    for name in (".0123abcd.checkpoint.pt", ".0123abcd.model.safetensors", ".0123abcd.mine"):
        (run / name).write_bytes(b"half")
    train_denoiser(store, TINY, run, SHORT)
    assert [path.name for path in run.glob(".0123abcd*")] == [".0123abcd.mine"]


def test_a_full_disk(store: FeatureStore, tmp_path: Path) -> None:
    run, config = tmp_path / "run", replace(SHORT, steps=20)
    with pytest.raises(RunInterruptedError):
        train_denoiser(InterruptingStore(store, after=3 * 4), TINY, run, config)
    before = (run / CHECKPOINT).read_bytes()
    with (
        full_disk(100_000),
        pytest.raises(OSError, match=r"cannot write .*run/.*best weights are kept"),
    ):
        train_denoiser(store, TINY, run, config)
    assert (run / CHECKPOINT).read_bytes() == before
    assert not list(run.glob(".*.checkpoint.pt"))
    train_denoiser(store, TINY, run, config)
    train_denoiser(store, TINY, tmp_path / "whole", config)
    assert equal(weights(run), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "distill"])
def test_killed_again_and_again(stage: str, tmp_path: Path) -> None:
    """kill -9 at random moments between checkpoints: the end is that of an undisturbed run, to the bit."""
    context = multiprocessing.get_context("forkserver")  # OpenMP hangs in a fork of what has used it
    context.set_forkserver_preload(["timm", "dvt_timm.train"])

    def started(run: str) -> Any:  # all in children: as many threads, as many bits
        child = context.Process(target=run_stage, args=(stage, tmp_path, run))
        child.start()
        return child

    def finished(run: str) -> None:
        child = started(run)
        child.join()
        assert child.exitcode == 0

    finished("whole")
    chance, reached = random.Random(0), [0]
    checkpoint = tmp_path / "killed" / CHECKPOINT
    for _ in range(KILLS):
        before = written_at(checkpoint)
        child = started("killed")
        while child.is_alive() and written_at(checkpoint) == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        reached.append(torch.load(checkpoint, weights_only=True)["step"])
        assert reached[-1] > reached[-2]  # it went on, and did not begin anew
    assert len(reached) > 1
    finished("killed")
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    for file in ("model.safetensors", "metrics.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def written_at(file: Path) -> int:
    """Nanoseconds; 0 if there is no such file."""
    return file.stat().st_mtime_ns if file.exists() else 0


def run_stage(stage: str, folder: Path, run: str) -> None:
    config = TrainConfig(steps=80, batch_size=4, lr=1e-3, workers=1, eval_every=25, checkpoint_every=5)
    if stage == "train":
        if not (folder / "store").is_dir():
            store_of(folder / "store", planted(12))
        train_denoiser(open_store(folder / "store"), TINY, folder / run, config)
    else:
        paths = photos(folder / "photos", 8)
        paths[3].write_bytes(b"no image")  # another takes its place
        distill(teacher(), paths, folder / run, config)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "distill"])
def test_two_processes_are_one(stage: str, tmp_path: Path) -> None:
    """Gloo, started as accelerate does: the weights are those of one process with the joined batch.

    Accumulating too; and with both killed in the middle and started again, to the bit.
    """
    store_of(tmp_path / "store", planted(12))
    dvt_timm.save_model(teacher(), tmp_path / "teacher")
    photos(tmp_path / "photos", 8)[3].write_bytes(b"no image")  # another takes its place
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(run: str, *arguments: str, processes: int = 2) -> int:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
        command = [sys.executable, *launch, "script.py", stage, run, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, timeout=300, env=environment, check=False).returncode

    assert start("one", "1", processes=1) == start("two", "1") == start("parts", "2") == 0
    assert start("killed", "1", "kill") != 0
    assert torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)["step"] == 3
    assert start("killed", "1") == 0
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "two"))
    for run in ("two", "parts"):
        for key, value in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(tmp_path / run)[key], value, rtol=1e-3, atol=1e-5)


SCRIPT = """
import os, signal, sys
from pathlib import Path
import timm, dvt_timm
from dvt_timm.offline import open_store
from dvt_timm.train import TrainConfig, distill, make_accelerator, train_denoiser
from dvt_timm.train.loop import Trainer
stage, run, accumulation, *kill = sys.argv[1:]
config = TrainConfig(steps=6, batch_size=4, accumulation=int(accumulation), lr=1e-3, workers=0, checkpoint_every=3)
take_step = Trainer._take_step
def step_or_die(trainer, coming):
    if kill and trainer.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    take_step(trainer, coming)
Trainer._take_step = step_or_die
accelerator = make_accelerator(config, "cpu")
if stage == "train":
    train_denoiser(open_store("store"), "test_vit.r160_in1k", run, config, accelerator=accelerator)
else:
    teacher = timm.create_model("local-dir:teacher", pretrained=True)
    distill(teacher, sorted(map(str, Path("photos").iterdir())), run, config, accelerator=accelerator)
"""


def strict(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(("grid", "left_out"), [((2, 2), "leakage |x|, leakage |y|"), ((1, 1), "leakage x, leakage y")])
def test_figures_that_are_not_defined(grid: tuple[int, int], left_out: str, tmp_path: Path) -> None:
    """A run that has done its work ends with its files whole, and says what is left out of them."""
    config, run = replace(SHORT, held_out=5), tmp_path / "run"
    store = store_of(tmp_path / "store", planted(12, grid=grid))
    report = train_denoiser(store, TINY, run, config)
    assert report is not None
    (scores,) = strict(run / "metrics.json").values()
    assert "error" in scores
    assert "leakage |x|" not in scores
    card = (run / "README.md").read_text()
    assert f"- {left_out}" in card
    assert any(left_out in sentence for sentence in strict(run / "verdict.json")["sentences"])
    assert all(json.loads(line, parse_constant=pytest.fail) for line in (run / "log.jsonl").read_text().splitlines())
    assert eval_results(strict(run / "metrics.json"))  # as `push` takes them


def test_targets_that_are_the_same_everywhere(tmp_path: Path) -> None:
    pairs = [(raw, torch.ones_like(raw)) for raw, _ in planted(12)]
    report = train_denoiser(store_of(tmp_path / "store", pairs), TINY, tmp_path / "run", replace(SHORT, held_out=5))
    assert report is not None
    (scores,) = strict(tmp_path / "run/metrics.json").values()
    assert "error" not in scores
    assert not strict(tmp_path / "run/verdict.json")["worse"]
    card = (tmp_path / "run/README.md").read_text()
    assert "error to the targets is not known" in card
    assert "error is left out: the targets are the same in every patch." in card


def test_scores_of_an_older_checkpoint_that_are_not_finite(store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    state["best"]["leakage |x|"] = math.nan
    torch.save(state, tmp_path / "run" / CHECKPOINT)
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    (scores,) = strict(tmp_path / "run/metrics.json").values()
    assert "leakage |x|" not in scores


def test_predictions_that_are_not_finite_stop_a_run(store: FeatureStore, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Trainer, "predicted", lambda self, module: [torch.full((4, 4, 64), math.nan)] * 2)
    with pytest.raises(RunError, match="predicted of held-out images is not finite after step 4"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT)
