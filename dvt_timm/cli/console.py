"""What the commands share: types of arguments, lines on the terminal, tables. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Column: TypeAlias = tuple[str, str]  # title, format of a number; the format is empty for text

MOST = 2**31 - 1  # of a whole number: what libraries in C take
DEMO = "vit_small_patch14_dinov2.dvt_demo"  # needs no network


class CommandError(Exception):
    """Nothing can be done, or it was stopped; the text says why in one line, `status` is the exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class SteadyStream(io.TextIOBase):
    """A stream of the process that takes text whatever becomes of it: what is printed never stops the work.

    Letters that its encoding lacks are escaped. Once it fails (a closed pipe, a full disk), or if there is none,
    nothing more is written to it.

    Attributes:
        error: what it failed with, None if it did not.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: Exception | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The name of its encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Give its number; raise OSError if it has none."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write a text if it can be written; its length."""
        written = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._attempt(lambda stream: stream.write(written))
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self._attempt(lambda stream: stream.flush())

    def _attempt(self, action: Callable[[TextIO], object]) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            action(stream)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.error, self._stream = error, None
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())  # Python tries what is left again when it ends


@contextmanager
def steady_streams() -> Iterator[SteadyStream]:
    """Print through steady streams meanwhile; gives that of standard output."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # a result would get the number of a closed stream,
        pass  # and with it what libraries print there
    os.close(number)
    out, err = SteadyStream(sys.stdout), SteadyStream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield out
        finally:
            out.flush()
            err.flush()


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or whole(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return whole(text)


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text[:40]!r}") from error
    if abs(number) > MOST:
        raise argparse.ArgumentTypeError(f"must be at most {MOST:,}, got {text[:40]}")
    return number


def finite(text: str) -> float:
    """Read a number; NaN and infinities are none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, got {text[:40]!r}")
    return number


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


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add --size, of images that keep their shapes."""
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="pixels of the shorter side, rounded to whole patches (default: the model's)",
    )


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


def speaks() -> bool:
    """Say whether this process is the one to say what failed: of several, the first one that fails."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from .._util.team import fails_first

    return fails_first()


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
