"""`dvt-timm features`: the raw and denoised features of images, and a picture of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .console import CommandError, Commands, add_large_images, add_model_arguments, positive, quiet_hub, report

if TYPE_CHECKING:
    from .results import Recipe


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "features",
        help="write the raw and denoised features of images, and a picture of them",
        description="Write <name>.safetensors (maps [h, w, C], float32) and <name>.png for every image. Results that "
        "this command has made before, of the same image, weights and options, are left as they are; other files of "
        "these names are replaced. Exit status 1 if an image had to be skipped.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="JPEG, PNG, WebP, or folders")
    add_model_arguments(parser)
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
        "--positions",
        type=positive,
        metavar="K",
        help="denoise without a head: means over K views that move the positions, 8 for flat maps, in K + 1 passes",
    )
    parser.add_argument(
        "--patch",
        type=_patch,
        metavar="ROW,COLUMN",
        help="what the similarity map compares with, counted from 0,0 at the top left (default: one that stands out)",
    )
    parser.add_argument(
        "--columns",
        type=_names,
        metavar="NAMES",
        help="what the picture shows, of pca,clusters,norm,similarity,removed (default: all)",
    )
    parser.add_argument("--overlay", action="store_true", help="lay the maps over the photo")
    parser.add_argument("--smooth", action="store_true", help="interpolate the maps, which hides artifacts")
    add_large_images(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Process every image of the command line."""
    from .inputs import find_images, report_missing
    from .models import load_model
    from .results import Look, Recipe

    quiet_hub()
    found = find_images(arguments.paths, arguments.out)
    report_missing(found)
    images = found.targets
    _make_folder(arguments.out)
    model = load_model(arguments.model, arguments.weights, arguments.device, arguments.positions)
    look = Look(arguments.columns, arguments.overlay, arguments.smooth)
    recipe = Recipe(model, arguments.weights, arguments.size, arguments.patch, look)
    skipped, kept = _extract_all(recipe, images)
    missing = len(found.missing) + len(found.unreadable)
    if kept:
        print(f"dvt-timm: {kept} of {len(images)} images were done before and are left as they are", file=sys.stderr)
    if skipped + missing:
        print(f"dvt-timm: {skipped + missing} of {len(images) + missing} inputs skipped", file=sys.stderr)
    return 1 if skipped + missing else 0


def _extract_all(recipe: Recipe, images: dict[Path, Path]) -> tuple[int, int]:
    """Write the results that are not there yet; how many images were skipped, and how many were done before."""
    from tqdm import tqdm

    from .._util.images import ImageError

    skipped = kept = 0
    for path, target in tqdm(images.items(), unit="image", disable=True if len(images) == 1 else None):
        try:
            if recipe.is_done(path, target):
                kept += 1
            else:
                tqdm.write(str(recipe.extract(path, target)))
        except ImageError as error:
            skipped += 1
            report(f"skipped {error}")
    return skipped, kept


def _patch(text: str) -> tuple[int, int]:
    row, _, column = text.partition(",")
    if not (row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be ROW,COLUMN, two whole numbers, got {text!r}")
    return int(row), int(column)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {folder}: {error}; choose another --out") from error
