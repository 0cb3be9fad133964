"""`dvt-timm convert`: the authors' files as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import CommandError, Commands, report


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "convert",
        help="turn the authors' .pth files into safetensors",
        description="Write a head as a folder for denoiser=FOLDER, distilled weights as one for local-dir:FOLDER. Of a "
        "folder every .pth is converted, to the same place below DIR. Exit status 1 if one had to be skipped.",
    )
    parser.add_argument("source", type=Path, metavar="FILE_OR_FOLDER", help="a .pth file, or a folder of them")
    parser.add_argument("--base", metavar="NAME", help="timm name of the backbone (default: the name of the file)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.set_defaults(run=run, check=_check)


def run(arguments: argparse.Namespace) -> int:
    """Convert a file, or every .pth of a folder."""
    from ..checkpoints.published import convert_checkpoint

    if not arguments.source.is_dir():
        print(convert_checkpoint(arguments.source, arguments.out, base=arguments.base))
        return 0
    return _convert_folder(arguments.source, arguments.out)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.source.is_file() and arguments.source.suffix != ".pth":
        raise CommandError(f"{arguments.source} is no .pth file of the authors; there is nothing to convert")
    if arguments.base is not None and arguments.source.is_dir():
        raise CommandError("--base goes with one file; those of a folder are named by their base")


def _convert_folder(source: Path, out: Path) -> int:
    """Convert what can be converted, and report the rest."""
    from ..checkpoints.published import convert_checkpoint

    files = sorted(source.rglob("*.pth"))
    if not files:
        raise CommandError(f"no .pth file in {source}; name a folder that holds some")
    skipped = 0
    for file in files:
        try:
            print(convert_checkpoint(file, out / file.relative_to(source).with_suffix("")))
        except (OSError, ValueError) as error:
            skipped += 1
            report(f"skipped {error}")
    return 1 if skipped else 0
