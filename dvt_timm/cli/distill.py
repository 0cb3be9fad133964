"""`dvt-timm distill`: stage 3, a plain ViT that gives denoised features."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import training
from .console import CommandError, Commands, add_large_images, positive, quiet_hub

PRESETS = ("paper", "quick")


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "distill",
        help="train a plain ViT to give denoised features",
        description="Stage 3: the whole backbone learns what it gives with its head. RUN gets a plain timm model, "
        "for create_model('local-dir:RUN'). After an interruption, run the same again. Exit status 1 if an image had "
        "to be skipped. On several GPUs: accelerate launch -m dvt_timm distill ...",
    )
    parser.add_argument("--base", required=True, metavar="NAME", help="timm name of the backbone, or a denoised name")
    parser.add_argument("--denoiser", metavar="HEAD", help="folder, file or hf-hub:user/repo (default: the name's own)")
    parser.add_argument("--images", nargs="+", type=Path, required=True, metavar="IMAGES", help="files, folders, lists")
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="pixels of an image's sides, rounded to whole patches (default: the model's)",
    )
    parser.add_argument("--grad-checkpointing", action="store_true", help="less memory for more time")
    add_large_images(parser)
    training.add_options(parser, PRESETS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Distill a denoised model."""
    quiet_hub()
    with training.explained():
        return _distill(arguments)


def _distill(arguments: argparse.Namespace) -> int:
    import timm

    from ..train import distill
    from ..train.config import DISTILL_PRESETS
    from ..train.record import begun_with
    from .inputs import images_of
    from .models import load_model

    paths, missing = images_of(arguments.images, arguments.out)
    paths = begun_with(arguments.out, paths)
    config, accelerator = training.begin(arguments, DISTILL_PRESETS[arguments.preset], len(paths))
    teacher = load_model(arguments.base, arguments.denoiser, str(accelerator.device))
    if not hasattr(teacher, "denoiser"):
        raise CommandError(f"{arguments.base} has no denoiser to learn from; name a head as --denoiser")
    report = distill(
        teacher,
        paths,
        arguments.out,
        config,
        accelerator=accelerator,
        progress=True,
        skipped=training.report_skipped,
        base=arguments.base if timm.is_model(arguments.base) else None,
        size=arguments.size,
        grad_checkpointing=arguments.grad_checkpointing,
    )
    use = f"timm.create_model('local-dir:{arguments.out}', pretrained=True)"
    return training.say_result(arguments.out, report, use, missing)
