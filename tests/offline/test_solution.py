"""Views and decompositions: what they check, measure and print."""

from __future__ import annotations

import pytest
from planting import places, planted

from dvt_timm.offline import LeastSquaresSolver, Views, unexplained


def test_views_check_their_shapes_and_places() -> None:
    views, _, _ = planted(places(2))
    with pytest.raises(ValueError, match=r"features \[V, h, w, C\] and xy \[V, h, w, 2\], got"):
        Views(views.features, views.xy[:1])
    with pytest.raises(ValueError, match=r"got \[5, 6, 4\]"):
        Views(views.features[0], views.xy)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.08 .. 1.92; reflect"):
        Views(views.features, views.xy + 1)
    with pytest.raises(ValueError, match="must lie in"):
        Views(views.features, views.xy * float("nan"))
    with pytest.raises(ValueError, match="empty"):
        Views(views.features[:0], views.xy[:0])


def test_unexplained_is_what_the_fit_leaves_of_its_own_views() -> None:
    views, _, _ = planted(places(12), noise=0.5)
    solution = LeastSquaresSolver(smoothness=0.1).fit(views)
    error = views.features - solution.semantics_at(views.xy) - solution.artifact
    error -= error.mean(dim=(1, 2), keepdim=True)
    table = views.features.flatten(1, 2)
    centered = table - table.mean(dim=0) - table.mean(dim=1, keepdim=True) + table.mean(dim=(0, 1))
    share = error.square().sum() / centered.square().sum()
    assert solution.stats["unexplained"] == pytest.approx(share.item(), rel=1e-6)
    sums = unexplained(solution, views).sum(dim=(0, 1))
    assert sums[0].item() == pytest.approx(error.square().sum().item())


def test_a_decomposition_is_small_to_print() -> None:
    views, _, _ = planted(places(12))
    solution = LeastSquaresSolver().fit(views)
    assert repr(solution) == "Decomposition([5, 6, 4], solver='least_squares', num_views=13)"
