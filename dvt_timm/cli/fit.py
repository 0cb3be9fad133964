"""`dvt-timm fit`: stage 1 on many images, into a store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import stage1
from .console import CommandError, Commands, add_large_images, add_model_arguments, quiet_hub, report, whole

if TYPE_CHECKING:
    from PIL import Image

    from ..offline import Decomposition

PANELS = "panels"  # folder of the pictures, within the store


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "fit",
        help="take the features of images apart: clean ones into a store, for training or as they are",
        description="Stage 1 of Denoising Vision Transformers, offline, for every image: raw and clean features into "
        "a store. After an interruption, run the same again. Exit status 1 if an image had to be skipped. On several "
        "GPUs: accelerate launch -m dvt_timm fit ...",
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
        "--out", type=Path, default=Path("dvt-store"), metavar="STORE", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--panel", action="store_true", help="draw each new decomposition into STORE/panels")
    parser.add_argument("--half", action="store_true", help="store float16 rather than float32")
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="decides which views are drawn (default: %(default)s)"
    )
    add_large_images(parser)
    stage1.add_options(parser)
    parser.set_defaults(run=run, check=stage1.check)


def run(arguments: argparse.Namespace) -> int:
    """Fill the store."""
    from ..offline import Team, fit_store, open_store
    from .inputs import find_listed
    from .models import load_model

    quiet_hub()
    team = Team(arguments.device)
    found = find_listed(arguments.paths, arguments.out / PANELS)
    missing, targets = found.missing, found.targets
    model = load_model(arguments.model, arguments.weights, arguments.device or team.device)
    failures = fit_store(
        stage1.fitter_of(model, arguments, progress=len(targets) == 1),
        [*missing, *targets],
        arguments.out,
        calibrate=arguments.calibrate,
        half=arguments.half,
        team=team,
        finished=_panel_writer(model, targets) if arguments.panel else None,
        skipped=lambda reason: report(f"skipped {reason}"),
        progress=len(targets) > 1 and team.rank == 0,
    )
    if team.rank != 0:
        return 0  # another status than the first one's would end that before it is done
    print(f"{arguments.out}: {len(open_store(arguments.out))} images")
    skipped = len(failures) + len(found.unreadable)
    if skipped:
        named = len(targets) + len(missing) + len(found.unreadable)
        print(f"dvt-timm: {skipped} of {named} inputs skipped", file=sys.stderr)
    return 1 if skipped else 0


def _panel_writer(model: Any, targets: dict[Path, Path]) -> Callable[[Path, Image.Image, Decomposition], None]:
    import numpy as np

    from .. import viz
    from .._util.images import save_picture
    from ..caption import caption_of
    from ..viz.arrays import channels_first

    def write(path: Path, picture: Image.Image, decomposition: Decomposition) -> None:
        parts = (decomposition.raw, decomposition.semantics, decomposition.artifact, decomposition.residual)
        maps = map(channels_first, parts)
        target = targets[path].with_name(f"{targets[path].name}.png")
        caption = caption_of(model, decomposition.raw.shape[:2], _figures(decomposition.stats))
        try:
            save_picture(viz.decomposition_panel(np.asarray(picture), *maps, caption=caption), target, caption)
        except OSError as error:
            raise CommandError(
                f"cannot write {target}: {error}; finished images are kept, run the same again"
            ) from error

    return write


def _figures(stats: dict[str, Any]) -> list[str]:
    """Say what a fit is made of, and what it does not explain of its views' variance, where the solver knows."""
    figures = [f"raw features, {stats['solver']} of {stats['num_views']} views"]
    if "unexplained" in stats:
        figures.append(f"unexplained: {100 * stats['unexplained']:.3g} % of the views' variance")
    return figures
