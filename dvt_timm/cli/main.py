"""The command `dvt-timm`: its sub-commands, its exit statuses, and how errors and warnings look."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import dvt_timm

from .._version import __version__
from . import convert, debias, distill, evaluate, features, fit, list, push, train, weights
from .console import CommandError, one_line, reading, speaks

COMMANDS = (features, fit, train, distill, evaluate, debias, list, convert, push, weights)
EXPECTED = (CommandError, OSError, ValueError, RuntimeError, ImportError)  # what the library says in a line


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (the process's own by default).

    Returns:
        The exit status: 0, 1 if some inputs were skipped, 2 if nothing could be done, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(_respelled(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            arguments.check(arguments)
            if arguments.needs_timm:
                dvt_timm._register()
            with reading(arguments):
                status: int = arguments.run(arguments)
        except KeyboardInterrupt:
            if speaks():
                print("dvt-timm: interrupted; run the same again", file=sys.stderr)
            return 130
        except EXPECTED as error:
            if speaks():
                print(f"dvt-timm: error: {one_line(error)}", file=sys.stderr)
            return getattr(error, "status", 2)
    return status


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
