"""The command `dvt-timm`: the arguments of its sub-commands and what they print."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._util.files import CommandError
from .._version import __version__
from .console import add_model_arguments, no_images, one_line, positive, quiet_hub, report_skipped
from .stages import add_stages

DEMO = "vit_small_patch14_dinov2.dvt_demo"
EXPECTED = (OSError, ValueError, RuntimeError)  # of commands that report whatever stops them


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (the process's own by default).

    Returns:
        The exit status: 0, 1 if some inputs were skipped, 2 if nothing could be done, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            status: int = arguments.run(arguments)
        except KeyboardInterrupt:
            print("dvt-timm: interrupted; run the same again", file=sys.stderr)
            return 130
        except arguments.expected as error:
            print(f"dvt-timm: error: {one_line(error)}", file=sys.stderr)
            return getattr(error, "status", CommandError.status)
    return status


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"dvt-timm: warning: {one_line(message)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dvt-timm", description="Denoised vision transformers for timm.")
    parser.add_argument("--version", action="version", version=f"dvt-timm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_features(commands)
    add_stages(commands, DEMO)
    _add_list(commands)
    _add_convert(commands)
    _add_push(commands)
    _add_weights(commands)
    return parser


def _add_features(commands: Any) -> None:
    parser = commands.add_parser(
        "features",
        help="write the raw and denoised features of images, and a picture of them",
        description="Write <name>.safetensors (maps [h, w, C], float32) and <name>.png for every image; files of "
        "the same names are replaced. Exit status 1 if an image had to be skipped.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="JPEG, PNG, WebP, or folders")
    add_model_arguments(parser, DEMO)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("dvt-features"),
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="pixels of the shorter side, rounded to whole patches (default: the model's)",
    )
    parser.add_argument(
        "--patch",
        type=_patch,
        metavar="ROW,COLUMN",
        help="what the similarity map compares with, counted from 0,0 at the top left (default: the centre)",
    )
    parser.set_defaults(run=_features, expected=CommandError)


def _add_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="list the names this package adds to timm",
        description="List the names this package adds to timm, with the authors' linear-probe figures: mIoU in percent "
        "on VOC and ADE20k, RMSE in metres on NYU.",
    )
    parser.add_argument("--pretrained", action="store_true", help="only those with weights")
    parser.add_argument("--json", action="store_true", help="as a JSON list of objects")
    parser.set_defaults(run=_list, expected=())


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn the authors' .pth files into safetensors",
        description="Write a head as a folder for denoiser=FOLDER, distilled weights as one for local-dir:FOLDER. Of a "
        "folder every .pth is converted, to the same place below DIR. Exit status 1 if one had to be skipped.",
    )
    parser.add_argument("source", type=Path, metavar="FILE_OR_FOLDER", help="a .pth file, or a folder of them")
    parser.add_argument("--base", metavar="NAME", help="timm name of the backbone (default: the name of the file)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.set_defaults(run=_convert, expected=EXPECTED)


def _add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="push a head or a model to the Hugging Face Hub",
        description="Push what save_head or save_model wrote, with a model card, in one commit. Log in with `hf auth "
        "login` or set HF_TOKEN. After a failure, run the same again.",
    )
    parser.add_argument("source", metavar="FOLDER", help="a head's folder or .safetensors file, or a model's folder")
    parser.add_argument("repo", metavar="USER/REPO", help="made if it does not exist; a README.md that it has is kept")
    parser.add_argument("--base", metavar="NAME", help="timm name of a head's backbone (default: as the folder says)")
    parser.add_argument(
        "--merged", action="store_true", help="push a head and its base as one model (a model's folder always is)"
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help='JSON, {"dataset": {"metric": value}} (default: metrics.json of the folder)',
    )
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME", help="trained on it; may be given again"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="to push to, made if it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request rather than commit")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.set_defaults(run=_push, expected=EXPECTED)


def _add_weights(commands: Any) -> None:
    parser = commands.add_parser("weights", help="pin or check the published files (for maintainers)")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    pin = actions.add_parser("pin", help="write commit, size and SHA-256 of every published file into the manifest")
    pin.add_argument("--revision", default="main", metavar="R", help="of the repositories (default: %(default)s)")
    pin.set_defaults(run=_pin, expected=EXPECTED)
    check = actions.add_parser(
        "check",
        help="compare every file with its pin",
        description="Compare every file with its pin, and print a table. Exit status 1 if one is not as pinned.",
    )
    check.add_argument("--download", action="store_true", help="fetch the files too, check and read them")
    check.set_defaults(run=_check, expected=EXPECTED)


def _patch(text: str) -> tuple[int, int]:
    row, _, column = text.partition(",")
    if not (row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be ROW,COLUMN, two whole numbers, got {text!r}")
    return int(row), int(column)


def _features(arguments: argparse.Namespace) -> int:
    quiet_hub()
    return 1 if _extract_all(arguments) else 0


def _extract_all(arguments: argparse.Namespace) -> int:
    """Process every image of the command line; how many inputs were skipped."""
    from tqdm import tqdm

    from .._util.images import ImageError, preprocessing_of
    from . import features as extract

    paths = _existing(arguments.paths)
    images = extract.find_images(paths, arguments.out)
    if not images:
        raise no_images(arguments.paths)
    _make_folder(arguments.out)
    model = extract.load_model(arguments.model, arguments.checkpoint, arguments.device)
    preprocessing = preprocessing_of(model, arguments.size)
    metadata = extract.model_metadata(arguments.checkpoint, model, preprocessing)
    missing = len(arguments.paths) - len(paths)
    skipped = missing
    for path, target in tqdm(images, unit="image", disable=len(images) == 1):
        try:
            panel = extract.extract(model, preprocessing, path, target, metadata, arguments.patch)
            tqdm.write(str(panel))
        except ImageError as error:
            skipped += 1
            report_skipped(error)
    if skipped:
        print(f"dvt-timm: {skipped} of {missing + len(images)} inputs skipped", file=sys.stderr)
    return skipped


def _existing(paths: list[Path]) -> list[Path]:
    """The paths that exist; the others are reported."""
    found = []
    for path in paths:
        if os.path.exists(path):  # False, too, where the name is too long for a file
            found.append(path)
        else:
            report_skipped(f"{path}: not found")
    return found


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {folder}: {error}; choose another --out") from error


def _list(arguments: argparse.Namespace) -> int:
    from . import listing

    print(listing.variants(arguments.pretrained, arguments.json))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    """Convert a file, or every .pth of a folder; the others go on where one cannot be read."""
    from ..checkpoints.published import convert_checkpoint

    source, out = arguments.source, arguments.out
    files = sorted(source.rglob("*.pth")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"no .pth file in {source}")
    if source.is_dir() and arguments.base is not None:
        raise ValueError("--base goes with one file; those of a folder are named by their base")
    skipped = 0
    for file in files:
        relative = file.relative_to(source) if source.is_dir() else Path()
        folder = out / relative.with_name(file.name.removesuffix(".pth")) if source.is_dir() else out
        try:
            print(convert_checkpoint(file, folder, base=arguments.base))
        except (OSError, ValueError) as error:
            if len(files) == 1:
                raise
            skipped += 1
            report_skipped(error)
    return 1 if skipped else 0


def _push(arguments: argparse.Namespace) -> int:
    from .._util.files import METRICS, read_json
    from ..head import DenoiserHead
    from ..publish.push import load_folder, push_to_hub

    own = Path(arguments.source, METRICS)  # of a run of training
    path = arguments.metrics or (own if own.is_file() else None)
    metrics = None if path is None else read_json(path)
    model_or_head, base = load_folder(arguments.source, arguments.base, merged=arguments.merged)
    commit = push_to_hub(
        model_or_head,
        arguments.repo,
        base=base,
        metrics=metrics,
        datasets=arguments.dataset,
        merged=arguments.merged or not isinstance(model_or_head, DenoiserHead),
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        commit_message=arguments.message,
    )
    if arguments.create_pr and commit.pr_url is None:
        print("dvt-timm: no pull request, the repository holds the same already", file=sys.stderr)
    print(commit.pr_url or commit.commit_url)
    return 0


def _pin(arguments: argparse.Namespace) -> int:
    from ..publish import pins
    from . import listing

    print(listing.table(pins.COLUMNS, pins.pin(revision=arguments.revision)))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from ..publish import pins
    from . import listing

    rows = pins.check(arguments.download)
    print(listing.table(pins.COLUMNS, rows))
    return 0 if all(row["state"] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
