"""The tasks of `dvt-timm evaluate`: what each takes, reads and runs. Data is imported when it is opened."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import CommandError, finite, positive, whole

if TYPE_CHECKING:
    from ..evaluate.report import Report
    from ..evaluate.rows import Rows

Arguments = argparse.Namespace
MEMORY = 25_000  # patches that train knn and patch


@dataclass(frozen=True)
class Task:
    """One of the tasks.

    Attributes:
        help: what it measures, in a line.
        data: what DATA is.
        open: gives the data; raises ValueError if it is laid out otherwise.
        run: makes the report of rows and data.
        images: names the images of the data that the projection may be fitted to; None where the task fits it itself.
        options: adds the task's own options.
        check: raises CommandError where they do not go together.
        squeeze: whether images are squeezed to squares by default.
        size: pixels of the shorter side by default, None for the model's own.
    """

    help: str
    data: str
    open: Callable[[Arguments], Any]
    run: Callable[[Rows, Any, Arguments], Report]
    images: Callable[[Any], Sequence[Path]] | None
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    check: Callable[[Arguments], None] = lambda arguments: None
    squeeze: bool = True
    size: int | None = None


def _open_photos(arguments: Arguments) -> list[Path]:
    from ..evaluate.tasks.correspondence import spread_over
    from .inputs import images_of

    found, skipped = images_of(arguments.data, arguments.out)
    if skipped:
        raise CommandError(f"{skipped} of the inputs named cannot be had; name others")
    return [found[i] for i in spread_over(len(found), arguments.limit)]


def _artifacts(rows: Rows, photos: list[Path], arguments: Arguments) -> Report:
    from ..evaluate import artifacts

    options = {"projection": arguments.projection, "mic_photos": arguments.mic, "seed": arguments.seed}
    return artifacts(rows, photos, progress=rows.team.rank == 0, **options)


def _add_artifacts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mic", type=whole, default=4, metavar="N", help="photos of which MIC is taken, seconds each (default: 4)"
    )


def _open_masks(arguments: Arguments) -> Any:
    from ..evaluate.data import open_masks

    return open_masks(arguments.data, share=arguments.share, seed=arguments.seed)


def _segmentation(rows: Rows, data: Any, arguments: Arguments) -> Report:
    from ..evaluate import SegmentationConfig, linear_segmentation, segmentation

    if arguments.protocol == "paper":
        config = SegmentationConfig(**_training(arguments))
        return linear_segmentation(rows, *data, config=config, **_trained(rows, arguments))
    return segmentation(
        rows,
        *data,
        protocol=arguments.protocol,
        memory=arguments.memory or MEMORY,
        seeds=range(arguments.seed, arguments.seed + (arguments.seeds or 1)),
        limit=arguments.limit,
        progress=rows.team.rank == 0,
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
        "--memory", type=positive, metavar="N", help=f"patches that train, of knn and patch (default: {MEMORY:,})"
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help="draws that count, of knn and patch (default: 1)")
    parser.add_argument(
        "--share", type=finite, default=0.5, metavar="X", help="images that train, where no list says (default: 0.5)"
    )


def _check_segmentation(arguments: Arguments) -> None:
    """Refuse options of another protocol."""
    is_paper = arguments.protocol == "paper"
    for name in ("memory", "seeds") if is_paper else ("steps", "train_batch"):
        if getattr(arguments, name) is not None:
            option = name.replace("_", "-")
            raise CommandError(f"--{option} is not of --protocol {arguments.protocol}; leave one of them out")


def _open_frames(arguments: Arguments) -> Any:
    from ..evaluate.data import NyuDepth

    return NyuDepth(arguments.data, "train"), NyuDepth(arguments.data, "test")


def _depth(rows: Rows, data: Any, arguments: Arguments) -> Report:
    from ..evaluate import DepthConfig, depth

    config = DepthConfig(**_training(arguments))
    return depth(rows, *data, config=config, as_released=arguments.as_released, **_trained(rows, arguments))


def _add_depth(parser: argparse.ArgumentParser) -> None:
    _add_training(parser, 38_400)
    parser.add_argument(
        "--as-released",
        action="store_true",
        help="train as the authors' code does: a loss without gradients, 255 m where a rotation leaves no depth",
    )


def _add_training(parser: argparse.ArgumentParser, steps: int) -> None:
    parser.add_argument("--steps", type=positive, metavar="N", help=f"of the paper's probe (default: {steps:,})")
    parser.add_argument("--train-batch", type=positive, metavar="N", help="images of its steps (default: 16)")


def _training(arguments: Arguments) -> dict[str, Any]:
    """Read the numbers of a probe's training; those that are not given are the authors'."""
    given = {"steps": arguments.steps, "batch_size": arguments.train_batch}
    return {name: value for name, value in given.items() if value is not None}


def _trained(rows: Rows, arguments: Arguments) -> dict[str, Any]:
    return {"folder": arguments.out, "seed": arguments.seed, "limit": arguments.limit, "progress": rows.team.rank == 0}


def _open_pairs(arguments: Arguments) -> Any:
    from ..evaluate.data import SpairPairs

    return SpairPairs(arguments.data)


def _correspondence(rows: Rows, pairs: Any, arguments: Arguments) -> Report:
    from ..evaluate import correspondence

    return correspondence(rows, pairs, limit=arguments.limit, progress=rows.team.rank == 0)


def _open_videos(arguments: Arguments) -> Any:
    from ..evaluate.data import DavisVideos

    return DavisVideos(arguments.data, year=arguments.year)


def _propagation(rows: Rows, videos: Any, arguments: Arguments) -> Report:
    from ..evaluate import propagation

    options = {name: getattr(arguments, name) for name in ("neighbors", "temperature", "context", "radius")}
    return propagation(
        rows, videos, limit=arguments.limit, frames=arguments.frames, progress=rows.team.rank == 0, **options
    )


def _add_propagation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--year", choices=("2016", "2017"), help="whose lists count (default: 2017, if it is there)")
    parser.add_argument("--frames", type=positive, metavar="N", help="take the first ones of each video (default: all)")
    parser.add_argument("--neighbors", type=positive, default=5, metavar="K", help="(default: %(default)s)")
    parser.add_argument("--temperature", type=finite, default=0.1, metavar="T", help="(default: %(default)s)")
    parser.add_argument("--context", type=whole, default=7, metavar="N", help="frames looked back at (default: 7)")
    parser.add_argument("--radius", type=whole, default=12, metavar="N", help="patches around (default: %(default)s)")


def _open_boxes(arguments: Arguments) -> Any:
    from ..evaluate.data import VocBoxes

    return VocBoxes(arguments.data, arguments.split)


def _discovery(rows: Rows, photos: Any, arguments: Arguments) -> Report:
    from ..evaluate import discovery

    return discovery(rows, photos, limit=arguments.limit, bias=arguments.bias, progress=rows.team.rank == 0)


def _add_discovery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="trainval", metavar="NAME", help="list of photos (default: %(default)s)")
    parser.add_argument(
        "--bias", type=finite, default=0.0, metavar="X", help="added to LOST's scalar products (default: 0)"
    )


TASKS = {
    "artifacts": Task(
        "measure how much of a patch's position is in its features, on any photos, without labels",
        "photos: JPEG, PNG, WebP, folders, or .txt lists",
        open=_open_photos,
        run=_artifacts,
        images=None,
        options=_add_artifacts,
    ),
    "segmentation": Task(
        "predict the class of each patch or pixel (mIoU)",
        "VOCdevkit/VOC2012, ADEChallengeData2016, or a folder with images/ and masks/ (classes.txt for colors)",
        open=_open_masks,
        run=_segmentation,
        images=lambda data: [labeled.image for labeled in data[0]],
        options=_add_segmentation,
        check=_check_segmentation,
    ),
    "depth": Task(
        "train the paper's linear probe of depth (RMSE)",
        "NYU depth v2: {scene}/{rgb_*.jpg, sync_depth_*.png} with nyu_train.txt and nyu_test.txt",
        open=_open_frames,
        run=_depth,
        images=lambda data: [data[0][i].image for i in range(len(data[0]))],
        options=_add_depth,
    ),
    "correspondence": Task(
        "find key points of photos in others of the same kind of object (PCK)",
        "SPair-71k",
        open=_open_pairs,
        run=_correspondence,
        images=lambda pairs: sorted(pairs.folder.glob("JPEGImages/*/*.jpg")),
    ),
    "propagation": Task(
        "follow objects through videos (J, F)",
        "DAVIS",
        open=_open_videos,
        run=_propagation,
        images=lambda videos: [frame for i in range(len(videos)) for frame in videos[i].frames],
        options=_add_propagation,
        squeeze=False,
        size=480,
    ),
    "discovery": Task(
        "find the object of a photo without labels (LOST, CorLoc)",
        "VOCdevkit/VOC2007 or VOC2012",
        open=_open_boxes,
        run=_discovery,
        images=lambda photos: photos.images,
        options=_add_discovery,
        squeeze=False,
    ),
}
