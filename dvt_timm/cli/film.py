"""`dvt-timm film`: a film of a clip's features, raw and denoised."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import (
    CommandError,
    Commands,
    add_large_images,
    add_model_arguments,
    add_size,
    finite,
    positive,
    quiet_hub,
)


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "film",
        help="write a film of a clip's features, raw and denoised: position artifacts stand still in it",
        description="Write a clip with the picture, its raw and denoised features and what was removed side by side, "
        "in one PCA basis for the whole film, and print which share of their grain is locked to the frame. Clips "
        "are read and written by PyAV (pip install 'dvt-timm[video]'); GIFs and folders of frames need nothing.",
    )
    parser.add_argument("source", type=Path, metavar="CLIP_OR_FOLDER", help="a clip, a GIF, or a folder of frames")
    add_model_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".mp4, .m4v, .mov, .mkv or .gif, or a folder for PNG frames; it must not exist",
    )
    add_size(parser)
    parser.add_argument(
        "--positions", type=positive, metavar="K", help="denoise without a head: means over K views, in K + 1 passes"
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="take one frame of N (default: %(default)s)"
    )
    parser.add_argument("--fps", type=finite, metavar="F", help="frames a second to write (default: the source's)")
    add_large_images(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the film."""
    from ..films import film
    from .models import load_model

    quiet_hub()
    model = load_model(arguments.model, arguments.weights, arguments.device, arguments.positions)
    options = {"size": arguments.size, "every": arguments.every, "fps": arguments.fps, "progress": True}
    try:
        done = film(model, arguments.source, arguments.out, **options)
    except FileExistsError:
        raise
    except OSError as error:
        raise CommandError(f"cannot write {arguments.out}: {error}") from error
    print(arguments.out)
    if done.frames == 1:
        print("what is locked to the frame shows from two frames on, and there is one")
        return 0
    raw, denoised = (f"{100 * share:.3g} %" for share in (done.raw_locked, done.denoised_locked))
    print(f"locked to the frame, over {done.frames} frames: {raw} of the grain of raw features, {denoised} denoised")
    return 0
