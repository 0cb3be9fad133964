"""Stages 2 and 3: the method as written, resumable to the bit, and a clear end where it cannot go on."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from filelock import FileLock
from helpers import TINY, fitter, full_disk, photos, random_head, same_weights, size_of
from PIL import Image
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import dvt_timm
from dvt_timm._util.errors import RunError
from dvt_timm._util.images import ImageError
from dvt_timm.offline import FeatureStore, ImageFitter, fit_store, open_store
from dvt_timm.offline.run import settings_of
from dvt_timm.offline.store import StoreWriter, writing
from dvt_timm.train import (
    DenoiserStage,
    DistillStage,
    OnlinePairs,
    RunInterruptedError,
    TrainConfig,
    distill,
    feature_losses,
    make_accelerator,
    train_denoiser,
)
from dvt_timm.train.config import DISTILL_PRESETS, TRAIN_PRESETS
from dvt_timm.train.data import Stream, batches, collate, positions, split
from dvt_timm.train.log import read_log
from dvt_timm.train.loop import CHECKPOINT, Trainer

GRID, DIM = (4, 4), 64
SHORT = TrainConfig(steps=6, batch_size=4, lr=1e-3, warmup=0.2, workers=0, eval_every=4, checkpoint_every=2)
KILLS = 4


def planted(
    count: int, dtype: torch.dtype = torch.float32, grid: tuple[int, int] = GRID
) -> list[tuple[Tensor, Tensor]]:
    """(raw, clean): content of random directions, and one artifact for all."""
    draw = torch.Generator().manual_seed(0)
    artifact = torch.randn(*grid, DIM, generator=draw)
    clean = [torch.randn(*grid, DIM, generator=draw) for _ in range(count)]
    return [((each + artifact).to(dtype), each.to(dtype)) for each in clean]


def store_of(folder: Path, pairs: list[tuple[Tensor, Tensor]], **changed: Any) -> FeatureStore:
    """A store that holds given pairs, of the tiny model."""
    with writing(folder, {**settings_of(fitter(), half=False), **changed}):
        writer = StoreWriter(folder)
        for i, (raw, clean) in enumerate(pairs):
            writer.add(f"{i:064x}", Path(f"{i}.png"), {"raw": raw, "clean": clean}, {})
        writer.close()
    return open_store(folder)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return store_of(tmp_path / "store", planted(12))


def weights(run: Path) -> dict[str, Tensor]:
    """The last ones."""
    return torch.load(run / CHECKPOINT, weights_only=True)["module"]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def teacher(**options: Any) -> Any:
    """A tiny denoised model, whose head changes something."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, img_size=64, dynamic_img_size=True, denoiser={"grid_size": [4, 4]}, **options)
    return model.eval()


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one precision for the whole process: a test of another one starts and ends without."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


