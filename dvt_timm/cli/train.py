"""`dvt-timm train` and `dvt-timm distil`: stages 2 and 3."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
import torch

from .._util.files import CommandError
from .._util.images import ImageError
from ..checkpoints.heads import load_head
from ..head import DenoiserHead
from ..offline import FeatureStore, open_store
from ..train import OnlinePairs, TrainConfig, distill, make_accelerator, train_denoiser
from ..train.config import DISTIL_PRESETS, TRAIN_PRESETS, Preset
from . import features as extract
from . import fit as fit_command
from .console import quiet_hub


def run_train(arguments: argparse.Namespace) -> int:
    """Train a head; the exit status."""
    quiet_hub()
    if arguments.online:
        return _explained(lambda: _train_online(arguments))
    return _explained(lambda: _train_on_store(arguments))


def run_distil(arguments: argparse.Namespace) -> int:
    """Distil a denoised model; the exit status."""
    quiet_hub()
    return _explained(lambda: _distil(arguments))


def _explained(train: Callable[[], None]) -> int:
    try:
        train()
    except (ImageError, ValueError) as error:
        raise CommandError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise CommandError(
            f"{error}; raise --accumulation, the parts that a batch goes through in, lower --batch-size, or pass "
            "distil's --grad-checkpointing"
        ) from error
    return 0


def _train_on_store(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.store)
    base = arguments.base or store.settings["model"]
    config = _config(arguments, TRAIN_PRESETS[arguments.preset], len(store))
    _train(store, base, config, make_accelerator(config, arguments.device), arguments)


def _train_online(arguments: argparse.Namespace) -> None:
    if arguments.base is None:
        raise CommandError("--online needs --base, the timm name of the backbone")
    paths = fit_command.images_of(arguments.online, arguments.out)
    config = _config(arguments, TRAIN_PRESETS[arguments.preset], len(paths))
    accelerator = make_accelerator(config, arguments.device)
    model = extract.load_model(arguments.base, None, str(accelerator.device))
    pairs = OnlinePairs(paths, fit_command.fitter_of(model, arguments, progress=False))
    _train(pairs, arguments.base, config, accelerator, arguments)


def _train(
    samples: FeatureStore | OnlinePairs,
    base: str,
    config: TrainConfig,
    accelerator: Any,
    arguments: argparse.Namespace,
) -> None:
    train_denoiser(
        samples,
        base,
        arguments.out,
        config,
        accelerator=accelerator,
        progress=True,
        validation=None if arguments.validation is None else open_store(arguments.validation),
        initial=_initial_head(arguments.initial_head),
        num_blocks=arguments.num_blocks,
    )
    weights = ", pretrained_cfg_overlay={'file': CHECKPOINT}" if "weights_file_sha256" in samples.settings else ""
    use = f"timm.create_model({base!r}, pretrained=True, denoiser={str(arguments.out)!r}{weights})"
    _say_result(arguments.out, accelerator, use)


def _initial_head(source: str | None) -> DenoiserHead | None:
    try:
        return None if source is None else load_head(source)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot load --initial-head {source}: {error}") from error


def _distil(arguments: argparse.Namespace) -> None:
    paths = fit_command.images_of(arguments.images, arguments.out)
    config = _config(arguments, DISTIL_PRESETS[arguments.preset], len(paths))
    accelerator = make_accelerator(config, arguments.device)
    teacher = extract.load_model(arguments.base, arguments.denoiser, str(accelerator.device))
    if not hasattr(teacher, "denoiser"):
        raise CommandError(f"{arguments.base} has no denoiser to learn from; name a head as --denoiser")
    distill(
        teacher,
        paths,
        arguments.out,
        config,
        accelerator=accelerator,
        progress=True,
        base=arguments.base if timm.is_model(arguments.base) else None,
        size=arguments.size,
        grad_checkpointing=arguments.grad_checkpointing,
    )
    _say_result(arguments.out, accelerator, f"timm.create_model('local-dir:{arguments.out}', pretrained=True)")


def _config(arguments: argparse.Namespace, preset: Preset, num_samples: int) -> TrainConfig:
    names = (field.name for field in fields(TrainConfig))
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return preset.config(num_samples, **given)


def _say_result(run: Path, accelerator: Any, use: str) -> None:
    if accelerator.is_main_process:
        print(f"{run}: finished; {use}")
