"""`dvt-timm features`: the raw and denoised features of images, by the thousand; a picture of them where wanted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .console import (
    CommandError,
    Commands,
    add_large_images,
    add_model_arguments,
    add_size,
    positive,
    quiet_hub,
    report,
    whole,
)

if TYPE_CHECKING:
    from .._util.team import Team
    from .results import Recipe, Results

ROWS = 1000  # of a Parquet file, by default


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "features",
        help="write the raw and denoised features of images, and pictures of them",
        description="Write <name>.safetensors, maps [h, w, C], for every image. Results that this command has made "
        "before, of the same image, weights and options, are left as they are; other files of these names are "
        "replaced. After an interruption, run the same again. Exit status 1 if an image had to be skipped. On several "
        "GPUs: accelerate launch -m dvt_timm features ...",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="IMAGE_FOLDER_OR_LIST",
        help="JPEG, PNG, WebP, folders, or .txt lists: a path a line, relative to the list",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("dvt-features"),
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    add_size(parser)
    parser.add_argument(
        "--positions",
        type=positive,
        metavar="K",
        help="denoise without a head: means over K views that move the positions, 8 for flat maps, in K + 1 passes",
    )
    _add_passes(parser)
    _add_kept(parser)
    _add_files(parser)
    _add_panels(parser)
    add_large_images(parser)
    parser.set_defaults(run=run, check=_check)


def _add_passes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="images of one size in a pass (default: 8)"
    )
    parser.add_argument(
        "--autocast",
        choices=("bfloat16", "float16"),
        help="dtype of the forward passes (default: that of the weights, float32)",
    )


def _add_kept(parser: argparse.ArgumentParser) -> None:
    kept = parser.add_argument_group("what is kept")
    kept.add_argument(
        "--half", action="store_true", help="store float16 rather than float32, as `fit` does; passes are as they are"
    )
    kept.add_argument("--denoised-only", action="store_true", help="leave the raw maps out")
    kept.add_argument(
        "--layers",
        type=_layers,
        default=(),
        metavar="I,J,...",
        help="also the maps of these blocks, after the final norm, as `layer_I`, counted from 0, or from -1 backwards "
        "(the last one's, denoised, is not kept twice); those before the last are not denoised, but with --positions",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--shards",
        type=positive,
        metavar="N",
        help="files of N images, each with an index beside it, rather than one for each image",
    )
    files.add_argument(
        "--format",
        choices=("safetensors", "parquet"),
        default="safetensors",
        help="of the files; parquet has shards of 1000 images by default (pip install 'dvt-timm[parquet]')",
    )


def _add_panels(parser: argparse.ArgumentParser) -> None:
    panels = parser.add_argument_group("pictures")
    panels.add_argument("--panels", action="store_true", help="draw <name>.png of every image, too: some seconds each")
    panels.add_argument(
        "--patch",
        type=_patch,
        metavar="ROW,COLUMN",
        help="what the similarity map compares with, counted from 0,0 at the top left (default: one that stands out)",
    )
    panels.add_argument(
        "--columns",
        type=_names,
        metavar="NAMES",
        help="what the picture shows, of pca,clusters,norm,similarity,removed (default: all)",
    )
    panels.add_argument("--overlay", action="store_true", help="lay the maps over the photo")
    panels.add_argument("--smooth", action="store_true", help="interpolate the maps, which hides artifacts")


def _check(arguments: argparse.Namespace) -> None:
    """Raise CommandError where options do not go together."""
    if arguments.format == "parquet" and arguments.shards is None:
        arguments.shards = ROWS
    for name in ("patch", "columns", "overlay", "smooth"):
        if getattr(arguments, name) not in (None, False) and not arguments.panels:
            raise CommandError(f"--{name} is what a picture shows; pass --panels, too")
    if arguments.panels and arguments.shards is not None:
        raise CommandError("--panels goes with a file for each image; leave it, or --shards and --format, out")


def run(arguments: argparse.Namespace) -> int:
    """Process every image of the command line that is not done."""
    from .._util.team import Team
    from .inputs import find_listed, report_missing
    from .models import load_model
    from .results import Recipe

    quiet_hub()
    team = Team(arguments.device)
    found = find_listed(arguments.paths, arguments.out)
    report_missing(found)
    _make_folder(arguments.out)
    model = load_model(arguments.model, arguments.weights, arguments.device or team.device, arguments.positions)
    recipe = Recipe(model, arguments)
    with _results(recipe, arguments, found.targets, team) as results:
        todo = _todo(results, list(found.targets), team)
        failed = _extract_all(recipe, results, todo, team)
    if team.rank != 0:
        return 0  # another status than the first one's would end that before it is done
    if arguments.shards is not None:
        print(_summary(arguments.out))
    skipped, total = failed + found.num_missing, len(found.targets)
    if kept := total - len(todo):
        print(f"dvt-timm: {kept} of {total} images were done before and are left as they are", file=sys.stderr)
    if skipped:
        print(f"dvt-timm: {skipped} of {total + found.num_missing} inputs skipped", file=sys.stderr)
    return 1 if skipped else 0


@contextmanager
def _results(recipe: Recipe, arguments: argparse.Namespace, targets: dict[Path, Path], team: Team) -> Iterator[Results]:
    """Say where results go."""
    from .results import Files
    from .shards import SETTINGS, check_shards, shards_in

    if arguments.shards is not None:
        check_shards(recipe, arguments)
        with shards_in(arguments.out, recipe, arguments, targets, team) as shards:
            yield shards
        return
    if (arguments.out / SETTINGS).exists():
        raise CommandError(f"{arguments.out} holds shards of an earlier run; choose another --out, or pass --shards")
    yield Files(recipe, targets)


def _summary(folder: Path) -> str:
    from .shards import rows_in

    rows = rows_in(folder).values()
    return f"{folder}: {len(rows)} images in {len({row['shard'] for row in rows})} shards"


def _todo(results: Results, paths: list[Path], team: Team) -> Sequence[Path]:
    """Find the images that are not done; each process looks at its part."""
    from .._util.threads import made_ahead

    mine = team.part(range(len(paths)))
    looked_at = made_ahead(results.is_done, (paths[i] for i in mine), threads=None, most=64)
    done = team.gather(dict(zip(mine, looked_at, strict=True)))
    return results.todo([path for i, path in enumerate(paths) if not done[i]])


def _extract_all(recipe: Recipe, results: Results, todo: Sequence[Path], team: Team) -> int:
    """Make this process's part of the results; how many images were skipped, by all processes."""
    from tqdm import tqdm

    from .._util.images import ImageError

    skipped: list[ImageError] = []

    def skip(error: ImageError) -> None:
        skipped.append(error)
        report(f"skipped {error}")
        bar.update()

    mine = team.part(todo)
    with tqdm(total=len(mine), unit="image", disable=True if len(mine) == 1 or team.rank else None) as bar:
        for features in recipe.extract(mine, skip):
            try:
                finished = results.add(features)
            except ImageError as error:
                skip(error)
                continue
            if finished is not None:
                tqdm.write(str(finished))
            bar.update()
    return sum(team.gather({team.rank: len(skipped)}).values())


def _layers(text: str) -> tuple[int, ...]:
    return tuple(whole(number) for number in text.split(","))


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
