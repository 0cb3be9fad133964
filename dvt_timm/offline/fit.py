"""From an image to its decomposition: views, then a solver."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from os import PathLike
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._util.modules import uncompiled
from .least_squares import LeastSquaresSolver, PreparedSolver
from .mean import MeanSolver
from .neural_field import NeuralFieldSolver
from .solution import Decomposition, Views, collect
from .views import DEFAULT_VIEWS, ViewStream, check_arguments, default_autocast, moves_positions, sample_views

# How many factorized systems are kept, one per size of the views. At 37 x 37 patches each takes 0.3 GB, 0.5 with pairs.
PREPARED = 4


class Solver(Protocol):
    """What `fit_image` takes: `LeastSquaresSolver`, `NeuralFieldSolver`, or one of your own."""

    def fit(self, views: Iterable[Views]) -> Decomposition:
        """Decompose the image that batches of views show; the last view is the whole image."""


class ViewPairs(NamedTuple):
    """What a head can learn from an image and N of its views: [1 + N, h, w, C] both, the whole image first."""

    raw: Tensor  # features
    clean: Tensor  # the semantics where their patches lie


class ImageFitter:
    """Stage 1 on one image after the other, with one factorization for all whose views have the same size.

    Args:
        model: what `sample_views` takes.
        solver: `MeanSolver()` for views of kind "positions", `LeastSquaresSolver()` for others, by default.
        view_pairs: how many views of each image `with_pairs` gives besides the whole image.
        views: further arguments of `sample_views`.

    Raises:
        TypeError: if the solver has no `fit`, and as `sample_views` does.
        ValueError: as `sample_views` does; for a solver that does not go with the views; for fewer views than
            `smoothness="auto"` or `view_pairs` need.
    """

    def __init__(self, model: Any, solver: Solver | None = None, *, view_pairs: int = 0, **views: Any) -> None:
        signature(sample_views).bind(model, None, **views)
        check_arguments(uncompiled(model), **views)  # complains before any image is read
        self.model, self.views, self.view_pairs = uncompiled(model), views, view_pairs
        kind = self.settings["kind"]
        self.solver: Solver = default_solver(kind) if solver is None else solver
        if not hasattr(self.solver, "fit"):
            raise TypeError(f"solver must be one like LeastSquaresSolver(), got {solver!r}")
        of_places = isinstance(self.solver, LeastSquaresSolver | NeuralFieldSolver)
        if of_places if kind == "positions" else isinstance(self.solver, MeanSolver):
            raise ValueError(
                f"views of kind {kind!r} do not go with {self.solver!r}: MeanSolver() is for positions, whose patches "
                "show the same places in every view, and for nothing else; leave solver out"
            )
        if isinstance(self.solver, LeastSquaresSolver):
            self.solver.check_num_views(self.settings["num_views"] + 1)
        if not 0 <= view_pairs <= self.settings["num_views"]:
            raise ValueError(f"view_pairs must be 0..{self.settings['num_views']}, the views sampled, got {view_pairs}")
        if view_pairs and self.settings["num_views"] < 2:
            raise ValueError("the target of a view comes from the others; with view_pairs sample at least 2 views")
        self._prepared: OrderedDict[tuple[int, int], PreparedSolver] = OrderedDict()

    @property
    def settings(self) -> dict[str, Any]:
        """What the views are, JSON-friendly: the arguments of `sample_views` that change them, defaults filled in."""
        given = {**{name: p.default for name, p in signature(sample_views).parameters.items()}, **self.views}
        kind = given["kind"]
        ranges = [*(("zoom", "shift") if kind.startswith("jitter") else ()), *(("sides",) * moves_positions(kind))]
        return {
            **{name: given[name] for name in ("kind", "keep_aspect", "edge_to_edge")},
            **{name: np.asarray(given[name], dtype=float).tolist() for name in ranges},
            **{name: int(given[name]) for name in ("seed", "layer")},  # NumPy's are not JSON-friendly
            "num_views": int(given["num_views"] or DEFAULT_VIEWS[kind]),
            "size": self._size_of(given),
            "autocast": str(given["autocast"] or default_autocast(self.model)).removeprefix("torch."),
        }

    def _size_of(self, given: dict[str, Any]) -> int | list[int]:
        """Give the pixels of both sides, of the shorter one (`keep_aspect`), or (H, W) of a model that is no square."""
        own = self.model.patch_embed.img_size
        if given["size"] is None and not given["keep_aspect"] and own[0] != own[1]:
            return list(own)
        return int(given["size"] or min(own))

    def __call__(self, image: Image.Image | str | PathLike[str]) -> Decomposition:
        """Decompose an image, or the one at a path; raises as `sample_views` and the solver do."""
        stream = self.views_of(image)
        return self._solver(stream).fit(stream)

    def with_solver(self, solver: Solver) -> ImageFitter:
        """Give a fitter of the same views with another solver; raises as the class does."""
        return ImageFitter(self.model, solver, view_pairs=self.view_pairs, **self.views)

    def views_of(self, image: Image.Image | str | PathLike[str]) -> ViewStream:
        """Give the views that the solver will see, none of them computed yet; raises as `sample_views` does."""
        return sample_views(self.model, image, **self.views)

    def raw(self, image: Image.Image | str | PathLike[str]) -> Tensor:
        """Compute the features of the whole image alone, [h, w, C]; raises as `sample_views` does."""
        return collect(sample_views(self.model, image, **{**self.views, "num_views": 1})).features[-1]

    def with_pairs(self, image: Image.Image | str | PathLike[str], seed: int) -> tuple[Decomposition, ViewPairs]:
        """Decompose an image, and give the pairs to train on: of itself, and of `view_pairs` views drawn with a seed.

        The closed form leaves a view out of its own target (`PreparedSolver.semantics_without`): it would bring a part
        of its artifacts along. Other solvers, and `smoothness="auto"`, take the semantics as they are, and so does an
        image alone (`view_pairs=0`).
        """
        if not self.view_pairs:
            solution = self(image)
            return solution, ViewPairs(solution.raw[None], solution.semantics[None])
        stream = self.views_of(image)
        whole = stream.num_views - 1
        drawn = np.random.default_rng(seed).choice(whole, self.view_pairs, replace=False)
        wanted = [*sorted(drawn.tolist()), whole]
        kept: list[Views] = []
        solver = self._solver(stream)
        solution = solver.fit(_keeping(stream, wanted, kept))
        views = collect(kept)
        if isinstance(solver, PreparedSolver):
            clean = torch.stack(
                [solver.semantics_without(i, raw, solution) for i, raw in zip(wanted, views.features, strict=True)]
            )
        else:
            clean = solution.semantics_at(views.xy)
        return solution, ViewPairs(views.features.roll(1, dims=0), clean.roll(1, dims=0))

    def _solver(self, stream: ViewStream) -> Solver:
        """Choose the solver, prepared for these views if it can be."""
        if not isinstance(self.solver, LeastSquaresSolver) or self.solver.smoothness == "auto":
            return self.solver
        if stream.size not in self._prepared:
            while len(self._prepared) >= PREPARED:
                self._prepared.popitem(last=False)
            self._prepared[stream.size] = self.solver.prepare(stream.xy)
        self._prepared.move_to_end(stream.size)
        return self._prepared[stream.size]


def default_solver(kind: str) -> Solver:
    """Make the solver that goes with views of a kind."""
    return MeanSolver() if kind == "positions" else LeastSquaresSolver()


def fit_image(
    model: Any,
    image: Image.Image | str | PathLike[str],
    *,
    solver: Solver | None = None,
    num_views: int | None = None,
    seed: int = 0,
    **views: Any,
) -> Decomposition:
    """Take one image's features apart: semantics, shared artifact, residual.

    >>> model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True).eval()
    >>> clean = fit_image(model, "photo.jpg").semantics  # [37, 37, 384]

    Args:
        model: a timm `VisionTransformer` or `Eva` in evaluation mode, denoised or not: its raw features are taken.
        image: an image of any mode, or the path of one.
        solver: `MeanSolver()` for views of kind "positions", `LeastSquaresSolver()` for others, by default.
        num_views: besides the whole image; 24 (jitter), 768 (crops) or 8 (positions) by default.
        seed: decides which views are drawn.
        views: further arguments of `sample_views`: kind, layer, size, keep_aspect, ...

    Returns:
        The decomposition, on the model's device.

    Raises:
        ImageError: if the file is no image.
        TypeError, ValueError: as `sample_views` and the solver.
    """
    return ImageFitter(model, solver, num_views=num_views, seed=seed, **views)(image)


def _keeping(views: Iterable[Views], wanted: Sequence[int], kept: list[Views]) -> Iterator[Views]:
    """Pass the batches on, and keep the wanted views of each."""
    start = 0
    for batch in views:
        here = [i - start for i in wanted if start <= i < start + len(batch)]
        if here:
            kept.append(Views(batch.features[here], batch.xy[here]))
        start += len(batch)
        yield batch
