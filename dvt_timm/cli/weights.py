"""`dvt-timm weights`: the published files and their pins, for maintainers."""

from __future__ import annotations

import argparse

from .console import Commands, table


def add(commands: Commands) -> None:
    """Add the command, its two actions and their options."""
    parser = commands.add_parser("weights", help="pin or check the published files (for maintainers)")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    pin = actions.add_parser("pin", help="write commit, size and SHA-256 of every published file into the manifest")
    pin.add_argument("--revision", default="main", metavar="R", help="of the repositories (default: %(default)s)")
    pin.set_defaults(run=run_pin)
    check = actions.add_parser(
        "check",
        help="compare every file with its pin",
        description="Compare every file with its pin, and print a table. Exit status 1 if one is not as pinned.",
    )
    check.add_argument("--download", action="store_true", help="fetch the files too, check and read them")
    check.set_defaults(run=run_check)


def run_pin(arguments: argparse.Namespace) -> int:
    """Pin every published file, and print what is pinned."""
    from ..publish import pins

    print(table(pins.COLUMNS, pins.pin(revision=arguments.revision)))
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """Compare every file with its pin, and print what is found."""
    from ..publish import pins

    rows = pins.check(arguments.download)
    print(table(pins.COLUMNS, rows))
    return 0 if all(row["state"] == "ok" for row in rows) else 1
