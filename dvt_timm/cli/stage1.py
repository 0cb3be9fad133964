"""The options of stage 1, which `fit` and `train --online` share, and what they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .console import CommandError, finite, positive, whole

if TYPE_CHECKING:
    from ..offline import ImageFitter, Solver

KINDS = ("jitter", "crops", "positions", "jitter+positions")
OPTIONS = (
    *("views", "view_pairs", "kind", "size", "keep_aspect", "layer", "edge_to_edge", "view_batch", "autocast"),
    *("zoom", "shift", "sides"),
    *("solver", "smoothness", "density", "prior_views", "calibrate", "field_steps"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of views and solver, which are `OPTIONS`."""
    _add_views(parser.add_argument_group("views"))
    _add_solver(parser.add_argument_group("solver"))


def _add_views(views: argparse._ArgumentGroup) -> None:
    views.add_argument(
        "--views",
        type=positive,
        metavar="N",
        help="views besides the whole image (default: 24 of jitter, 768 crops, 8 of positions)",
    )
    views.add_argument(
        "--view-pairs",
        type=whole,
        default=0,
        metavar="N",
        help="how many of these views are kept to train on (default: 0)",
    )
    views.add_argument("--kind", choices=KINDS, default="jitter", help="what views show (default: %(default)s)")
    views.add_argument(
        "--zoom",
        type=finite,
        nargs=2,
        metavar="X",
        help="least and largest side of jitter's windows, relative to the image (default: 0.6 1.25)",
    )
    views.add_argument(
        "--shift", type=finite, metavar="X", help="how far jitter moves, as a share of the image (default: 0.25)"
    )
    views.add_argument(
        "--sides",
        type=finite,
        nargs=2,
        metavar="X",
        help="least and largest side of windows of positions (default: 0.5 1)",
    )
    views.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="pixels of a view's sides, rounded to whole patches (default: the model's)",
    )
    views.add_argument(
        "--keep-aspect", action="store_true", help="do not squeeze images to a square; --size is the shorter side"
    )
    views.add_argument(
        "--layer", type=whole, default=-1, metavar="I", help="block to read, through the final norm (default: the last)"
    )
    views.add_argument("--edge-to-edge", action="store_true", help="place patches as the released code does")
    views.add_argument(
        "--view-batch", type=positive, default=8, metavar="N", help="views in a forward pass (default: %(default)s)"
    )
    views.add_argument(
        "--autocast",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the forward passes (default: bfloat16 on CUDA, float32 elsewhere)",
    )


def _add_solver(solver: argparse._ArgumentGroup) -> None:
    solver.add_argument(
        "--solver",
        choices=("least-squares", "neural-field", "mean"),
        help="what separates semantics from artifact (default: mean for --kind positions, least-squares otherwise)",
    )
    solver.add_argument(
        "--smoothness",
        type=_smoothness,
        metavar="X",
        help="how smooth the closed form makes F: a number, or auto (default: 1)",
    )
    solver.add_argument(
        "--density", type=finite, metavar="X", help="nodes of the closed form's F per patch and direction (default: 2)"
    )
    solver.add_argument(
        "--prior-views",
        type=finite,
        metavar="X",
        help="pull the closed form's G to what images share, or with --calibrate 0 to nothing, as much as so many "
        "views would (default: 8, or 0)",
    )
    solver.add_argument(
        "--calibrate",
        type=whole,
        metavar="N",
        help="find what artifacts share on so many images first (default: 40 of jitter, if there are as many, the "
        "images are squeezed to squares and --prior-views is not given; 0 otherwise)",
    )
    solver.add_argument(
        "--field-steps", type=positive, metavar="N", help="steps that fit the neural field (default: 25,000)"
    )


def _smoothness(text: str) -> float | str:
    try:
        return text if text == "auto" else finite(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from error


def check(arguments: argparse.Namespace) -> None:
    """Raise CommandError where an option is of the other solver."""
    solver = _solver_name(arguments)
    for option in ("smoothness", "density", "prior_views", "calibrate"):
        if getattr(arguments, option) is not None and solver != "least-squares":
            name = option.replace("_", "-")
            raise CommandError(f"--{name} is of --solver least-squares; leave it out, or choose that")
    if arguments.field_steps is not None and solver != "neural-field":
        raise CommandError("--field-steps is of --solver neural-field; leave it out, or choose that")
    for option in ("zoom", "shift"):
        if getattr(arguments, option) is not None and not arguments.kind.startswith("jitter"):
            raise CommandError(f"--{option} is of --kind jitter; leave it out, or choose that")
    if arguments.sides is not None and not arguments.kind.endswith("positions"):
        raise CommandError("--sides is of --kind positions; leave it out, or choose that")


def _solver_name(arguments: argparse.Namespace) -> str:
    default = "mean" if arguments.kind == "positions" else "least-squares"
    return str(arguments.solver or default)


def fitter_of(model: Any, arguments: argparse.Namespace, progress: bool) -> ImageFitter:
    """Make what solves an image, as the options say.

    Raises:
        CommandError: if they are out of range.
    """
    import torch

    from ..offline import ImageFitter

    try:
        return ImageFitter(
            model,
            solver_of(arguments),
            num_views=arguments.views,
            view_pairs=arguments.view_pairs,
            kind=arguments.kind,
            seed=arguments.seed,
            layer=arguments.layer,
            size=arguments.size,
            keep_aspect=arguments.keep_aspect,
            edge_to_edge=arguments.edge_to_edge,
            batch_size=arguments.view_batch,
            autocast=None if arguments.autocast is None else getattr(torch, arguments.autocast),
            progress=progress,
            **_given(zoom=arguments.zoom and tuple(arguments.zoom), shift=arguments.shift),
            **_given(sides=arguments.sides and tuple(arguments.sides)),
        )
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error


def solver_of(arguments: argparse.Namespace) -> Solver:
    """Make the solver; an option that is not given keeps the solver's own default."""
    from ..offline import LeastSquaresSolver, MeanSolver, NeuralFieldSolver

    name = _solver_name(arguments)
    if name == "mean":
        return MeanSolver()
    if name == "neural-field":
        return NeuralFieldSolver(seed=arguments.seed, progress=True, **_given(num_steps=arguments.field_steps))
    options = {name: getattr(arguments, name) for name in ("density", "smoothness", "prior_views")}
    return LeastSquaresSolver(**_given(**options))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
