"""`dvt-timm evaluate`: plain features, heads and other models side by side, on a benchmark or on one's own photos."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import (
    CommandError,
    Commands,
    add_large_images,
    add_model_arguments,
    finite,
    positive,
    quiet_hub,
    report,
    whole,
)
from .tasks import TASKS, Task

if TYPE_CHECKING:
    from PIL import Image

    from .._util.team import Team
    from ..evaluate.report import Report
    from ..evaluate.rows import Rows
    from ..head import Head

REPORT = "report.json"  # which `Report.save` writes
MAPS = "maps"  # folder of the cache, within that of the report
EXPLORER = "explore.html"  # a page, there too
PROJECTION_PHOTOS = 100
MOST_EXPLORED = 200  # images: what a page takes
GIGABYTE = 1 << 30
RESERVED = ("plain", "denoised", "positions", "projection")  # names of rows that are not the caller's


def add(commands: Commands) -> None:
    """Add the command, its tasks and their options."""
    parser = commands.add_parser(
        "evaluate",
        help="judge heads against plain features: artifacts, labels, depth, key points, videos, objects",
        description="Judge the features of a timm ViT as it is, with heads, and of other models, and say in a sentence "
        "whether there is a difference. Writes report.json, report.md, report.html and plots to REPORT. An interrupted "
        "run goes on where it was if the same is called again. On several GPUs: accelerate launch -m dvt_timm evaluate "
        "...",
    )
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    for name, task in TASKS.items():
        sub = tasks.add_parser(name, help=task.help, description=f"{task.help[0].upper()}{task.help[1:]}.")
        sub.add_argument("data", type=Path, nargs="+" if name == "artifacts" else None, metavar="DATA", help=task.data)
        _add_rows(sub)
        _add_numbers(sub, task)
        task.options(sub)
        add_large_images(sub)
        sub.set_defaults(run=run, check=_check, task=task, task_name=name)


def _add_rows(parser: argparse.ArgumentParser) -> None:
    rows = parser.add_argument_group("rows")
    add_model_arguments(rows)  # type: ignore[arg-type]
    rows.add_argument(
        "--denoiser",
        action="append",
        default=[],
        metavar="[NAME=]HEAD",
        help="a head's folder, file or hf-hub:user/repo; may be given again",
    )
    rows.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a model of its own row, distilled say: a timm name or a folder of save_model; may be given again",
    )
    rows.add_argument("--positions", type=positive, metavar="K", help="a row of means over K views of positions")
    rows.add_argument(
        "--projection",
        type=whole,
        default=32,
        metavar="R",
        help="dimensions of the projection that stands beside heads, 0 for none (default: %(default)s)",
    )


def _add_numbers(parser: argparse.ArgumentParser, task: Task) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="REPORT", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        metavar="N",
        help="pixels of the shorter side, rounded to whole patches; several make a report each "
        f"(default: {task.size or 'the model' + chr(39) + 's'})",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--squeeze", action="store_true", default=task.squeeze, help="squeeze images to squares")
    shape.add_argument("--keep-aspect", dest="squeeze", action="store_false", help="keep their aspect")
    parser.add_argument("--layer", type=whole, default=-1, metavar="I", help="block to read (default: the last)")
    parser.add_argument("--limit", type=positive, metavar="N", help="take so many, spread evenly (default: all)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of all draws (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images in a pass (default: 8)")
    parser.add_argument("--half", action="store_true", help="bfloat16 in the forward passes")
    parser.add_argument(
        "--explore",
        type=whole,
        default=0,
        metavar="N",
        help="make REPORT/explore.html, too: N of the images to look at, plain beside the first other row (default: 0)",
    )
    parser.add_argument(
        "--cache",
        type=finite,
        default=20.0,
        metavar="GB",
        help="how much of the maps is kept in REPORT/maps, 0 for none (default: %(default)s)",
    )


def _check(arguments: argparse.Namespace) -> None:
    """Raise CommandError where options are out of range, or do not go together."""
    for name in ("explore", "mic", "projection"):
        if (count := getattr(arguments, name, 0)) < 0:
            raise CommandError(f"--{name} must be at least 0, got {count}")
    arguments.task.check(arguments)
    is_trained = "as_released" in arguments or getattr(arguments, "protocol", None) == "paper"
    if is_trained and len(arguments.size or ()) > 1:
        raise CommandError("the paper's probes have sizes of their own; --size is the projection's alone, give one")
    if arguments.explore > MOST_EXPLORED:
        raise CommandError(f"a page takes at most {MOST_EXPLORED} images, got --explore {arguments.explore}")
    title = ", ".join(filter(None, (arguments.task_name, getattr(arguments, "protocol", None))))
    for folder in _folders(arguments).values():
        _check_folder(folder, title)


def _folders(arguments: argparse.Namespace) -> dict[int | None, Path]:
    """Say where the report of each size goes."""
    sizes = arguments.size or [arguments.task.size]
    return {size: arguments.out if len(sizes) == 1 else arguments.out / str(size) for size in sizes}


def _check_folder(folder: Path, title: str) -> None:
    """Raise CommandError if a folder holds the report of another task."""
    from .._util.files import read_json

    path = folder / REPORT
    if path.is_file() and (found := read_json(path).get("task")) != title:
        raise CommandError(f"{folder} holds a report of {found}; give another folder by --out, or delete it")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the report, and print its table and sentences."""
    from .._util.files import locked
    from .._util.team import Team
    from ..evaluate.plots import figure_maker

    quiet_hub()
    figure_maker()  # complains before any work is done
    team = Team(arguments.device)
    if team.rank != 0:
        warnings.simplefilter("ignore")  # the first process gives them
    data = arguments.task.open(arguments)
    with ExitStack() as stack:
        if team.rank == 0:
            arguments.out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(arguments.out))
        skipped = _measure(arguments, data, team)
    return 1 if skipped else 0


