"""Runs of stages 2 and 3: a folder that is taken up where it was left, and holds the result at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._util.files import CONFIG_NAME, LAST, METRICS, VERDICT, alone_in, read_json, write_json, write_text
from .._util.team import WAITING, Team
from ..cleaned import Cleaned
from ..evaluate.report import Report
from ..offline import FeatureStore
from ..projection import RANK, Moments, PositionProjection
from ..publish.card import eval_results, render_card
from .config import TrainConfig
from .data import Images, OnlinePairs
from .denoiser import DenoiserStage
from .distill import DistillStage
from .evaluation import evaluate, left_out
from .loop import Skipped, Trainer
from .record import SETTINGS, begun_with, check_begun_with, record
from .stage import Stage
from .verdict import TRAINED, judge, sentences

CARD = "README.md"
OWN_FILES = (
    r"checkpoint\.pt|(model|artifact)\.safetensors|(config|train|images|metrics|verdict)\.json|log\.jsonl|README\.md"
)
MOST_PROJECTED = 100  # training images that the projection is found on
DIGITS = 4  # of a metric, behind the point
FREE = ("workers", "eval_every", "checkpoint_every", "most_passes")  # numbers that may change when a run is taken up


def make_accelerator(config: TrainConfig, device: str | None = None) -> Any:
    """Set up the devices, the precision and the processes of a run.

    Args:
        config: the run's numbers.
        device: "cpu" keeps the run off the GPUs.

    Raises:
        ImportError: if accelerate is not installed.
        ValueError: if the precision is not to be had.
    """
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise ImportError("training needs accelerate; pip install 'dvt-timm[train]'") from error
    cpu = device == "cpu" or not torch.accelerator.is_available()
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulation,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAITING)],  # others wait for the process that evaluates
        )
    except ValueError as error:
        raise ValueError(f"cannot train in precision {config.precision!r} here: {error}; pass 'no'") from error


def train_denoiser(
    samples: FeatureStore | OnlinePairs,
    base: str,
    run: str | PathLike[str],
    config: TrainConfig,
    *,
    accelerator: Any = None,
    progress: bool = False,
    skipped: Skipped | None = None,
    **options: Any,
) -> Report | None:
    """Train a head (stage 2), and write it to a folder as `save_head` does, with a card and metrics.

    Args:
        samples: an open store, or pairs solved on the fly.
        base: timm name of the backbone whose features they are.
        run: the folder; one of the same settings is taken up where it was left.
        config: the numbers.
        accelerator: `make_accelerator(config)` by default.
        progress: whether to show a bar.
        skipped: called with the reason, one line, for each image that cannot be read; others take its place.
        options: further arguments of `DenoiserStage`.

    Returns:
        The verdict on held-out images: raw features, what was trained, and a `PositionProjection` side by side; it is
        in the folder's verdict.json and card too. None in processes other than the first.

    Raises:
        ValueError: if samples and base do not go together, there are too few samples, or the numbers do not fit.
        ImageError: if none of the images of pairs solved on the fly can be read.
        RunError: if the folder holds other things or a run of other settings or images, its checkpoint is damaged, a
            sample of a store cannot be read or none of a hundred images, or the loss is not finite; the last checkpoint
            is intact.
        BlockingIOError: if another run is writing to the folder.
        OSError: if it cannot be written; the last checkpoint is intact.
        RunInterruptedError: on SIGINT or SIGTERM, once the checkpoint is written.
    """
    accelerator = accelerator or make_accelerator(config)
    stage = DenoiserStage(samples, base, seed=config.seed, **options)

    def calibrate() -> None:
        if isinstance(samples, OnlinePairs):
            samples.prepare(Path(run), Team(accelerator.device.type), progress and accelerator.is_main_process)

    return _run(stage, Path(run), config, accelerator, progress, skipped, calibrate)


def distill(
    teacher: Cleaned,
    images: Sequence[str | PathLike[str]],
    run: str | PathLike[str],
    config: TrainConfig,
    *,
    accelerator: Any = None,
    progress: bool = False,
    skipped: Skipped | None = None,
    **options: Any,
) -> Report | None:
    """Train a plain ViT (stage 3) to give a denoised one's features, and write it to a folder as `save_model` does.

    Args:
        teacher: a denoised model with its weights.
        images: files.
        run: the folder; one of the same settings is taken up where it was left.
        config: the numbers.
        accelerator: `make_accelerator(config)` by default.
        progress: whether to show a bar.
        skipped: as `train_denoiser` takes it.
        options: further arguments of `DistillStage`.

    Returns:
        What `train_denoiser` returns.

    Raises:
        What `train_denoiser` raises, and for the same reasons.
    """
    accelerator = accelerator or make_accelerator(config)
    stage = DistillStage(teacher, images, device=accelerator.device, **options)
    return _run(stage, Path(run), config, accelerator, progress, skipped)


def _run(
    stage: Stage,
    run: Path,
    config: TrainConfig,
    accelerator: Any,
    progress: bool,
    skipped: Skipped | None,
    prepare: Callable[[], None] = lambda: None,
) -> Report | None:
    """Train in a folder that is held meanwhile; `prepare` is called once it is."""
    if isinstance(stage.samples, OnlinePairs | Images):
        stage.samples.paths = begun_with(run, stage.samples.paths)
    check_begun_with(run, stage)
    with ExitStack() as stack:
        if accelerator.is_main_process:
            numbers = {key: value for key, value in asdict(config).items() if key not in FREE}
            settings = {"version": 1, **stage.settings, **numbers}
            kept = "its checkpoint and best weights"
            stack.enter_context(alone_in(run, SETTINGS, settings, own_files=OWN_FILES, kept=kept))
            record(run, stage)
        accelerator.wait_for_everyone()
        prepare()
        trainer = Trainer(stage, config, run, accelerator, progress and accelerator.is_main_process, skipped)
        trainer.train()
        report = _finish(trainer) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    return report


def _finish(trainer: Trainer) -> Report:
    """Write the last weights beside the best ones, metrics, the verdict and a card."""
    run, stage = trainer.run, trainer.stage
    trainer.unseen()  # leaves out what cannot be read
    stage.save(trainer.module, run / LAST)
    results, count = _results(trainer), len(trainer.held_out)
    metrics = {f"held-out images ({count})": results}
    write_json(run / METRICS, metrics)
    report = replace(_verdict(trainer), skipped=dict(trainer.skipped))
    said = [*sentences(report), *left_out(results, count)]
    write_json(run / VERDICT, {**report.as_json(), "sentences": said, "worse": report.is_worse(TRAINED)})
    config = {**read_json(run / CONFIG_NAME), "base": stage.base}
    card = render_card(config, f"local-dir:{run}", eval_results(metrics), verdict=said)
    write_text(run / CARD, str(card))
    return report


def _verdict(trainer: Trainer) -> Report:
    """Judge the best weights, as they were written."""
    best = trainer.stage.load(trainer.run).to(trainer.accelerator.device).eval()
    pairs = trainer.unseen()
    raw, target = [pair.raw[0].float() for pair in pairs], [pair.target[0].float() for pair in pairs]
    settings = {"base": trainer.stage.base, "step": trainer.best["step"]}
    return judge(raw, trainer.predicted(best), target, _projection(trainer), settings, trainer.names())


def _projection(trainer: Trainer) -> PositionProjection | None:
    """Find the baseline on images that were trained on; None if none of them can be read any more."""
    moments = Moments()
    for i in trainer.trained[:: max(len(trainer.trained) // MOST_PROJECTED, 1)][:MOST_PROJECTED]:
        try:
            moments.add(trainer.stage.raw(i))
        except (ValueError, OSError):  # it was read before; the run has done its work
            continue
    try:
        return PositionProjection.of(moments, min(RANK, len(moments.mean) // 2))
    except ValueError:
        return None


def _results(trainer: Trainer) -> dict[str, float]:
    """Give the best weights' scores on the held-out samples, and those of the features without a denoiser.

    A checkpoint of version 0.1 may hold scores that are not finite; they are left out, as they are now.
    """
    pairs = trainer.unseen()
    before = evaluate([pair.raw[0] for pair in pairs], [pair.target[0] for pair in pairs])
    scores = {name: score for name, score in trainer.best.items() if name != "step"}
    scores |= {f"{name}, raw features": score for name, score in before.items()}
    return {name: round(score, DIGITS) for name, score in scores.items() if math.isfinite(score)}
