"""The command `dvt-timm`: its sub-commands, its exit statuses, and how errors and warnings look."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any, NoReturn

import dvt_timm

from .._version import __version__
from . import convert, debias, distill, evaluate, explore, features, film, fit, list, push, train, weights
from .console import CommandError, SteadyStream, one_line, reading, speaks, steady_streams

COMMANDS = (features, explore, film, fit, train, distill, evaluate, debias, list, convert, push, weights)
# what the library says in a line
EXPECTED = (CommandError, OSError, ValueError, RuntimeError, ImportError, MemoryError, OverflowError)
BUG = 70  # exit status, as in sysexits.h


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM has come."""

    status = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (the process's own by default).

    Returns:
        The exit status: 0, 1 if some inputs were skipped, 2 if nothing could be done, 130 after Ctrl-C, 143 after
        SIGTERM, 70 for a bug of this package.
    """
    with steady_streams() as output:
        try:
            return _status_after(output, _run(sys.argv[1:] if argv is None else argv))
        except SystemExit as end:  # argparse's, of help and of wrong usage
            raise SystemExit(_status_after(output, end.code)) from None


def _status_after(output: SteadyStream, status: Any) -> Any:
    """Give the exit status once all is printed: another one if a full disk, say, has not taken it."""
    output.flush()
    if output.error is None or isinstance(output.error, BrokenPipeError):  # who closes a pipe has read enough
        return status
    print(f"dvt-timm: error: cannot write to standard output: {output.error}", file=sys.stderr)
    return status or 2


def _run(argv: Sequence[str]) -> int:
    """Run a command line; its exit status."""
    arguments = _parser().parse_args(_respelled(argv))
    with warnings.catch_warnings(), _ending_on_sigterm():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            arguments.check(arguments)
            if arguments.needs_timm:
                dvt_timm._register()
            with reading(arguments):
                status: int = arguments.run(arguments)
        except KeyboardInterrupt as stop:
            if speaks():
                print("dvt-timm: interrupted; run the same again", file=sys.stderr)
            return getattr(stop, "status", 130)
        except EXPECTED as error:
            if speaks():
                print(f"dvt-timm: error: {one_line(error) or type(error).__name__}", file=sys.stderr)
            return getattr(error, "status", 2)
        except Exception:
            traceback.print_exc()
            print(
                f"dvt-timm: this is a bug of dvt-timm {__version__}; report the lines above to {_where_to_report()}",
                file=sys.stderr,
            )
            return BUG
    return status


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, with no file half written; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(*_: Any) -> NoReturn:
    raise _TerminatedError


def _where_to_report() -> str:
    """Give the project's address, as its metadata has it."""
    try:
        addresses = metadata("dvt-timm").get_all("Project-URL")
    except PackageNotFoundError:  # it runs from a clone
        addresses = None
    return addresses[0].rpartition(", ")[2] if addresses else "its maintainers"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dvt-timm", description="Denoised vision transformers for timm.")
    parser.add_argument("--version", action="version", version=f"dvt-timm {__version__}")
    parser.set_defaults(check=lambda arguments: None, needs_timm=True)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _respelled(argv: Sequence[str]) -> Sequence[str]:
    """Take `distil`, which `distill` was called up to version 0.1, for one release more."""
    if not argv or argv[0] != "distil":
        return argv
    print("dvt-timm: note: `distil` is spelled `distill` now", file=sys.stderr)
    return ["distill", *argv[1:]]


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"dvt-timm: warning: {one_line(message)}", file=sys.stderr)
