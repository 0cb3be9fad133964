"""Stage 1 in closed form: F on a grid, G per patch and a constant per view, in one linear least-squares problem.

`min over F, G, o:  sum_vp || B(x_vp) F + G_p + o_v - y_vp ||^2 + lambda ||grad F||^2 + kappa ||G - G_0||^2`, with G and
o of mean 0. How it is solved: `normal_equations`. The prior on G is ours: without it F and G share slow gradients, and
a slope in one is undone in the other. So is the constant per view: every view shifts all of its features a little, with
its scale and its context. That they have mean 0 puts F on the level that the views agree on, which tells images apart
better than that of the whole image, one view among them.

Letters: V views, P = h * w patches, K = R_y * R_x nodes of F, C channels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .grid_field import GridField
from .normal_equations import Layout, Solve, conjugate_gradients, data_matrix, factorized, left_out
from .solution import Decomposition, Views, collect, unexplained
from .sums import Sums, add_up, first_of

CANDIDATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # smoothness="auto" chooses among these
HELD_OUT = 4  # as many views choose among them
LEFT_OUT_BYTES = 1 << 29


@dataclass(frozen=True)
class PreparedSolver:
    """The factorized system of one set of views, for any number of images; made by `LeastSquaresSolver.prepare`."""

    layout: Layout
    smoothness: float
    solve: Solve
    prior_artifact: Tensor | None = field(default=None, repr=False)
    # of views once left out, the last one used last: [P, P] float32
    _left_out: OrderedDict[int, Tensor] = field(default_factory=OrderedDict, repr=False)

    @torch.no_grad()
    def fit(self, views: Iterable[Views]) -> Decomposition:
        """Decompose an image.

        Args:
            views: batches of views at the places that were prepared for, in the same order.

        Raises:
            ValueError: if they lie elsewhere, their grids differ, or a feature is not finite.
        """
        return self._finish(add_up(views, self.layout.nodes, self.prior_artifact))

    @torch.no_grad()
    def semantics_without(self, view: int, features: Tensor, solution: Decomposition) -> Tensor:
        """Read F as all views but one have it, at the places of that one's patches: what a head can learn to predict.

        What a fit without the view gives, up to rounding in float32, for one product with a [P, P] matrix, which is
        made when the view is first left out: at 37 x 37 patches 7.5 MB. The last 0.5 GB of them are kept.

        Args:
            view: its index.
            features: [h, w, C], its features.
            solution: what `fit` made of all views.

        Returns:
            [h, w, C].

        Raises:
            ValueError: if fewer than two views remain, there is no such view, or the features have another shape than
                the solution's.
        """
        V = len(self.layout.xy)
        if V < 3:
            raise ValueError(
                f"without one of {V} views nothing is left to compare; sample at least 2 and the whole image"
            )
        if not 0 <= view < V:
            raise ValueError(f"view must be 0..{V - 1}, got {view}")
        if features.shape != solution.artifact.shape:
            raise ValueError(
                f"features must be [h, w, C] = {list(solution.artifact.shape)} as the solution's, got "
                f"{list(features.shape)}"
            )
        semantics = solution.semantics_at(self.layout.xy[view]).reshape(features.shape)
        rest = features - semantics - solution.artifact
        offset = rest.mean(dim=(0, 1))
        change = self._without(view).to(features.dtype) @ (rest - offset).flatten(0, 1)
        return semantics - offset / (V - 1) - change.reshape(features.shape)

    def _without(self, view: int) -> Tensor:  # [P, P]
        if view not in self._left_out:
            self._left_out[view] = left_out(self.layout, self.solve, view).float()
            while len(self._left_out) > 1 and sum(kept.nbytes for kept in self._left_out.values()) > LEFT_OUT_BYTES:
                self._left_out.popitem(last=False)
        self._left_out.move_to_end(view)
        return self._left_out[view]

    def _finish(self, sums: Sums) -> Decomposition:
        xy = sums.xy
        if xy.shape != self.layout.xy.shape or not torch.equal(xy, self.layout.xy):
            raise ValueError(
                f"these {len(xy)} views do not lie where the prepared {len(self.layout.xy)} do; sample them with the "
                "same arguments, or prepare again"
            )
        V, P = xy.shape[:2]
        per_patch, per_view = sums.patches / V, torch.cat(sums.views)
        total = per_view.mean(dim=0)
        over_views, over_patches = self.layout.per_patch.to(sums.dtype), self.layout.per_view.to(sums.dtype)
        share = self.layout.share
        sides = sums.field - share * (over_views.T @ (per_patch - total)) - over_patches.T @ per_view
        field = self.solve(sides)  # [K, C]
        artifact = per_patch - over_views @ field / V
        artifact = share * (artifact - artifact.mean(dim=0))

        shared = V * float((per_patch - total).double().square().sum())  # of all views, by patch
        power = sums.power - shared - P * float(per_view.double().square().sum())
        cost = power + (1 - share) * shared - float((field.double() * sides).sum())
        prior = self.layout.prior_views * float(artifact.double().square().sum())
        error = cost - self.smoothness * self._roughness(field) - prior

        artifact = artifact.reshape(sums.grid)
        artifact = artifact if sums.prior is None else artifact + sums.prior.to(artifact)
        field = field + sums.reference + (per_view - over_patches @ field / P).mean(dim=0)  # so that o has mean 0
        semantics_at = GridField(field.reshape(*self.layout.nodes, -1))
        semantics = semantics_at(xy[-1]).reshape(sums.grid)
        stats = {
            "solver": "least_squares",
            "num_views": V,
            "nodes": list(self.layout.nodes),
            "smoothness": self.smoothness,
            "prior_views": self.layout.prior_views,
            "unexplained": max(error, 0.0) / power if power > 0 else 0.0,
        }
        return Decomposition(sums.last, semantics, artifact, sums.last - semantics - artifact, stats, semantics_at)

    def _roughness(self, field: Tensor) -> float:
        grid = field.reshape(*self.layout.nodes, -1)
        return float(grid.diff(dim=0).square().sum() + grid.diff(dim=1).square().sum())


@dataclass(frozen=True)
class LeastSquaresSolver:
    """Stage 1 in closed form: `min over F, G, o:  sum_vp || B(x_vp) F + G_p + o_v - y_vp ||^2 + lambda ||grad F||^2 +
    kappa ||G - G_0||^2`.

    F lives on a grid of nodes, bilinear in between; G and the constants o of the views have mean 0.

    Attributes:
        density: nodes of F per patch, in each direction, 0.5..16.
        smoothness: lambda, over 0 and below 1e6; or "auto": of a few values the one that predicts held-out views best.
        prior_views: kappa, 0..1e6: as much as so many views of that artifact alone, G is pulled to G_0; 0 for none.
        prior_artifact: G_0, [h, w, C], as `shared_artifact` finds it; 0 by default.

    Raises:
        ValueError: on values out of range.
    """

    density: float = 2.0
    smoothness: float | Literal["auto"] = 1.0
    prior_views: float = 0.0
    prior_artifact: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.density, int | float) and 0.5 <= self.density <= 16):
            raise ValueError(f"density must be 0.5..16 nodes per patch, got {self.density!r}")
        if not (isinstance(self.prior_views, int | float) and 0 <= self.prior_views <= 1e6):
            raise ValueError(f"prior_views must be 0..1e6, got {self.prior_views!r}")
        if self.prior_artifact is not None and not self.prior_views:
            raise ValueError("prior_artifact counts for nothing with prior_views=0; pass prior_views=8, say")
        if self.smoothness != "auto" and not (isinstance(self.smoothness, int | float) and 0 < self.smoothness < 1e6):
            raise ValueError(f"smoothness must be a positive number or 'auto', got {self.smoothness!r}")

    @torch.no_grad()
    def fit(self, views: Iterable[Views]) -> Decomposition:
        """Decompose an image.

        Args:
            views: `Views`, or batches of them (`sample_views`); the last view is the whole image.

        Raises:
            ValueError: if there are fewer than two views, all lie at the same place, their grids differ, or a feature
                is not finite.
        """
        if self.smoothness == "auto":
            return self._fit_auto(views)
        first, batches = first_of(views)
        sums = add_up(batches, self._nodes(first.features.shape[1:3]), self.prior_artifact)
        return self._prepare(sums.xy, first.features.shape[1:3])._finish(sums)

    def prepare(self, xy: Tensor) -> PreparedSolver:
        """Factorize once for all images that are seen through the same views.

        Args:
            xy: [V, h, w, 2] in [0, 1], image frame, on the device of the features (`sample_views(...).xy`).

        Raises:
            ValueError: if there are fewer than two views, all lie at the same place, or smoothness is "auto".
        """
        if self.smoothness == "auto":
            raise ValueError(
                'smoothness="auto" needs features: fit one image, then prepare with its stats["smoothness"]'
            )
        return self._prepare(xy.flatten(1, 2), xy.shape[1:3])

    def check_num_views(self, count: int) -> None:
        """Raise ValueError if views, the whole image included, are too few for `smoothness="auto"`."""
        if self.smoothness == "auto" and count < HELD_OUT + 3:
            raise ValueError(
                f'smoothness="auto" holds {HELD_OUT} views out and needs at least {HELD_OUT + 3}, got {count}; pass a '
                "number or sample more"
            )

    def _nodes(self, grid: tuple[int, ...]) -> tuple[int, int]:
        """Count the nodes: with a whole density every patch center of the whole image is one, or midway between two."""
        rows, columns = (max(2, math.ceil(self.density * patches) + 1) for patches in grid)
        return rows, columns

    def _prepare(self, xy: Tensor, grid: tuple[int, ...]) -> PreparedSolver:
        assert self.smoothness != "auto"
        return next(self._candidates(xy, grid, (self.smoothness,)))

    def _candidates(self, xy: Tensor, grid: tuple[int, ...], values: Iterable[float]) -> Iterator[PreparedSolver]:
        """Prepare one solver per smoothness; xy: [V, P, 2]."""
        _check_places(xy)
        layout = Layout(xy, self._nodes(grid), self.prior_views)
        matrix = data_matrix(layout) if layout.is_dense else None
        for value in values:
            solve = conjugate_gradients(layout, value) if matrix is None else factorized(matrix, layout.nodes, value)
            yield PreparedSolver(layout, value, solve, self.prior_artifact)

    def _fit_auto(self, views: Iterable[Views]) -> Decomposition:
        """Fit without the first views, choose the smoothness that predicts them best, fit all."""
        first, batches = first_of(views)
        grid = first.features.shape[1:3]
        kept, everything = (Sums(self._nodes(grid), first, self.prior_artifact) for _ in range(2))
        held: list[Views] = []
        for batch in batches:
            everything.add(batch)
            count = min(HELD_OUT - sum(map(len, held)), len(batch))
            if count:
                held.append(Views(batch.features[:count], batch.xy[:count]))
            if count < len(batch):
                kept.add(Views(batch.features[count:], batch.xy[count:]))
        self.check_num_views(len(everything.xy))
        scores = {}
        for candidate in self._candidates(kept.xy, grid, CANDIDATES):
            errors = unexplained(candidate._finish(kept), collect(held))[..., 0]
            scores[candidate.smoothness] = float(errors.sum())
        best = min(scores, key=lambda value: scores[value])
        return replace(self, smoothness=best)._prepare(everything.xy, grid)._finish(everything)


def _check_places(xy: Tensor) -> None:  # [V, P, 2]
    if len(xy) < 2:
        raise ValueError(
            f"stage 1 compares views and needs at least 2, got {len(xy)}; sample some besides the whole image"
        )
    if xy.shape[1] < 2:
        raise ValueError("views of a single patch hold nothing to compare; pass a larger size")
    if float((xy - xy[:1]).abs().max()) < 1e-6:
        raise ValueError(
            f"all {len(xy)} views lie at the same place, where semantics and artifact cannot be told apart; sample "
            "different windows"
        )
