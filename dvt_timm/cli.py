"""The command `dvt-timm`: the arguments of its sub-commands and what they print."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ._version import __version__

DEMO = "vit_small_patch14_dinov2.dvt_demo"
FIGURES = {"voc_miou": ("VOC", ".2f"), "ade20k_miou": ("ADE20k", ".2f"), "nyu_rmse": ("NYU", ".4f")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (the process's own by default).

    Returns:
        The exit status: 0, 1 if some inputs were skipped, 2 if nothing could be done.
    """
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dvt-timm", description="Denoised vision transformers for timm.")
    parser.add_argument("--version", action="version", version=f"dvt-timm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_features(commands)
    _add_list(commands)
    return parser


def _add_features(commands: Any) -> None:
    parser = commands.add_parser(
        "features",
        help="write the raw and denoised features of images, and a picture of them",
        description="Write <name>.safetensors (maps [h, w, C], float32) and <name>.png for every image; files of "
        "the same names are replaced. Exit status 1 if an image had to be skipped.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="JPEG, PNG, WebP, or folders")
    parser.add_argument("--model", default=DEMO, metavar="NAME", help="timm name (default: %(default)s)")
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="a head (folder, file, hf-hub:user/repo), a model's checkpoint, or the folder of a saved model, which "
        "takes the place of --model",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("dvt-features"),
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="N",
        help="pixels of the shorter side, rounded to whole patches (default: the model's)",
    )
    parser.add_argument(
        "--patch",
        type=_patch,
        metavar="ROW,COLUMN",
        help="what the similarity map compares with, counted from 0,0 at the top left (default: the centre)",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: the GPU if there is one)")
    parser.set_defaults(run=_features)


def _add_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="list the names this package adds to timm",
        description="List the names this package adds to timm, with the authors' linear-probe figures: mIoU in percent "
        "on VOC and ADE20k, RMSE in metres on NYU.",
    )
    parser.add_argument("--pretrained", action="store_true", help="only those with weights")
    parser.add_argument("--json", action="store_true", help="as a JSON list of objects")
    parser.set_defaults(run=_list)


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive number of pixels, got {text!r}")
    return int(text)


def _patch(text: str) -> tuple[int, int]:
    row, _, column = text.partition(",")
    if not (row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be ROW,COLUMN, two whole numbers, got {text!r}")
    return int(row), int(column)


def _features(arguments: argparse.Namespace) -> int:
    from huggingface_hub.utils.logging import set_verbosity_error

    from .extract import CommandError

    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    set_verbosity_error()  # its retries without a network: one line at the end says it
    try:
        skipped = _extract_all(arguments)
    except CommandError as error:
        print(f"dvt-timm: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 1 if skipped else 0


def _extract_all(arguments: argparse.Namespace) -> int:
    """Process every image of the command line; how many inputs were skipped."""
    from tqdm import tqdm

    from . import extract

    missing = [path for path in arguments.paths if not os.path.exists(path)]
    for path in missing:
        _report_skipped(f"{path}: not found")
    images = extract.find_images([path for path in arguments.paths if path not in missing], arguments.out)
    if not images:
        given = ", ".join(str(path) for path in arguments.paths)
        raise extract.CommandError(f"no image in {given}; give JPEG, PNG or WebP files, or folders that hold some")
    _make_folder(arguments.out)
    model = extract.load_model(arguments.model, arguments.checkpoint, arguments.device)
    preprocessing = extract.preprocessing_of(model, arguments.size)
    metadata = extract.model_metadata(arguments.checkpoint, model, preprocessing)
    skipped = len(missing)
    for path, target in tqdm(images, unit="image", disable=len(images) == 1):
        try:
            panel = extract.extract(model, preprocessing, path, target, metadata, arguments.patch)
            tqdm.write(str(panel))
        except extract.ImageError as error:
            skipped += 1
            _report_skipped(error)
    if skipped:
        print(f"dvt-timm: {skipped} of {len(missing) + len(images)} inputs skipped", file=sys.stderr)
    return skipped


def _make_folder(folder: Path) -> None:
    from .extract import CommandError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {folder}: {error}; choose another --out") from error


def _report_skipped(reason: object) -> None:
    from tqdm import tqdm

    tqdm.write(f"dvt-timm: skipped {_one_line(reason)}", file=sys.stderr)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _list(arguments: argparse.Namespace) -> int:
    from .registry import list_variants

    rows = [_row(name) for name in list_variants(arguments.pretrained)]
    print(json.dumps(rows, indent=2) if arguments.json else _table(rows))
    return 0


def _row(name: str) -> dict[str, Any]:
    """What is listed of a variant; None where unknown."""
    from timm.models import get_pretrained_cfg

    from .registry import get_variant

    variant = get_variant(name)
    has_head = variant.dim > 0 and not variant.distilled
    cfg = get_pretrained_cfg(variant.base)
    figures = variant.figures or {}
    return {
        "name": name,
        "base": variant.base,
        "licence": None if cfg is None else cfg.license,
        "head_mb": _head_megabytes(variant.dim, variant.grid_size) if has_head else None,
        **{key: figures.get(key) for key in FIGURES},
        "weights": _source(variant),
    }


@cache
def _head_megabytes(dim: int, grid_size: tuple[int, int]) -> float:
    """Size of a head's float32 parameters in 10^6 bytes."""
    import torch

    from .head import DenoiserHead

    with torch.device("meta"):
        head = DenoiserHead(dim, grid_size)
    return round(4 * sum(parameter.numel() for parameter in head.parameters()) / 1e6, 1)


def _source(variant: Any) -> str | None:
    """Where the weights are: "embedded", "repo:file", a user's own path, or None."""
    if variant.head is not None:
        return str(variant.head)
    if variant.file is None:
        return None
    return "embedded" if variant.repo is None else f"{variant.repo}:{variant.file}"


def _table(rows: list[dict[str, Any]]) -> str:
    """The rows under a header, columns aligned, numbers to the right."""
    header = ["name", "base", "licence", "head MB", *(title for title, _ in FIGURES.values()), "weights"]
    formats = ["", "", "", ".1f", *(spec for _, spec in FIGURES.values()), ""]
    cells = [[_cell(value, spec) for value, spec in zip(row.values(), formats, strict=True)] for row in rows]
    for row in cells:
        row[-1] = "none published" if row[-1] == "-" else row[-1]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    aligns = [">" if spec else "<" for spec in formats]
    lines = [zip(row, aligns, widths, strict=True) for row in [header, *cells]]
    return "\n".join("  ".join(f"{text:{align}{width}}" for text, align, width in line).rstrip() for line in lines)


def _cell(value: Any, spec: str) -> str:
    return "-" if value is None else format(value, spec)


if __name__ == "__main__":
    sys.exit(main())