class TestMethod:
    def test_losses(self) -> None:
        predicted, target = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
        losses = feature_losses(predicted, target)
        p, t = predicted.reshape(-1, 5), target.reshape(-1, 5)
        cosines = (p * t).sum(dim=1) / (p.norm(dim=1) * t.norm(dim=1))
        torch.testing.assert_close(losses.mse, ((p - t) ** 2).mean())
        torch.testing.assert_close(losses.cosine, (1 - cosines).mean())
        torch.testing.assert_close(losses.total, losses.mse + losses.cosine)
        assert feature_losses(predicted.half(), target.half()).mse.dtype == torch.float32
        with pytest.raises(ValueError, match="differ in shape"):
            feature_losses(predicted, target[:1])

    def test_learning_rate(self) -> None:
        config = TrainConfig(steps=1000, batch_size=64)
        assert config.peak_lr == pytest.approx(1e-4)  # 2e-4 * sqrt(64 / 256)
        assert [config.rate(step) for step in (0, 75, 150)] == pytest.approx([0, 0.5e-4, 1e-4])
        assert config.rate(575) == pytest.approx((1e-4 + 1e-6) / 2)
        assert config.rate(1000) == pytest.approx(1e-6)
        assert TrainConfig(lr=3e-4).peak_lr == 3e-4

    def test_presets(self) -> None:
        assert TRAIN_PRESETS["released"].config(100) == TrainConfig(steps=50_000, batch_size=128)
        assert TRAIN_PRESETS["paper"].config(10_000) == TrainConfig(steps=1562, batch_size=64)
        assert TRAIN_PRESETS["paper"].config(10_000, batch_size=100).steps == 1000
        assert TRAIN_PRESETS["paper"].config(10_000, steps=7) == TrainConfig(steps=7, batch_size=64)
        assert DISTILL_PRESETS["paper"].config(1_281_167).steps == 5 * 1_281_167 // 512

    def test_stage_2_is_what_the_method_says(self, tmp_path: Path) -> None:
        """Five steps in float64 against the method written out."""
        pairs = planted(5, torch.float64)
        store = store_of(tmp_path / "store", pairs)
        config = TrainConfig(steps=5, batch_size=4, workers=0, held_out=1, weight_decay=0.1)
        stage = DenoiserStage(store, TINY)
        stage.module.double()
        (tmp_path / "run").mkdir()
        trainer = Trainer(stage, config, tmp_path / "run", make_accelerator(config, "cpu"))
        torch.manual_seed(0)
        head = dvt_timm.DenoiserHead(DIM, GRID).double()
        batches = [collate([trainer.stream[4 * step + i] for i in range(4)]) for step in range(5)]
        losses = restated(head, lambda batch: batch, batches, config)
        trainer.train()
        for key, value in head.state_dict().items():
            torch.testing.assert_close(trainer.module.state_dict()[key], value, rtol=1e-9, atol=1e-12)
        assert losses[-1] < losses[0]

    def test_stage_3_is_what_the_method_says(self, tmp_path: Path) -> None:
        config = TrainConfig(steps=5, batch_size=4, workers=0, held_out=1, weight_decay=0.1)
        stage = DistillStage(teacher(), photos(tmp_path / "photos", 5))
        stage.module.double()
        stage.teacher.double()
        (tmp_path / "run").mkdir()
        trainer = Trainer(DoubleImages(stage), config, tmp_path / "run", make_accelerator(config, "cpu"))
        model, student = teacher().double(), teacher().double()
        plain = VisionTransformer.forward_features
        grid = GRID

        def pair(pixels: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                raw = plain(model, pixels)[:, 1:].reshape(len(pixels), *grid, -1)
                return pixels, model.denoiser(raw)

        batches = [collate([trainer.stream[4 * step + i] for i in range(4)]).double() for step in range(5)]
        forward = Forward(student)
        restated(forward, pair, batches, config)
        trainer.train()
        for key, value in trainer.module.vit.state_dict().items():
            torch.testing.assert_close(value, student.state_dict()[key], rtol=1e-8, atol=1e-11)
        assert not torch.equal(student.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)

    @pytest.mark.usefixtures("fresh_accelerate")
    def test_a_teacher_runs_in_the_precision_of_the_run(self, tmp_path: Path) -> None:
        config = TrainConfig(steps=1, batch_size=2, precision="bf16", workers=0, held_out=1)
        stage = DistillStage(teacher(), photos(tmp_path / "photos", 3))
        seen = []
        for linear in (stage.teacher.blocks[0].mlp.fc1, stage.teacher.denoiser.denoiser.mlp.fc1):
            linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        (tmp_path / "run").mkdir()
        trainer = Trainer(stage, config, tmp_path / "run", make_accelerator(config, "cpu"))
        trainer.train()
        assert len(seen) == 4
        assert set(seen) == {torch.bfloat16}
        assert {part.dtype for part in trainer.unseen()[0]} == {torch.float32}


class Forward(nn.Module):
    """timm's own forward pass of a denoised model's backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(("denoiser", "head")))

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = VisionTransformer.forward_features(self.model, pixels)
        return tokens[:, self.model.num_prefix_tokens :].reshape(len(pixels), *GRID, -1)


class DoubleImages:
    """A stage whose images are float64."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def batch(self, sample: Tensor) -> Any:
        return self._stage.batch(sample.double())


def restated(
    module: nn.Module, pair: Callable[[Any], tuple[Tensor, Tensor]], batches: list[Any], config: TrainConfig
) -> list[float]:
    """The method with nothing around it: AdamW written out. The losses."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    warm_up, peak, losses = round(0.15 * config.steps), 2e-4 * math.sqrt(config.batch_size / 256), []
    for step, batch in enumerate(batches):
        inputs, target = pair(batch)
        predicted = module(inputs)
        cosine = (predicted * target).sum(-1) / (predicted.norm(dim=-1) * target.norm(dim=-1))
        loss = (predicted - target).pow(2).mean() + (1 - cosine).mean()
        gradients = torch.autograd.grad(loss, parameters)
        progress = (step - warm_up) / (config.steps - warm_up)
        cosine_rate = 1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * progress)) / 2
        rate = peak * step / warm_up if step < warm_up else cosine_rate
        with torch.no_grad():
            for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - rate * config.weight_decay)
                hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                p.sub_(rate * hat[0] / (hat[1].sqrt() + 1e-8))
        losses.append(loss.item())
    return losses


class TestDividing:
    @pytest.mark.parametrize(("accumulation", "num_ranks"), [(1, 1), (2, 1), (1, 2), (2, 2)])
    def test_every_position_is_taken_once(self, accumulation: int, num_ranks: int) -> None:
        parts = [list(positions(3, 5, 8, accumulation, rank, num_ranks)) for rank in range(num_ranks)]
        assert all(len(batch) == 8 // (accumulation * num_ranks) for part in parts for batch in part)
        first = [batch for part in parts for batch in part[:accumulation]]
        assert sorted(position for batch in first for position in batch) == list(range(24, 32))
        assert sorted(position for part in parts for batch in part for position in batch) == list(range(24, 40))
        assert len(parts[0]) == 2 * accumulation

    def test_accumulated_batches_are_one_batch(self, tmp_path: Path) -> None:
        store = store_of(tmp_path / "store", planted(12, torch.float64))
        states = []
        for accumulation in (1, 2):
            config = TrainConfig(steps=4, batch_size=4, accumulation=accumulation, workers=0)
            stage = DenoiserStage(store, TINY)
            stage.module.double()
            run = tmp_path / f"run{accumulation}"
            run.mkdir()
            trainer = Trainer(stage, config, run, make_accelerator(config, "cpu"))
            trainer.train()
            states.append(trainer.module.state_dict())
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-9, atol=1e-12)

    def test_grad_checkpointing_changes_nothing(self, tmp_path: Path) -> None:
        paths = photos(tmp_path / "photos", 6)
        assert DistillStage(teacher(), paths, grad_checkpointing=True).module.vit.grad_checkpointing
        for name, checkpointing in (("a", False), ("b", True)):
            distill(teacher(), paths, tmp_path / name, SHORT, grad_checkpointing=checkpointing)
        a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("stage", ["train", "distill"])
    def test_two_processes_are_one(self, stage: str, tmp_path: Path) -> None:
        """Gloo, started as accelerate does: the weights are those of one process with the joined batch.

        Accumulating too; and with both killed in the middle and started again, to the bit.
        """
        store_of(tmp_path / "store", planted(12))
        dvt_timm.save_model(teacher(), tmp_path / "teacher")
        photos(tmp_path / "photos", 8)
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


class TestData:
    def test_a_stream_shuffles_every_epoch_anew(self) -> None:
        stream = Stream(lambda i, _: i, [2, 3, 5, 7], seed=0)
        epochs = [[stream[4 * epoch + place] for place in range(4)] for epoch in range(6)]
        assert all(sorted(epoch) == [2, 3, 5, 7] for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 2
        assert [stream[4 + place] for place in range(4)] == epochs[1]

    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_batches_come_in_order_and_not_too_far_ahead(self, workers: int) -> None:
        read: list[int] = []

        class Counted(list[Tensor]):
            def __getitem__(self, i: Any) -> Any:
                read.append(i)
                return super().__getitem__(i)

        samples = Counted(torch.full((2,), float(i)) for i in range(12))
        stream = Stream(lambda i, _: samples[i], range(12), 0)
        coming = batches(stream, positions(0, 9, 4), workers, pin_memory=False)
        first = next(coming)
        assert len(read) <= 4 * (workers + 1)
        for step, batch in enumerate([first, *coming]):
            assert torch.equal(batch, torch.stack([stream[4 * step + i] for i in range(4)]))
        assert step == 8

    def test_an_error_comes_where_its_batch_would_and_threads_end(self) -> None:
        before = set(threading.enumerate())
        samples = [torch.zeros(1)] * 6 + [torch.zeros(2)]
        coming = batches(Stream(lambda i, _: samples[i], range(7), 0), positions(0, 50, 7), 3, pin_memory=False)
        with pytest.raises(ValueError, match="must have one shape"):
            next(coming)
        assert set(threading.enumerate()) <= before

    def test_flips_follow_from_the_position(self, tmp_path: Path) -> None:
        stage = DistillStage(teacher(), photos(tmp_path / "photos", 4))
        stream = Stream(stage.draw, range(4), 0)
        flipped = 0
        for position in range(32):
            sample = stream[position]
            assert torch.equal(sample, stream[position])
            originals = [stage.samples[i] for i in range(4)]
            (match,) = [o for o in originals if torch.equal(sample, o) or torch.equal(sample, o.flip(-1))]
            flipped += not torch.equal(sample, match)
        assert 8 <= flipped <= 24

    def test_split(self) -> None:
        trained, held_out = split(list(range(100)), None, seed=0)
        assert len(held_out) == 5
        assert sorted(trained + held_out) == list(range(100))
        assert split(list(range(100)), None, seed=1)[1] != held_out
        assert len(split(list(range(9999)), None, seed=0)[1]) == 64
        with pytest.raises(ValueError, match="3 samples are too few to hold 3 out"):
            split(list(range(3)), 3, seed=0)

    def test_online_pairs_are_those_of_a_store(self, tmp_path: Path) -> None:
        paths = photos(tmp_path / "photos", 3)
        raw, clean = OnlinePairs(paths, fitter())[1]
        solution = fitter()(Image.open(paths[1]))
        assert torch.equal(raw, solution.raw)
        assert torch.equal(clean, solution.semantics)

    def test_nothing_is_solved_before_the_first_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def solved(*_: Any) -> None:
            raise AssertionError("for a shape")

        fit = fitter(keep_aspect=True)
        monkeypatch.setattr(fit, "with_pairs", solved)
        pairs = OnlinePairs(photos(tmp_path / "photos", 3), fit)
        assert pairs.shape == (4, 5, 64)
        assert DenoiserStage(pairs, TINY).module.grid_size == (4, 5)

    def test_view_pairs_online_are_those_of_a_store(self, tmp_path: Path) -> None:
        paths, fit = photos(tmp_path / "photos", 2), fitter(view_pairs=2)
        fit_store(fit, paths, tmp_path / "store")
        store, online = open_store(tmp_path / "store"), OnlinePairs(paths, fit)
        for k in range(3):
            assert equal(*(dict(zip("ab", pairs.pair(1, k), strict=True)) for pairs in (store, online)))
        for pairs in (store, online):
            for k in (-1, 3):
                with pytest.raises(IndexError, match=rf"pair must be 0\.\.2, got {k}; fit with a larger view_pairs"):
                    pairs.pair(1, k)

    def test_one_thread_reads_where_the_cpu_trains(self, tmp_path: Path) -> None:
        fit_store(fitter(), photos(tmp_path / "photos", 4), tmp_path / "store")
        config = replace(SHORT, workers=None)
        trainer = Trainer(
            DenoiserStage(open_store(tmp_path / "store"), TINY), config, tmp_path, make_accelerator(config, "cpu")
        )
        draw, readers = trainer.stream.draw, set()

        def noted(*arguments: Any) -> Any:
            readers.add(threading.get_ident())
            time.sleep(0.01)  # long enough for others to take part
            return draw(*arguments)

        trainer.stream.draw = noted
        trainer.train()
        assert len(readers) == 1
        assert threading.get_ident() not in readers

    def test_all_pairs_of_an_image_are_drawn_and_whole_ones_held_out(self, tmp_path: Path) -> None:
        fit_store(fitter(view_pairs=2), photos(tmp_path / "photos", 4), tmp_path / "store")
        store = open_store(tmp_path / "store")
        trainer = Trainer(DenoiserStage(store, TINY), SHORT, tmp_path, make_accelerator(SHORT, "cpu"))
        drawn = [trainer.stream[position][0] for position in range(60)]
        assert all(torch.equal(drawn[i], trainer.stream[i][0]) for i in range(60))
        for i in trainer.stream.indices:
            for k in range(store.num_pairs):
                assert 1 <= sum(torch.equal(raw, store.pair(i, k)[0]) for raw in drawn) <= 20
        for i, unseen in zip(trainer.held_out, trainer.unseen(), strict=True):
            assert torch.equal(unseen.raw[0], store.raw(i))

    def test_shapes_of_a_batch(self) -> None:
        with pytest.raises(ValueError, match="must have one shape"):
            collate([torch.zeros(2, 3), torch.zeros(3, 2)])


class TestResults:
    def test_a_head_that_learns(self, store: FeatureStore, tmp_path: Path) -> None:
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

    def test_all_samples_are_trained_on_where_others_validate(self, store: FeatureStore, tmp_path: Path) -> None:
        validation = store_of(tmp_path / "validation", planted(3))
        (tmp_path / "run").mkdir()
        trainer = Trainer(
            DenoiserStage(store, TINY, validation=validation), SHORT, tmp_path / "run", make_accelerator(SHORT)
        )
        assert len(trainer.stream.indices) == len(store)
        for batch, (raw, clean) in zip(trainer.unseen(), validation, strict=True):
            assert torch.equal(batch.raw[0], raw)
            assert torch.equal(batch.target[0], clean)

    def test_from_the_weights_of_a_head(self, store: FeatureStore, tmp_path: Path) -> None:
        initial = random_head(DIM, (5, 3))
        before = {name: value.clone() for name, value in initial.state_dict().items()}
        config = replace(SHORT, steps=1, lr=1e-9)
        train_denoiser(store, TINY, tmp_path / "run", config, initial=initial)
        trained = dvt_timm.load_head(tmp_path / "run/last")
        assert trained.grid_size == (5, 3)
        for name, value in trained.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-7)
        train_denoiser(store, TINY, tmp_path / "on", SHORT, initial=initial)
        assert not same_weights(dvt_timm.load_head(tmp_path / "on/last"), initial)
        assert equal(initial.state_dict(), before)
        with pytest.raises(RunError, match="initial_head_sha256"):
            train_denoiser(store, TINY, tmp_path / "on", SHORT, initial=random_head(DIM, (5, 3), seed=2))

    def test_pictures_of_the_same_images(self, tmp_path: Path) -> None:
        paths = photos(tmp_path / "photos", 6)
        run = tmp_path / "run"
        distill(teacher(), paths, run, SHORT)
        assert sorted(path.name for path in (run / "pictures").iterdir()) == ["000004-0.png", "000006-0.png"]

    def test_pictures_of_images_of_one_long_name(self, tmp_path: Path) -> None:
        """In two folders, and with a name that leaves no room for anything before it."""
        paths = []
        for folder in ("a", "b"):
            (path,) = photos(tmp_path / folder, 1, first=len(paths))
            paths.append(path.rename(path.with_name("n" * 245 + ".png")))
        distill(teacher(), [*paths, *photos(tmp_path / "c", 4, first=2)], tmp_path / "run", replace(SHORT, held_out=5))
        assert len(list((tmp_path / "run/pictures").iterdir())) == 2 * 4

    def test_a_teacher_may_be_frozen_and_teaches_again(self, tmp_path: Path) -> None:
        model, paths = teacher(), photos(tmp_path / "photos", 6)
        model.requires_grad_(False)
        model.denoiser.requires_grad_(True)
        for run in ("one", "two"):
            distill(model, paths, tmp_path / run, SHORT)
            student = timm.create_model(f"local-dir:{tmp_path / run}", pretrained=True)
            assert not torch.equal(student.patch_embed.proj.weight, model.patch_embed.proj.weight)
        assert all(parameter.requires_grad for parameter in model.denoiser.parameters())

    @pytest.mark.parametrize(("size", "pixels"), [(None, 48), (60, 64), (50, 48), (3, 16)])
    def test_images_have_whole_patches(self, size: int | None, pixels: int, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = timm.create_model(TINY, img_size=50, dynamic_img_size=True, denoiser={"grid_size": [3, 3]}).eval()
        stage = DistillStage(model, photos(tmp_path / "photos", 1), size=size)
        assert stage.samples[0].shape == (3, pixels, pixels)

    def test_a_teacher_of_one_size(self, tmp_path: Path) -> None:
        model = timm.create_model(TINY, img_size=64, dynamic_img_size=False, denoiser={"grid_size": [4, 4]}).eval()
        with pytest.raises(ValueError, match="images of 32 x 32 pixels do not fit a model built for 64 x 64"):
            DistillStage(model, [], size=32)

    def test_the_base_of_a_teacher(self, tmp_path: Path) -> None:
        model = teacher()
        for given in (None, "vit_tiny_patch16_224"):  # its own name is known
            assert DistillStage(model, [], base=given).base == TINY
        model.pretrained_cfg = {**model.pretrained_cfg, "tag": "dvt_mine"}
        with pytest.raises(ValueError, match=r"teacher's backbone: timm knows no model 'test_vit.dvt_mine'"):
            DistillStage(model, [])
        with pytest.raises(ValueError, match=r"the teacher is a test_vit, its base cannot be vit_tiny_patch16_224\."):
            DistillStage(model, [], base="vit_tiny_patch16_224")
        stage = DistillStage(model, [], base="test_vit")
        assert stage.base == TINY
        assert stage.module.vit.pretrained_cfg["tag"] == "r160_in1k_distilled"

    @pytest.mark.slow
    def test_what_stage_3_leaves_is_plain_timm(self, tmp_path: Path) -> None:
        """Built by a process that does not know this package; its features have come closer to the teacher's."""
        paths, model, run = photos(tmp_path / "photos", 8), teacher(), tmp_path / "run"
        config = TrainConfig(steps=40, batch_size=4, lr=1e-3, workers=0, held_out=2, eval_every=20)
        distill(model, paths, run, config)
        (metrics,) = json.loads((run / "metrics.json").read_text()).values()
        assert metrics["error"] < 0.7 * metrics["error, raw features"]
        code = (
            f"import timm, torch; model = timm.create_model('local-dir:{run}', pretrained=True).eval();"
            "print(type(model).__name__, float(model.forward_features(torch.ones(1, 3, 64, 64)).double().sum()))"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        ours = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
        assert output[0] == type(ours).__name__ == "VisionTransformer"
        expected = float(ours.forward_features(torch.ones(1, 3, 64, 64)).detach().double().sum())
        assert float(output[1]) == pytest.approx(expected, rel=1e-5)
        for name, parameter in ours.named_parameters():
            assert torch.equal(parameter, model.state_dict()[name]) == name.startswith(("head.", "fc_norm.")), name
        assert ours.pretrained_cfg["tag"] == "r160_in1k_distilled"

    def test_the_same_again_does_nothing(self, store: FeatureStore, tmp_path: Path) -> None:
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


class TestResuming:
    def test_a_signal_writes_the_checkpoint(self, store: FeatureStore, tmp_path: Path) -> None:
        run, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
        with pytest.raises(RunInterruptedError, match="interrupted after step 3 of 6"):
            train_denoiser(InterruptingStore(store, after=3 * 4), TINY, run, SHORT)
        assert torch.load(run / CHECKPOINT, weights_only=True)["step"] == 3
        assert signal.getsignal(signal.SIGINT) is before
        train_denoiser(store, TINY, run, SHORT)
        train_denoiser(store, TINY, tmp_path / "whole", SHORT)
        assert equal(weights(run), weights(tmp_path / "whole"))
        assert same_weights(dvt_timm.load_head(run), dvt_timm.load_head(tmp_path / "whole"))

    def test_the_log_goes_on_from_the_checkpoint(self, store: FeatureStore, tmp_path: Path) -> None:
        run = tmp_path / "run"
        with pytest.raises(RunInterruptedError):
            train_denoiser(InterruptingStore(store, after=3 * 4), TINY, run, SHORT)
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 5, "group": "train", "loss": 1.0}\n{"step": 6, "gro')
        train_denoiser(store, TINY, run, SHORT)
        assert [(line["step"], line["group"]) for line in read_log(run)] == [
            (2, "train"), (3, "train"), (4, "train"), (4, "held out"), (6, "train"), (6, "held out")
        ]  # fmt: skip

    @pytest.mark.slow
    @pytest.mark.parametrize("stage", ["train", "distill"])
    def test_killed_again_and_again(self, stage: str, tmp_path: Path) -> None:
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

    def test_numbers_that_may_change_and_numbers_that_may_not(self, store: FeatureStore, tmp_path: Path) -> None:
        train_denoiser(store, TINY, tmp_path / "run", SHORT)
        train_denoiser(store, TINY, tmp_path / "run", replace(SHORT, eval_every=3, checkpoint_every=1))
        with pytest.raises(RunError, match="was made with other settings: seed is 0, not 1"):
            train_denoiser(store, TINY, tmp_path / "run", replace(SHORT, seed=1))
        other = store_of(tmp_path / "other", planted(11))
        with pytest.raises(RunError, match="images is"):
            train_denoiser(other, TINY, tmp_path / "run", SHORT)

    def test_other_features_of_the_same_images_are_refused(self, store: FeatureStore, tmp_path: Path) -> None:
        train_denoiser(store, TINY, tmp_path / "run", SHORT)
        crops = store_of(tmp_path / "crops", planted(12), views=settings_of(fitter(kind="crops"), half=False)["views"])
        with pytest.raises(RunError, match=r"features\.views\.kind is 'jitter', not 'crops'"):
            train_denoiser(crops, TINY, tmp_path / "run", SHORT)
        paths = photos(tmp_path / "photos", 6)
        train_denoiser(OnlinePairs(paths, fitter()), TINY, tmp_path / "online", SHORT)
        with pytest.raises(RunError, match=r"features\.views\.num_views is 3, not 4"):
            train_denoiser(OnlinePairs(paths, fitter(num_views=4)), TINY, tmp_path / "online", SHORT)

    def test_other_features_to_validate_on_are_refused(self, store: FeatureStore, tmp_path: Path) -> None:
        train_denoiser(store, TINY, tmp_path / "run", SHORT, validation=store_of(tmp_path / "v", planted(3)))
        other = store_of(tmp_path / "w", planted(3), views={**store.settings["views"], "kind": "crops"})
        with pytest.raises(RunError, match=r"validation\.features\.views\.kind is 'jitter', not 'crops'"):
            train_denoiser(store, TINY, tmp_path / "run", SHORT, validation=other)

    def test_what_a_killed_run_left_half_written_is_removed(self, store: FeatureStore, tmp_path: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        (run / ".0123abcd.train.json").write_bytes(b"half")
        train_denoiser(store, TINY, run, SHORT)
        for name in (".0123abcd.checkpoint.pt", ".0123abcd.model.safetensors", ".0123abcd.mine"):
            (run / name).write_bytes(b"half")
        train_denoiser(store, TINY, run, SHORT)
        assert [path.name for path in run.glob(".0123abcd*")] == [".0123abcd.mine"]

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
    def test_a_damaged_checkpoint(self, content: bytes, store: FeatureStore, tmp_path: Path) -> None:
        train_denoiser(store, TINY, tmp_path / "run", SHORT)
        (tmp_path / "run" / CHECKPOINT).write_bytes(content)
        with pytest.raises(RunError, match=r"checkpoint.pt is damaged .*remove it to begin anew"):
            train_denoiser(store, TINY, tmp_path / "run", SHORT)

    def test_a_checkpoint_that_would_run_code(self, store: FeatureStore, tmp_path: Path) -> None:
        train_denoiser(store, TINY, tmp_path / "run", SHORT)
        torch.save({"step": Trap()}, tmp_path / "run" / CHECKPOINT)
        with pytest.raises(RunError, match="is damaged"):
            train_denoiser(store, TINY, tmp_path / "run", SHORT)

    def test_a_checkpoint_of_another_head(self, store: FeatureStore, tmp_path: Path) -> None:
        train_denoiser(store, TINY, tmp_path / "run", SHORT)
        train_denoiser(store, TINY, tmp_path / "two", SHORT, num_blocks=2)
        (tmp_path / "two" / CHECKPOINT).replace(tmp_path / "run" / CHECKPOINT)
        with pytest.raises(RunError, match="does not fit this run"):
            train_denoiser(store, TINY, tmp_path / "run", SHORT)


class Trap:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


class InterruptingStore(FeatureStore):
    """Sends Ctrl-C while a pair is read."""

    def __init__(self, store: FeatureStore, after: int) -> None:
        super().__init__(store.folder, store.settings, store.entries)
        self.left = after

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(i)


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
        distill(teacher(), photos(folder / "photos", 8), folder / run, config)


class TestErrors:
    def test_stores_that_do_not_fit(self, tmp_path: Path) -> None:
        empty = store_of(tmp_path / "empty", [])
        with pytest.raises(ValueError, match="there is no image to train on"):
            train_denoiser(empty, TINY, tmp_path / "run", SHORT)
        other = store_of(tmp_path / "other", planted(4), model="vit_small_patch14_dinov2.lvd142m")
        with pytest.raises(ValueError, match=r"features of vit_small_patch14_dinov2.lvd142m, not of test_vit"):
            train_denoiser(other, TINY, tmp_path / "run", SHORT)
        with pytest.raises(ValueError, match=r"64 channels wide, vit_small_patch14_dinov2.lvd142m has 384"):
            train_denoiser(other, "vit_small_patch14_dinov2.lvd142m", tmp_path / "run", SHORT)
        online = OnlinePairs(photos(tmp_path / "photos", 3), fitter(layer=1))
        with pytest.raises(ValueError, match="features of block 1"):
            train_denoiser(online, TINY, tmp_path / "run", SHORT)
        early = store_of(tmp_path / "early", planted(4), views={"layer": 1})
        with pytest.raises(ValueError, match="features of block 1, and a head denoises the last one's"):
            train_denoiser(early, TINY, tmp_path / "run", SHORT)
        with pytest.raises(ValueError, match="features of block 1, and a head denoises the last one's"):
            train_denoiser(store_of(tmp_path / "good", planted(4)), TINY, tmp_path / "run", SHORT, validation=early)
        with pytest.raises(ValueError, match="timm knows no model"):
            train_denoiser(early, "nothing", tmp_path / "run", SHORT)
        for key, value in (("weights_sha256", "0" * 64), ("stride", [8, 8])):
            changed = store_of(tmp_path / key, planted(4), **{key: value})
            with pytest.raises(ValueError, match=f"{key} of the validation features is"):
                train_denoiser(store_of(tmp_path / "good", []), TINY, tmp_path / "run", SHORT, validation=changed)
        assert not (tmp_path / "run").exists()

    def test_an_initial_head_of_another_width(self, store: FeatureStore, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"the initial head is 128 channels wide, .* has 64"):
            train_denoiser(store, TINY, tmp_path / "run", SHORT, initial=random_head(128))

    def test_a_shard_that_is_gone(self, store: FeatureStore, tmp_path: Path) -> None:
        stage = DenoiserStage(store, TINY)
        for shard in store.folder.glob("shard-*"):
            shard.unlink()
        assert stage.module.dim == DIM
        with pytest.raises(ValueError, match=r"is gone; `fit_store` computes its images again"):
            train_denoiser(FeatureStore(store.folder, store.settings, store.entries), TINY, tmp_path / "run", SHORT)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_feature_that_is_missing_is_no_other_one(self, workers: int, tmp_path: Path) -> None:
        store = store_of(tmp_path / "store", planted(8) + planted(1, grid=(5, 4)))
        with pytest.raises(RunError, match=r"cannot read a sample: .*must have one shape"):
            train_denoiser(store, TINY, tmp_path / "run", replace(SHORT, workers=workers, seed=3))

    def test_images_that_are_none(self, tmp_path: Path) -> None:
        paths = photos(tmp_path / "photos", 6)
        for path in paths[2:]:
            path.write_bytes(b"no image")
        with pytest.raises(RunError, match=r"cannot read a sample: .*png: not a JPEG, PNG or WebP image"):
            distill(teacher(), paths, tmp_path / "run", SHORT)
        with pytest.raises(ImageError, match="not a JPEG"):
            train_denoiser(OnlinePairs(paths[2:], fitter()), TINY, tmp_path / "online", SHORT)

    def test_a_loss_that_is_not_finite(self, tmp_path: Path) -> None:
        pairs = planted(12)
        store, run = store_of(tmp_path / "store", pairs), tmp_path / "run"
        train_denoiser(store, TINY, run, SHORT)
        before = (run / CHECKPOINT).read_bytes()
        pairs[3][1][0, 0, 0] = math.nan
        broken = store_of(tmp_path / "broken", pairs)
        with pytest.raises(RunError, match=r"loss is not finite at step \d+ or shortly before"):
            train_denoiser(broken, TINY, tmp_path / "nan", replace(SHORT, steps=40, checkpoint_every=1))
        state = torch.load(tmp_path / "nan" / CHECKPOINT, weights_only=True)
        assert all(bool(value.isfinite().all()) for value in state["module"].values())
        assert (run / CHECKPOINT).read_bytes() == before

    def test_weights_that_are_not_finite_are_not_kept(self, store: FeatureStore, tmp_path: Path) -> None:
        """The loss tells of them only a step later."""
        trainer = Trainer(DenoiserStage(store, TINY), SHORT, tmp_path, make_accelerator(SHORT, "cpu"))
        with torch.no_grad():
            trainer.module.pos_embed[0, 0, 0] = math.inf
        with pytest.raises(RunError, match="weights are not finite after step 0; what was written before is intact"):
            trainer._write_checkpoint()
        assert not (tmp_path / CHECKPOINT).exists()

    def test_a_picture_that_is_no_image_any_more(self, tmp_path: Path) -> None:
        store = store_of(tmp_path / "store", planted(8))
        for i in range(8):
            (tmp_path / f"{i}.png").write_bytes(b"no image")
        entries = [replace(entry, image=str(tmp_path / entry.image)) for entry in store.entries]
        train_denoiser(FeatureStore(store.folder, store.settings, entries), TINY, tmp_path / "run", SHORT)
        assert not (tmp_path / "run/pictures").exists()

    def test_a_full_disk(self, store: FeatureStore, tmp_path: Path) -> None:
        run, config = tmp_path / "run", replace(SHORT, steps=20)
        with pytest.raises(RunInterruptedError):
            train_denoiser(InterruptingStore(store, after=3 * 4), TINY, run, config)
        before = (run / CHECKPOINT).read_bytes()
        with (
            full_disk(100_000),
            pytest.raises(OSError, match=r"cannot write .*run/.*checkpoint and best weights are kept"),
        ):
            train_denoiser(store, TINY, run, config)
        assert (run / CHECKPOINT).read_bytes() == before
        assert not list(run.glob(".*.checkpoint.pt"))
        train_denoiser(store, TINY, run, config)
        train_denoiser(store, TINY, tmp_path / "whole", config)
        assert equal(weights(run), weights(tmp_path / "whole"))

    def test_a_folder_of_other_things_is_not_written_into(self, store: FeatureStore, tmp_path: Path) -> None:
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

    def test_a_folder_in_use(self, store: FeatureStore, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        with FileLock(tmp_path / "run/.lock"), pytest.raises(BlockingIOError, match="another run is writing"):
            train_denoiser(store, TINY, tmp_path / "run", SHORT)

    @pytest.mark.parametrize(
        ("numbers", "text"),
        [
            ({"steps": 0}, "steps must be at least 1"),
            ({"batch_size": 5, "accumulation": 2}, "must be a multiple of accumulation 2"),
            ({"lr": 0.0}, "lr must be positive"),
            ({"lr": math.nan}, "lr must be positive"),
            ({"warmup": 1.0}, "0 <= warmup < 1"),
            ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
            ({"precision": "int8"}, "precision must be one of"),
            ({"workers": -1}, "workers must be at least 0"),
            ({"held_out": 0}, "held_out must be at least 1"),
        ],
    )
    def test_numbers_out_of_range(self, numbers: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            TrainConfig(**numbers)
