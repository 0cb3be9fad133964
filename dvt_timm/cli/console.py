"""What the commands share: types of arguments, lines on the terminal, tables. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Column: TypeAlias = tuple[str, str]  # title, format of a number; the format is empty for text

DEMO = "vit_small_patch14_dinov2.dvt_demo"  # needs no network


class CommandError(Exception):
    """Nothing can be done, or it was stopped; the text says why in one line, `status` is the exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model, --weights and --device, the arguments of `models.load_model`."""
    parser.add_argument("--model", default=DEMO, metavar="NAME", help="timm name (default: %(default)s)")
    parser.add_argument(
        "--weights",
        metavar="SOURCE",
        help="a head (folder, file, hf-hub:user/repo), the model's weights (file), or the folder of a saved model, "
        "which takes the place of --model",
    )
    parser.add_argument("--checkpoint", dest="weights", help=argparse.SUPPRESS)  # its name up to version 0.1
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: the GPU if there is one)")


def add_large_images(parser: argparse.ArgumentParser) -> None:
    """Add --large-images, which `reading` obeys."""
    parser.add_argument(
        "--large-images", action="store_true", help="read images of up to 537 megapixels (default: 179)"
    )


def reading(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """Let a command read large images if it may."""
    if not getattr(arguments, "large_images", False):
        return nullcontext()
    from .._util.images import large_images

    return large_images()


def one_line(message: object) -> str:
    """Join the lines of a text."""
    return " ".join(str(message).split())


def report(message: object) -> None:
    """Print a line on standard error, above a progress bar."""
    from tqdm import tqdm

    tqdm.write(f"dvt-timm: {one_line(message)}", file=sys.stderr)


def quiet_hub() -> None:
    """Let the Hub client say nothing of its retries without a network: one line at the end does."""
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()


def table(columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """Align rows under a header, numbers to the right.

    Args:
        columns: key of a row -> its column.
        rows: with these keys; None is shown as "-".
    """
    header = [title for title, _ in columns.values()]
    cells = [[cell(row[key], spec) for key, (_, spec) in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    aligns = [">" if spec else "<" for _, spec in columns.values()]
    lines = [zip(row, aligns, widths, strict=True) for row in [header, *cells]]
    return "\n".join("  ".join(f"{text:{align}{width}}" for text, align, width in line).rstrip() for line in lines)


def cell(value: Any, spec: str = "") -> str:
    """Write a value as a table shows it."""
    return "-" if value is None else format(value, spec)
