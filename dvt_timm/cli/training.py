"""What `train` and `distill` share: the folder of a run, its numbers, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import CommandError, finite, positive, report, whole

if TYPE_CHECKING:
    from ..evaluate.report import Report
    from ..train import TrainConfig
    from ..train.config import Preset


def add_options(parser: argparse.ArgumentParser, presets: tuple[str, ...]) -> None:
    """Add the folder and the numbers of a run; those that are not given are the preset's."""
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder to write to")
    parser.add_argument("--device", choices=("cpu",), help="cpu keeps off the GPUs")
    parser.add_argument(
        "--preset", choices=presets, default=presets[0], help="a recipe for the numbers below (default: %(default)s)"
    )
    numbers = parser.add_argument_group("numbers")
    numbers.add_argument("--steps", type=positive, metavar="N", help="updates of the weights (default: the preset's)")
    numbers.add_argument(
        "--most-passes",
        type=finite,
        metavar="X",
        help="refuse to go more often through the pairs; presets take fewer steps then (default: 1,000)",
    )
    numbers.add_argument(
        "--batch-size", type=positive, metavar="N", help="samples of a step, over all processes (default: the preset's)"
    )
    numbers.add_argument("--accumulation", type=positive, metavar="N", help="batches that make up a step (default: 1)")
    numbers.add_argument(
        "--lr", type=finite, metavar="X", help="peak of the learning rate (default: 2e-4 * sqrt(batch size / 256))"
    )
    numbers.add_argument(
        "--warmup", type=finite, metavar="X", help="share of the steps over which the rate rises (default: 0.15)"
    )
    numbers.add_argument("--weight-decay", type=finite, metavar="X", help="of AdamW (default: 1e-5)")
    numbers.add_argument("--precision", choices=("no", "bf16", "fp16"), help="a type to mix with float32 (default: no)")
    numbers.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="of weights and order (default: %(default)s)"
    )
    numbers.add_argument(
        "--workers", type=whole, metavar="N", help="threads that read samples ahead (default: 4, on a CPU 1)"
    )
    numbers.add_argument(
        "--held-out", type=positive, metavar="N", help="samples kept from training (default: a twentieth, at most 64)"
    )
    numbers.add_argument("--eval-every", type=positive, metavar="N", help="steps between evaluations (default: 500)")
    numbers.add_argument(
        "--checkpoint-every", type=positive, metavar="N", help="steps between checkpoints (default: 100)"
    )


def begin(arguments: argparse.Namespace, preset: Preset, num_pairs: int) -> tuple[TrainConfig, Any]:
    """Make a run's numbers, and the accelerator that it runs on."""
    from ..train import make_accelerator

    config = config_of(arguments, preset, num_pairs)
    return config, make_accelerator(config, arguments.device)


def config_of(arguments: argparse.Namespace, preset: Preset, num_pairs: int) -> TrainConfig:
    """Read a run's numbers from the options and the preset."""
    from dataclasses import fields

    from ..train import TrainConfig

    names = (field.name for field in fields(TrainConfig))
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return preset.config(num_pairs, **given)


@contextmanager
def explained() -> Iterator[None]:
    """Give an interruption its exit status, and a lack of memory a way out."""
    import torch

    from ..train import RunInterruptedError

    try:
        yield
    except RunInterruptedError as error:
        raise CommandError(f"{str(error).partition(';')[0]}; run the same again to go on", status=130) from error
    except torch.OutOfMemoryError as error:
        raise CommandError(
            f"{error}; raise --accumulation, the parts that a batch goes through in, lower --batch-size, or pass "
            "distill's --grad-checkpointing"
        ) from error


def say_result(run: Path, result: Report | None, use: str, missing: int = 0) -> int:
    """Print, in the process that has the report, what came out, where the result is and how it is used.

    Returns:
        The exit status: 1 if inputs were `missing`, or images could not be read, 0 in processes without the report.
    """
    from ..train.verdict import sentences

    if result is None:
        return 0
    print("\n".join(sentences(result)))
    print(f"{run}: finished; {use}")
    skipped = len(result.skipped) + missing
    if skipped:
        print(f"dvt-timm: {skipped} inputs skipped", file=sys.stderr)
    return 1 if skipped else 0


def report_skipped(reason: str) -> None:
    """Report an image that cannot be read."""
    report(f"skipped {reason}")
