"""The linear system equals the written-out one, solved directly or by conjugate gradients."""

from __future__ import annotations

import pytest
import torch
from planting import places, planted

from dvt_timm.offline import LeastSquaresSolver, Views, normal_equations


@pytest.mark.parametrize("prior_views", [0.0, 5.0])
def test_the_matrix_is_that_of_the_two_way_layout(prior_views: float) -> None:
    xy = places(7).flatten(1, 2)
    V, P = xy.shape[:2]
    layout = normal_equations.Layout(xy, (6, 5), prior_views)
    design = torch.zeros(V * P, 30, dtype=torch.float64)
    design.scatter_add_(1, layout.basis.index, layout.basis.weight)
    center_v = torch.eye(V, dtype=torch.float64) - 1 / (V + prior_views)
    center_p = torch.eye(P, dtype=torch.float64) - 1 / P
    expected = design.T @ torch.kron(center_v, center_p) @ design
    torch.testing.assert_close(normal_equations.data_matrix(layout), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("prior_views", [0.0, 5.0])
def test_conjugate_gradients_give_the_same(prior_views: float, monkeypatch: pytest.MonkeyPatch) -> None:
    views, _, _ = planted(places(12), noise=0.5)
    direct = LeastSquaresSolver(prior_views=prior_views).fit(views)
    monkeypatch.setattr(normal_equations, "DENSE_NODES", 0)
    monkeypatch.setattr(normal_equations, "TOLERANCE", 1e-10)
    monkeypatch.setattr(normal_equations, "CHUNK", 3)  # channels, fewer than there are
    iterated = LeastSquaresSolver(prior_views=prior_views).fit(views)
    torch.testing.assert_close(iterated.semantics, direct.semantics, atol=1e-7, rtol=0)
    torch.testing.assert_close(iterated.artifact, direct.artifact, atol=1e-7, rtol=0)
    monkeypatch.setattr(normal_equations, "TOLERANCE", 1e-5)  # the shipped one, in float32, prepared
    single = Views(views.features.float(), views.xy)
    rounded = LeastSquaresSolver(prior_views=prior_views).prepare(views.xy).fit(single)
    torch.testing.assert_close(rounded.semantics.double(), direct.semantics, atol=1e-3, rtol=0)
    monkeypatch.setattr(normal_equations, "MAX_ITERATIONS", 3)
    with pytest.raises(RuntimeError, match=r"did not converge in 3 iterations; pass a larger smoothness"):
        LeastSquaresSolver().fit(views)
