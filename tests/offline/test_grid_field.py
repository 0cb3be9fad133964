"""Fields on a grid: reading them, and its transpose."""

from __future__ import annotations

import pytest
import torch
from planting import normal, places, planted

from dvt_timm.offline import LeastSquaresSolver, Views, unexplained
from dvt_timm.offline.grid_field import Basis, GridField, roughness_gradient


def test_scatter_is_the_transpose_of_read_and_roughness_the_gradient() -> None:
    basis = Basis.at(places(3).reshape(-1, 2), (6, 5), torch.float64)
    field, values = normal(30, 2), normal(len(basis.index), 2, seed=1)
    torch.testing.assert_close((basis.read(field) * values).sum(), (field * basis.scatter(values)).sum())
    grid = normal(6, 5, 2).requires_grad_()
    energy = (grid.diff(dim=0).square().sum() + grid.diff(dim=1).square().sum()) / 2
    torch.testing.assert_close(roughness_gradient(grid.detach()), torch.autograd.grad(energy, grid)[0])


def test_the_field_beyond_the_image_is_its_borders() -> None:
    field = GridField(normal(4, 5, 2))
    torch.testing.assert_close(
        field(torch.tensor([[-1.0, 0.5], [2.0, 3.0]])), field(torch.tensor([[0.0, 0.5], [1.0, 1.0]]))
    )


def test_fields_are_read_at_places_only() -> None:
    views, _, _ = planted(places(12))
    solution = LeastSquaresSolver().fit(views)
    with pytest.raises(ValueError, match=r"places must be \[..., 2\], \(x, y\) in \[0, 1\], got \[4, 3\]"):
        solution.semantics_at(torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"got NaN among \[1, 2\]"):
        solution.semantics_at(torch.tensor([[0.5, float("nan")]]))
    with pytest.raises(ValueError, match=r"the grid \[h, w, C\] of the solution, \[5, 6, 4\], got \[4, 6, 4\]"):
        unexplained(solution, Views(views.features[:, :4], views.xy[:, :4]))
