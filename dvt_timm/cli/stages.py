"""The arguments of the sub-commands of stages 1 to 3: `fit`, `train` and `distil`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._util.files import CommandError
from .console import add_model_arguments, positive

OF_STAGE_1 = (
    *("views", "view_pairs", "kind", "size", "keep_aspect", "layer", "edge_to_edge", "view_batch", "autocast"),
    *("solver", "smoothness", "density", "field_steps"),
)


def add_stages(commands: Any, demo: str) -> None:
    """Add the three; `demo` is the name of the model that needs no network."""
    _add_fit(commands, demo)
    _add_train(commands)
    _add_distil(commands)


def _add_fit(commands: Any, demo: str) -> None:
    parser = commands.add_parser(
        "fit",
        help="take the features of images apart: clean ones into a store, for training or as they are",
        description="Stage 1 of Denoising Vision Transformers, offline, for every image: raw and clean features into "
        "a store. After an interruption, run the same again. Exit status 1 if an image had to be skipped. On several "
        "GPUs: accelerate launch -m dvt_timm fit ...",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="IMAGE_FOLDER_OR_LIST",
        help="JPEG, PNG, WebP, folders, or .txt lists: a path a line, relative to the list",
    )
    add_model_arguments(parser, demo)
    parser.add_argument(
        "--out", type=Path, default=Path("dvt-store"), metavar="STORE", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--panel", action="store_true", help="draw each new decomposition into STORE/panels")
    parser.add_argument("--half", action="store_true", help="store float16 rather than float32")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the views (default: %(default)s)")
    _add_decomposition(parser)
    parser.set_defaults(run=_fit, expected=CommandError)


def _add_decomposition(parser: Any) -> None:
    """Views and solver: the options of `OF_STAGE_1`."""
    views = parser.add_argument_group("views")
    views.add_argument("--views", type=positive, metavar="N", help="besides the whole image (jitter 24, crops 768)")
    views.add_argument("--view-pairs", type=int, default=0, metavar="N", help="of them, to train on too (default: 0)")
    views.add_argument("--kind", choices=("jitter", "crops"), default="jitter", help="(default: %(default)s)")
    views.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="pixels of a view's sides, rounded to whole patches (default: the model's)",
    )
    views.add_argument(
        "--keep-aspect", action="store_true", help="do not squeeze images to a square; --size is the shorter side"
    )
    views.add_argument(
        "--layer", type=int, default=-1, metavar="I", help="block to read, through the final norm (default: the last)"
    )
    views.add_argument("--edge-to-edge", action="store_true", help="place patches as the released code does")
    views.add_argument(
        "--view-batch", type=positive, default=8, metavar="N", help="views at once (default: %(default)s)"
    )
    views.add_argument(
        "--autocast",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the forward passes (default: bfloat16 on CUDA, float32 elsewhere)",
    )
    solver = parser.add_argument_group("solver")
    solver.add_argument(
        "--solver", choices=("least-squares", "neural-field"), default="least-squares", help="(default: %(default)s)"
    )
    solver.add_argument("--smoothness", type=_smoothness, metavar="X", help="of the closed form: a number, or auto (1)")
    solver.add_argument(
        "--density", type=float, metavar="X", help="nodes per patch and direction of the closed form (2)"
    )
    solver.add_argument("--field-steps", type=positive, metavar="N", help="of the neural field (25,000)")


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a denoiser head",
        description="Stage 2: a head learns to predict clean features from raw ones. RUN gets what save_head writes, "
        "for denoiser=RUN and `dvt-timm push RUN user/repo`. After an interruption, run the same again. On several "
        "GPUs: accelerate launch -m dvt_timm train ...",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", type=Path, metavar="STORE", help="of `dvt-timm fit`")
    source.add_argument(
        "--online", nargs="+", type=Path, metavar="IMAGES", help="no store: decompose images each time they are needed"
    )
    parser.add_argument(
        "--validation", type=Path, metavar="STORE", help="measure on these pairs, rather than hold some out"
    )
    parser.add_argument("--base", metavar="NAME", help="timm name of the backbone (default: the store's)")
    parser.add_argument(
        "--initial-head", metavar="HEAD", help="go on from its weights: folder, file or hf-hub:user/repo (default: new)"
    )
    parser.add_argument("--num-blocks", type=positive, default=1, metavar="N", help="of a new head (default: 1)")
    _add_run(parser, ("released", "paper", "quick"))
    _add_decomposition(parser)
    parser.set_defaults(run=lambda arguments: _train(parser, arguments), expected=CommandError)


def _add_distil(commands: Any) -> None:
    parser = commands.add_parser(
        "distil",
        help="train a plain ViT to give denoised features",
        description="Stage 3: the whole backbone learns what it gives with its head. RUN gets a plain timm checkpoint, "
        "for create_model('local-dir:RUN'). After an interruption, run the same again. On several GPUs: accelerate "
        "launch -m dvt_timm distil ...",
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
    _add_run(parser, ("paper", "quick"))
    parser.set_defaults(run=_distil, expected=CommandError)


def _add_run(parser: Any, presets: tuple[str, ...]) -> None:
    """What stages 2 and 3 share: the folder of the run, and its numbers; those not given are the preset's."""
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder to write to")
    parser.add_argument("--device", choices=("cpu",), help="cpu keeps off the GPUs")
    parser.add_argument("--preset", choices=presets, default=presets[0], help="(default: %(default)s)")
    numbers = parser.add_argument_group("numbers")
    numbers.add_argument("--steps", type=positive, metavar="N", help="updates of the weights")
    numbers.add_argument("--batch-size", type=positive, metavar="N", help="of a step, over all processes")
    numbers.add_argument("--accumulation", type=positive, metavar="N", help="batches that make up a step (default: 1)")
    numbers.add_argument("--lr", type=float, metavar="X", help="peak (default: 2e-4 * sqrt(batch size / 256))")
    numbers.add_argument("--warmup", type=float, metavar="X", help="share of the steps (default: 0.15)")
    numbers.add_argument("--weight-decay", type=float, metavar="X", help="(default: 1e-5)")
    numbers.add_argument("--precision", choices=("no", "bf16", "fp16"), help="mixed with float32 (default: no)")
    numbers.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    numbers.add_argument(
        "--workers", type=int, metavar="N", help="threads that read samples ahead (default: 4, on a CPU 1)"
    )
    numbers.add_argument("--held-out", type=positive, metavar="N", help="samples (default: a twentieth, at most 64)")
    numbers.add_argument("--eval-every", type=positive, metavar="N", help="steps (default: 500)")
    numbers.add_argument("--checkpoint-every", type=positive, metavar="N", help="steps (default: 100)")


def _smoothness(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from error


def _fit(arguments: argparse.Namespace) -> int:
    from . import fit as fit_command

    return fit_command.run(arguments)


def _train(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from . import train as train_command

    given = [name for name in OF_STAGE_1 if getattr(arguments, name) != parser.get_default(name)]
    if arguments.store and given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise CommandError(f"{options} would not matter: a store has its features; give them to `dvt-timm fit`")
    if arguments.validation and arguments.held_out:
        raise CommandError("--validation takes the place of --held-out; leave one of them out")
    if arguments.initial_head and arguments.num_blocks != parser.get_default("num_blocks"):
        raise CommandError("--num-blocks is of a new head, and --initial-head has its own; leave one of them out")
    return train_command.run_train(arguments)


def _distil(arguments: argparse.Namespace) -> int:
    from . import train as train_command

    return train_command.run_distil(arguments)
