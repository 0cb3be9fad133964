"""`dvt-timm evaluate`: plain features, heads and other models side by side, on a benchmark or on one's own photos."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import CommandError, Commands, add_model_arguments, positive, quiet_hub, report

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluate.report import Report
    from ..evaluate.rows import Rows
    from ..head import Head

MAPS = "maps"  # folder of the cache, within that of the report
PROJECTION_PHOTOS = 100
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Task:
    """One of the tasks.

    Attributes:
        help: what it measures, in a line.
        data: what DATA is.
        squeeze: whether images are squeezed to squares by default.
        size: pixels of the shorter side by default, None for the model's own.
        run: makes the report.
        images: gives some of its images, for the projection; None where the task fits it itself.
    """

    help: str
    data: str
    squeeze: bool
    size: int | None
    run: Callable[[Rows, argparse.Namespace], Report]
    images: Callable[[argparse.Namespace], Iterable[Image.Image]] | None = None
    options: Callable[[argparse.ArgumentParser], None] | None = None


def add(commands: Commands) -> None:
    """Add the command, its tasks and their options."""
    parser = commands.add_parser(
        "evaluate",
        help="judge heads against plain features: artifacts, labels, key points, videos, objects",
        description="Judge the features of a timm ViT as it is, with heads, and of other models, and say in a sentence "
        "whether there is a difference. Writes report.json, report.md, report.html and plots to REPORT. An interrupted "
        "run goes on where it was if the same is called again.",
    )
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    for name, task in TASKS.items():
        sub = tasks.add_parser(name, help=task.help, description=f"{task.help[0].upper()}{task.help[1:]}.")
        sub.add_argument("data", type=Path, nargs="+" if name == "artifacts" else None, metavar="DATA", help=task.data)
        _add_rows(sub)
        _add_numbers(sub, task)
        if task.options is not None:
            task.options(sub)
        sub.set_defaults(run=run, task=task)


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
        type=int,
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
    parser.add_argument("--layer", type=int, default=-1, metavar="I", help="block to read (default: the last)")
    parser.add_argument("--limit", type=positive, metavar="N", help="take so many, spread evenly (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images in a pass (default: 8)")
    parser.add_argument("--half", action="store_true", help="bfloat16 in the forward passes")
    parser.add_argument(
        "--cache",
        type=float,
        default=20.0,
        metavar="GB",
        help="how much of the maps is kept in REPORT/maps, 0 for none (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the report, and print its table and sentences."""
    quiet_hub()
    sizes = arguments.size or [arguments.task.size]
    skipped = 0
    for size in sizes:
        rows = _rows_of(arguments, size)
        if arguments.task.images is not None and arguments.projection:
            rows.add_projection(arguments.task.images(arguments), arguments.projection)
        found: Report = arguments.task.run(rows, arguments)
        folder = arguments.out if len(sizes) == 1 else arguments.out / str(size)
        found.save(folder)
        for name, reason in found.skipped.items():
            report(f"skipped {name}: {reason}")
        print(f"{found.table()}\n")
        for sentence in found.verdicts.values():
            print(sentence)
        print(f"{folder}/report.html")
        skipped += len(found.skipped)
    return 1 if skipped else 0


def _rows_of(arguments: argparse.Namespace, size: int | None) -> Rows:
    """Build the models and heads of a command line."""
    import torch

    from .._util.modules import shallow_copy
    from ..attach import attach_positions
    from ..evaluate.rows import MapCache, Rows
    from .models import load_model

    model = load_model(arguments.model, arguments.weights, arguments.device)
    others = {name: load_model(source, None, arguments.device) for name, source in _named(arguments.other)}
    if arguments.positions:  # shares its weights with the model, and what is planted in them
        others["positions"] = attach_positions(shallow_copy(model), arguments.positions)
    cache = MapCache(arguments.out / MAPS, int(arguments.cache * GIGABYTE)) if arguments.cache > 0 else None
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
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def _named(sources: list[str]) -> list[tuple[str, str]]:
    """Read [NAME=]SOURCE; the name is that of the source otherwise."""
    pairs = []
    for text in sources:
        name, equals, source = text.partition("=")
        pairs.append((name, source) if equals else (Path(text).name, text))
    return pairs


def _head(source: str) -> Head:
    from ..checkpoints.heads import load_head

    try:
        return load_head(source)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot load --denoiser {source}: {error}") from error


