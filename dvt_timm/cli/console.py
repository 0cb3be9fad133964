"""What the sub-commands of `dvt-timm` share: types of arguments, and lines on the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .._util.files import CommandError


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def one_line(message: object) -> str:
    """Without line breaks."""
    return " ".join(str(message).split())


def report_skipped(reason: object) -> None:
    """On standard error, above a progress bar."""
    tqdm.write(f"dvt-timm: skipped {one_line(reason)}", file=sys.stderr)


def no_images(paths: list[Path]) -> CommandError:
    """The error where nothing is left to do."""
    given = ", ".join(str(path) for path in paths)
    return CommandError(f"no image in {given}; give JPEG, PNG or WebP files, or folders that hold some")


def add_model_arguments(parser: Any, default: str) -> None:
    """--model, --checkpoint and --device."""
    parser.add_argument("--model", default=default, metavar="NAME", help="timm name (default: %(default)s)")
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="a head (folder, file, hf-hub:user/repo), the model's weights (file), or the folder of a saved model, "
        "which takes the place of --model",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: the GPU if there is one)")


def quiet_hub() -> None:
    """No word of the Hub client's retries without a network: one line at the end says it."""
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