def _measure(arguments: argparse.Namespace, data: Any, team: Team) -> int:
    """Make the report of each size; how many images were skipped, and pages not made."""
    task: Task = arguments.task
    skipped = 0
    for size, folder in _folders(arguments).items():
        rows = _rows_of(arguments, size, team)
        if arguments.explore and not arguments.projection and len(rows.names) == 1:
            raise CommandError("--explore shows a row beside the plain one, and there is none; add --denoiser HEAD")
        if task.images is not None and arguments.projection:
            rows.add_projection(_some_of(task.images(data), team), arguments.projection)
        found: Report = task.run(rows, data, arguments)
        if team.rank == 0:
            _tell(found, folder)
            skipped += len(found.skipped)
            if arguments.explore:
                images = data if task.images is None else task.images(data)
                skipped += not _explore(rows, images, found, folder, arguments.explore)
    return skipped


def _explore(rows: Rows, images: Sequence[Path], found: Report, folder: Path, count: int) -> bool:
    """Make the page of some of the images, and link to it in the report; False if it cannot be made."""
    from ..evaluate.tasks.correspondence import spread_over
    from ..explore import explore_rows

    try:
        page = explore_rows(rows, [images[i] for i in spread_over(len(images), count)])
    except ValueError as error:
        report(f"no {EXPLORER}: {error}")
        return False
    for reason in page.skipped.values():
        report(f"left out of {EXPLORER}: {reason}")
    page.save(folder / EXPLORER)
    found.save(folder, explorer=EXPLORER)
    return True


def _tell(found: Report, folder: Path) -> None:
    """Write the report, and print what it says."""
    found.save(folder)
    for name, reason in found.skipped.items():
        report(f"skipped {name}: {reason}")
    print(f"{found.table()}\n")
    for sentence in found.verdicts.values():
        print(sentence)
    print(f"{folder}/report.html")


def _rows_of(arguments: argparse.Namespace, size: int | None, team: Team) -> Rows:
    """Build the models and heads of a command line."""
    import torch

    from .._util.modules import shallow_copy
    from ..attach import attach_positions
    from ..evaluate import MapCache, Rows
    from .models import load_model

    device = arguments.device or team.device
    model = load_model(arguments.model, arguments.weights, device)
    others = {}
    for name, source in _named(arguments.other):
        is_place = Path(source).is_dir() or source.startswith("hf-hub:")
        name_or_model, weights = (arguments.model, source) if is_place else (source, None)
        others[name] = load_model(name_or_model, weights, device)
    if arguments.positions:  # shares its weights with the model, and what is planted in them
        try:
            others["positions"] = attach_positions(shallow_copy(model), arguments.positions)
        except TypeError as error:
            raise CommandError(f"--positions: {error}") from error
    cache = None
    if arguments.cache > 0:
        cache = MapCache(arguments.out / MAPS, int(arguments.cache * GIGABYTE), writers=team.size)
    try:
        return Rows(
            model,
            {name: _head(source) for name, source in _named(arguments.denoiser)},
            others=others,
            size=size,
            squeeze=arguments.squeeze,
            layer=arguments.layer,
            batch_size=arguments.batch_size,
            autocast=torch.bfloat16 if arguments.half else None,
            cache=cache,
            team=team,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def _named(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Read [NAME=]SOURCE; the name is that of the source otherwise."""
    pairs: dict[str, str] = {}
    for text in sources:
        name, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            name, source = Path(text).resolve().name, text
        if name in RESERVED or name in pairs:
            raise CommandError(f"a row is named {name!r} already; write NAME={source} with another name")
        pairs[name] = source
    return list(pairs.items())


def _head(source: str) -> Head:
    from ..checkpoints.heads import load_head

    try:
        return load_head(source)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot load --denoiser {source}: {error}") from error


def _some_of(paths: Sequence[Path], team: Team) -> Iterator[Image.Image]:
    """Read this process's part of some images, spread evenly, for the projection; others than images are left out."""
    from .._util.images import ImageError, read_image
    from ..evaluate.tasks.correspondence import spread_over

    for i in team.part(spread_over(len(paths), PROJECTION_PHOTOS)):
        try:
            yield read_image(paths[i])
        except ImageError:
            continue