def _artifacts(rows: Rows, arguments: argparse.Namespace) -> Report:
    from ..evaluate.tasks.artifacts import artifacts
    from ..evaluate.tasks.correspondence import spread_over
    from .inputs import images_of

    found = images_of(arguments.data, arguments.out)
    photos = [found[i] for i in spread_over(len(found), arguments.limit)]
    return artifacts(
        rows,
        photos,
        projection=arguments.projection,
        mic_photos=arguments.mic,
        seed=arguments.seed,
        progress=True,
    )


def _segmentation(rows: Rows, arguments: argparse.Namespace) -> Report:
    from ..evaluate.data.masks import open_masks
    from ..evaluate.tasks.segmentation import segmentation

    train, test = open_masks(arguments.data, share=arguments.share, seed=arguments.seed)
    if arguments.protocol == "paper":
        from ..evaluate import SegmentationConfig, linear_segmentation

        return linear_segmentation(
            rows, train, test, config=SegmentationConfig(**_training(arguments)), **_trained(arguments)
        )
    return segmentation(
        rows,
        train,
        test,
        protocol=arguments.protocol,
        memory=arguments.memory,
        seeds=range(arguments.seed, arguments.seed + arguments.seeds),
        limit=arguments.limit,
        progress=True,
    )


def _depth(rows: Rows, arguments: argparse.Namespace) -> Report:
    from ..evaluate import DepthConfig, depth
    from ..evaluate.data import NyuDepth

    train, test = (NyuDepth(arguments.data, split) for split in ("train", "test"))
    config = DepthConfig(**_training(arguments))
    return depth(rows, train, test, config=config, as_released=arguments.as_released, **_trained(arguments))


