"""`dvt-timm explore`: a page to explore the raw and denoised features of photos with."""

from __future__ import annotations

import argparse
from pathlib import Path

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

LIMIT = 200  # photos: what a page takes


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "explore",
        help="make a page to explore raw and denoised features with",
        description="Make one HTML file, some 360 KB a photo, that opens from disk without server and network: PCA, "
        "clusters, norms and what was removed, raw beside denoised over each photo, and the similarity of any patch to "
        "those of this photo and of a second one. Exit status 1 if a photo had to be skipped.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="JPEG, PNG, WebP, folders, or .txt lists"
    )
    add_model_arguments(parser)
    parser.add_argument("--denoiser", metavar="HEAD", help="a head for the model: folder, file or hf-hub:user/repo")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("explore.html"),
        metavar="PAGE",
        help=".html file to write (default: %(default)s)",
    )
    add_size(parser)
    parser.add_argument(
        "--limit",
        type=positive,
        default=LIMIT,
        metavar="N",
        help=f"of more photos take N, spread evenly, at most {LIMIT} (default: %(default)s)",
    )
    parser.add_argument(
        "--components",
        type=positive,
        default=64,
        metavar="K",
        help="of each map, 32..64: more are nearer to the exact similarities, fewer take less room (default: 64)",
    )
    add_large_images(parser)
    parser.set_defaults(run=run, check=_check)


def _check(arguments: argparse.Namespace) -> None:
    """Raise CommandError where a page would be too large, or is no file."""
    if arguments.limit > LIMIT:
        raise CommandError(f"a page takes at most {LIMIT} photos, got --limit {arguments.limit}; make several pages")
    if arguments.out.is_dir():
        raise CommandError(f"{arguments.out} is a folder, and a page is a file; choose another --out")
    if arguments.out.suffix.lower() != ".html":  # a photo that is named by mistake, say, would be replaced
        raise CommandError(f"{arguments.out}: a page is an .html file; choose another --out")


def run(arguments: argparse.Namespace) -> int:
    """Make the page, and print its path."""
    from ..evaluate.tasks.correspondence import spread_over
    from ..explore import explorer
    from .inputs import images_of
    from .models import load_model

    quiet_hub()
    found, missing = images_of(arguments.paths, arguments.out)
    photos = [found[i] for i in spread_over(len(found), arguments.limit)]
    if len(photos) < len(found):
        report(f"{len(photos)} of {len(found)} photos are taken, spread evenly; --limit says how many")
    model = load_model(arguments.model, arguments.weights, arguments.device)
    if arguments.denoiser is not None:
        _put_on(model, arguments.denoiser)
    page = explorer(model, photos, size=arguments.size, components=arguments.components, progress=True)
    for reason in page.skipped.values():
        report(f"skipped {reason}")
    page.save(arguments.out)
    print(arguments.out)
    return 1 if page.skipped or missing else 0


def _put_on(model: object, head: str) -> None:
    from .. import denoise

    try:
        denoise(model, head)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot load --denoiser {head}: {error}") from error
