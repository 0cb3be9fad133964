"""`dvt-timm debias`: a projection that takes the place of a head, without training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import (
    CommandError,
    Commands,
    add_large_images,
    add_model_arguments,
    add_size,
    positive,
    quiet_hub,
    report,
)

if TYPE_CHECKING:
    from torch import Tensor

FEW = 50  # photos, whose content still tells places


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "debias",
        help="make a projection that stands in for a head, without training",
        description="Find the dimensions of a model's features that tell the place of a patch, and write the "
        "projection that takes them away to HEAD, as save_head does: for denoiser=HEAD and `dvt-timm push HEAD "
        "user/repo`. One pass of each photo. Exit status 1 if an image had to be skipped.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="IMAGE_FOLDER_OR_LIST",
        help="a hundred photos or more: JPEG, PNG, WebP, folders, or .txt lists: a path a line, relative to the list",
    )
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="HEAD", help="folder to write to")
    parser.add_argument(
        "--rank", type=positive, default=32, metavar="N", help="dimensions to take away (default: %(default)s)"
    )
    add_size(parser)
    add_large_images(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fit the projection and write it."""
    from ..checkpoints.heads import save_head
    from ..names import name_of
    from ..offline.run import own_weights_sha256
    from ..projection import PositionProjection
    from .inputs import images_of
    from .models import load_model

    _check_folder(arguments.out)
    quiet_hub()
    images, missing = images_of(arguments.paths, arguments.out)
    model = load_model(arguments.model, arguments.weights, arguments.device)
    if arguments.rank >= model.embed_dim:
        raise CommandError(f"--rank must be below {model.embed_dim}, the channels of {arguments.model}")
    skipped: list[str] = []
    projection = PositionProjection.fit(_maps(model, images, arguments.size, skipped), arguments.rank)
    save_head(projection, arguments.out, base=name_of(model), base_sha256=own_weights_sha256(model))
    count, failed = len(images) - len(skipped), len(skipped) + missing
    if count < FEW:
        report(f"{count} photos are few: dimensions of their content go as well; take a hundred or more")
    print(f"{arguments.out}: {arguments.rank} of {model.embed_dim} dimensions, found on {count} photos")
    if failed:
        print(f"dvt-timm: {failed} of {len(images) + missing} inputs skipped", file=sys.stderr)
    return 1 if failed else 0


def _check_folder(folder: Path) -> None:
    """Raise CommandError if a folder holds what is no projection, or what training left."""
    from .._util.files import CONFIG_NAME, METRICS, VERDICT, read_json

    config = folder / CONFIG_NAME
    is_other = config.is_file() and "rank" not in read_json(config)
    if is_other or any((folder / name).exists() for name in (METRICS, VERDICT)):
        raise CommandError(f"{folder} holds a head or model that is no projection; choose another folder")


def _maps(model: Any, images: list[Path], size: int | None, skipped: list[str]) -> Iterator[Tensor]:
    """Give the raw map [h, w, C] of every image that can be read; the others are reported and noted."""
    import torch
    from tqdm import tqdm

    from .._util.images import ImageError, check_aspect, read_image
    from ..features import feature_maps, preprocess

    for path in tqdm(images, unit="image", disable=None):
        try:
            photo = read_image(path)
            check_aspect(path, photo)
        except ImageError as error:
            skipped.append(str(path))
            report(f"skipped {error}")
            continue
        with torch.inference_mode():
            yield feature_maps(model, preprocess(model, photo, size)).raw[0].permute(1, 2, 0)
