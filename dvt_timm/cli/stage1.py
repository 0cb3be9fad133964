"""The options of stage 1, which `fit` and `train --online` share, and what they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .console import CommandError, positive

if TYPE_CHECKING:
    from ..offline import ImageFitter, Solver

OPTIONS = (
    *("views", "view_pairs", "kind", "size", "keep_aspect", "layer", "edge_to_edge", "view_batch", "autocast"),
    *("solver", "smoothness", "density", "field_steps"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of views and solver, which are `OPTIONS`."""
    _add_views(parser.add_argument_group("views"))
    _add_solver(parser.add_argument_group("solver"))


def _add_views(views: argparse._ArgumentGroup) -> None:
    views.add_argument("--views", type=positive, metavar="N", help="besides the whole image (jitter 24, crops 768)")
    views.add_argument("--view-pairs", type=int, default=0, metavar="N", help="of them, to train on too (default: 0)")
    views.add_argument("--kind", choices=("jitter", "crops"), default="jitter", help="(default: %(default)s)")
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
        "--layer", type=int, default=-1, metavar="I", help="block to read, through the final norm (default: the last)"
    )
    views.add_argument("--edge-to-edge", action="store_true", help="place patches as the released code does")
    views.add_argument(
        "--view-batch", type=positive, default=8, metavar="N", help="views at once (default: %(default)s)"
    )
    views.add_argument(
        "--autocast",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the forward passes (default: bfloat16 on CUDA, float32 elsewhere)",
    )


def _add_solver(solver: argparse._ArgumentGroup) -> None:
    solver.add_argument(
        "--solver", choices=("least-squares", "neural-field"), default="least-squares", help="(default: %(default)s)"
    )
    solver.add_argument(
        "--smoothness", type=_smoothness, metavar="X", help="of the closed form: a number, or auto (default: 1)"
    )
    solver.add_argument(
        "--density", type=float, metavar="X", help="nodes per patch and direction of the closed form (default: 2)"
    )
    solver.add_argument("--field-steps", type=positive, metavar="N", help="of the neural field (default: 25,000)")


def _smoothness(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from error


def check(arguments: argparse.Namespace) -> None:
    """Raise CommandError where an option is of the other solver."""
    closed = arguments.smoothness is not None or arguments.density is not None
    if arguments.solver == "neural-field" and closed:
        raise CommandError("--smoothness and --density are of --solver least-squares; leave them out, or choose that")
    if arguments.solver == "least-squares" and arguments.field_steps is not None:
        raise CommandError("--field-steps is of --solver neural-field; leave it out, or choose that")


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
        )
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error


def solver_of(arguments: argparse.Namespace) -> Solver:
    """Make the solver; an option that is not given keeps the solver's own default."""
    from ..offline import LeastSquaresSolver, NeuralFieldSolver

    if arguments.solver == "neural-field":
        return NeuralFieldSolver(seed=arguments.seed, progress=True, **_given(num_steps=arguments.field_steps))
    return LeastSquaresSolver(**_given(density=arguments.density, smoothness=arguments.smoothness))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