def _training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the numbers of a probe's training; those that are not given are the authors'."""
    given = {"steps": arguments.steps, "batch_size": arguments.train_batch}
    return {name: value for name, value in given.items() if value is not None}


def _trained(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"folder": arguments.out, "seed": arguments.seed, "limit": arguments.limit, "progress": True}


def _correspondence(rows: Rows, arguments: argparse.Namespace) -> Report:
    from ..evaluate.data.spair import SpairPairs
    from ..evaluate.tasks.correspondence import correspondence

    return correspondence(rows, SpairPairs(arguments.data), limit=arguments.limit, progress=True)


def _propagation(rows: Rows, arguments: argparse.Namespace) -> Report:
    from ..evaluate.data.davis import DavisVideos
    from ..evaluate.tasks.propagation import propagation

    options = {name: getattr(arguments, name) for name in ("neighbors", "temperature", "context", "radius")}
    videos = DavisVideos(arguments.data, year=arguments.year)
    return propagation(rows, videos, limit=arguments.limit, frames=arguments.frames, progress=True, **options)


def _discovery(rows: Rows, arguments: argparse.Namespace) -> Report:
    from ..evaluate.data.boxes import VocBoxes
    from ..evaluate.tasks.discovery import discovery

    photos = VocBoxes(arguments.data, arguments.split)
    return discovery(rows, photos, limit=arguments.limit, bias=arguments.bias, progress=True)


def _add_artifacts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mic", type=int, default=4, metavar="N", help="photos of which MIC is taken, seconds each (default: 4)"
    )


def _add_segmentation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=("knn", "patch", "paper"),
        default="knn",
        help="knn: the nearest patches vote; patch: a linear classifier of patches, seconds; paper: the paper's linear "
        "probe of pixels, hours (default: %(default)s)",
    )
    _add_training(parser, 40_000)
    parser.add_argument(
        "--memory", type=positive, default=25_000, metavar="N", help="patches that train (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="draws that count (default: 1)")
    parser.add_argument(
        "--share", type=float, default=0.5, metavar="X", help="images that train, where no list says (default: 0.5)"
    )


def _add_depth(parser: argparse.ArgumentParser) -> None:
    _add_training(parser, 38_400)
    parser.add_argument(
        "--as-released", action="store_true", help="the loss as the authors' code computes it, without gradients"
    )


def _add_training(parser: argparse.ArgumentParser, steps: int) -> None:
    parser.add_argument("--steps", type=positive, metavar="N", help=f"of the paper's probe (default: {steps:,})")
    parser.add_argument("--train-batch", type=positive, metavar="N", help="images of its steps (default: 16)")


def _add_propagation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--year", choices=("2016", "2017"), help="whose lists count (default: 2017, if it is there)")
    parser.add_argument("--frames", type=positive, metavar="N", help="take the first ones of each video (default: all)")
    parser.add_argument("--neighbors", type=positive, default=5, metavar="K", help="(default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.1, metavar="T", help="(default: %(default)s)")
    parser.add_argument("--context", type=int, default=7, metavar="N", help="frames looked back at (default: 7)")
    parser.add_argument("--radius", type=int, default=12, metavar="N", help="patches around (default: %(default)s)")


def _add_discovery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="trainval", metavar="NAME", help="list of photos (default: %(default)s)")
    parser.add_argument(
        "--bias",
        type=float,
        default=0.0,
        metavar="X",
        help="added to scalar products, by LOST of registers (default: 0)",
    )


def _labeled_images(arguments: argparse.Namespace) -> Iterator[Image.Image]:
    from ..evaluate.data.masks import open_masks

    train, _ = open_masks(arguments.data, share=arguments.share, seed=arguments.seed)
    return _read(train[i].image for i in range(len(train)))


def _depth_images(arguments: argparse.Namespace) -> Iterator[Image.Image]:
    from ..evaluate.data import NyuDepth

    frames = NyuDepth(arguments.data, "train")
    return _read(frames[i].image for i in range(len(frames)))


def _pair_images(arguments: argparse.Namespace) -> Iterator[Image.Image]:
    from ..evaluate.data.spair import SpairPairs

    pairs = SpairPairs(arguments.data)
    return _read(dict.fromkeys(pairs[i].source for i in range(min(len(pairs), 4 * PROJECTION_PHOTOS))))


def _video_images(arguments: argparse.Namespace) -> Iterator[Image.Image]:
    from ..evaluate.data.davis import DavisVideos

    videos = DavisVideos(arguments.data, year=arguments.year)
    every = [frame for i in range(len(videos)) for frame in videos[i].frames]
    return _read(every[:: max(len(every) // PROJECTION_PHOTOS, 1)])


def _located_images(arguments: argparse.Namespace) -> Iterator[Image.Image]:
    from ..evaluate.data.boxes import VocBoxes

    photos = VocBoxes(arguments.data, arguments.split)
    return _read(photos[i].image for i in range(min(len(photos), PROJECTION_PHOTOS)))


def _read(paths: Iterable[Path]) -> Iterator[Image.Image]:
    """Read images for the projection; those that cannot be read are left out."""
    from itertools import islice

    from .._util.images import ImageError, read_image

    def images() -> Iterator[Image.Image]:
        for path in paths:
            try:
                yield read_image(path)
            except ImageError:
                continue

    return islice(images(), PROJECTION_PHOTOS)


TASKS = {
    "artifacts": Task(
        "measure how much of a patch's position is in its features, on any photos, without labels",
        "photos: JPEG, PNG, WebP, folders, or .txt lists",
        squeeze=True,
        size=None,
        run=_artifacts,
        options=_add_artifacts,
    ),
    "segmentation": Task(
        "predict the class of each patch (mIoU)",
        "VOCdevkit/VOC2012, ADEChallengeData2016, or a folder with images/, masks/ and classes.txt",
        squeeze=True,
        size=None,
        run=_segmentation,
        images=_labeled_images,
        options=_add_segmentation,
    ),
    "depth": Task(
        "train the paper's linear probe of depth (RMSE)",
        "NYU depth v2: {scene}/{rgb_*.jpg, sync_depth_*.png} with nyu_train.txt and nyu_test.txt",
        squeeze=True,
        size=None,
        run=_depth,
        images=_depth_images,
        options=_add_depth,
    ),
    "correspondence": Task(
        "find key points of photos in others of the same kind of object (PCK)",
        "SPair-71k",
        squeeze=True,
        size=None,
        run=_correspondence,
        images=_pair_images,
    ),
    "propagation": Task(
        "follow objects through videos (J, F)",
        "DAVIS",
        squeeze=False,
        size=480,
        run=_propagation,
        images=_video_images,
        options=_add_propagation,
    ),
    "discovery": Task(
        "find the object of a photo without labels (LOST, CorLoc)",
        "VOCdevkit/VOC2007 or VOC2012",
        squeeze=False,
        size=None,
        run=_discovery,
        images=_located_images,
        options=_add_discovery,
    ),
}
