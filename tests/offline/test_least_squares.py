"""The closed form: planted answers come back, the fast path equals a slow one, and bad input is refused."""

from __future__ import annotations

import pytest
import torch
from planting import DIM, batches, normal, places, planted
from torch import Tensor

from dvt_timm.offline import LeastSquaresSolver, Views, least_squares, normal_equations, unexplained
from dvt_timm.offline.grid_field import Basis, GridField


def by_lstsq(views: Views, nodes: tuple[int, int], smoothness: float, prior_views: float) -> tuple[Tensor, Tensor]:
    """F at the whole image's patches and G, from the written-out problem."""
    V, h, w, C = views.features.shape
    P, K = h * w, nodes[0] * nodes[1]
    basis = Basis.at(views.xy.reshape(-1, 2), nodes, torch.float64)
    field = torch.zeros(V * P, K, dtype=torch.float64).scatter_add_(1, basis.index, basis.weight)
    patch = torch.eye(P, dtype=torch.float64).repeat(V, 1)
    view = torch.eye(V, dtype=torch.float64).repeat_interleave(P, dim=0)
    node = torch.arange(K).reshape(nodes)
    pairs = [(node[:, :-1], node[:, 1:]), (node[:-1], node[1:])]
    first, second = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    rough = smoothness**0.5 * (torch.eye(K, dtype=torch.float64)[first] - torch.eye(K, dtype=torch.float64)[second])
    gauge = torch.zeros(2, K + P + V, dtype=torch.float64)
    gauge[0, K : K + P], gauge[1, K + P :] = 1, 1  # G and o have mean 0
    data = torch.cat([field, patch, view], dim=1)
    rough = torch.cat([rough, torch.zeros(len(rough), P + V, dtype=torch.float64)], dim=1)
    prior = prior_views**0.5 * torch.eye(K + P + V, dtype=torch.float64)[K : K + P]
    sides = torch.cat([views.features.reshape(-1, C), torch.zeros(len(rough) + P + 2, C, dtype=torch.float64)])
    solution = torch.linalg.lstsq(torch.cat([data, rough, prior, gauge]), sides, driver="gelsd").solution
    return (field[-P:] @ solution[:K]).reshape(h, w, C), solution[K : K + P].reshape(h, w, C)


def by_means(views: Views) -> float:
    """What G and o leave over of the views without an F."""
    rest = views.features - views.features.mean(dim=0)
    return float((rest - rest.mean(dim=(1, 2), keepdim=True)).square().sum())


def test_planted_answer_is_recovered() -> None:
    xy = places()
    views, field, artifact = planted(xy)
    solution = LeastSquaresSolver(smoothness=1e-9).fit(views)
    torch.testing.assert_close(solution.semantics, field(xy[-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(solution.artifact, artifact, atol=1e-5, rtol=0)
    torch.testing.assert_close(solution.raw, views.features[-1], atol=0, rtol=0)
    assert (solution.residual - solution.residual[0, 0]).abs().max() < 1e-5  # the whole image's constant
    assert solution.stats["unexplained"] < 1e-9


@pytest.mark.parametrize("kind", ["crops", "jitter"])
@pytest.mark.parametrize("smoothness", [0.01, 1.0])
@pytest.mark.parametrize("prior_views", [0.0, 7.0])
def test_equals_the_written_out_problem(kind: str, smoothness: float, prior_views: float) -> None:
    views, _, _ = planted(places(12, kind), noise=0.5)
    solution = LeastSquaresSolver(smoothness=smoothness, prior_views=prior_views).fit(views)
    semantics, artifact = by_lstsq(views, (11, 13), smoothness, prior_views)
    torch.testing.assert_close(solution.semantics, semantics, atol=1e-7, rtol=0)
    torch.testing.assert_close(solution.artifact, artifact, atol=1e-7, rtol=0)
    parts = solution.semantics + solution.artifact + solution.residual
    torch.testing.assert_close(parts, solution.raw)
    errors = unexplained(solution, views).sum(dim=(0, 1))
    none = by_means(views)
    assert solution.stats["unexplained"] == pytest.approx(float(errors[0]) / none, rel=1e-6)


def test_batches_and_float32_change_nothing_that_matters() -> None:
    views, _, _ = planted(places(40), noise=0.3)
    views = Views(views.features + torch.tensor([0.0, 10, -100, 1000]), views.xy)  # far from 0, as real channels
    exact = LeastSquaresSolver().fit(views)
    for size in (1, 8, 41):
        solution = LeastSquaresSolver().fit(batches(Views(views.features.float(), views.xy), size))
        assert solution.semantics.dtype == torch.float32
        torch.testing.assert_close(solution.semantics.double(), exact.semantics, atol=1e-3, rtol=1e-6)
        torch.testing.assert_close(solution.artifact.double(), exact.artifact, atol=1e-3, rtol=0)
    near, _, _ = planted(places(40), noise=0.3)
    exact = LeastSquaresSolver().fit(near)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        solution = LeastSquaresSolver().fit(Views(near.features.to(dtype), near.xy))
        assert solution.semantics.dtype == torch.float32
        torch.testing.assert_close(solution.semantics.double(), exact.semantics, atol=tolerance, rtol=0)


def test_prepared_once_for_many_images() -> None:
    xy = places(12)
    solver = LeastSquaresSolver(smoothness=0.1)
    prepared = solver.prepare(xy)
    for seed in (5, 6):
        views = Views(normal(*xy.shape[:3], DIM, seed=seed), xy)
        once, again = solver.fit(views), prepared.fit(batches(views, 5))
        torch.testing.assert_close(again.semantics, once.semantics)
        torch.testing.assert_close(again.artifact, once.artifact)
    with pytest.raises(ValueError, match=r"these 13 views do not lie where the prepared 13 do"):
        prepared.fit(Views(normal(*xy.shape[:3], DIM), places(12, seed=1)))
    with pytest.raises(ValueError, match=r"these 5 views do not lie where the prepared 13 do"):
        prepared.fit(Views(views.features[:5], xy[:5]))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("prior_views", [0.0, 7.0])
def test_a_view_left_out_is_as_if_it_had_never_been_there(
    dense: bool, prior_views: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dense:
        monkeypatch.setattr(normal_equations, "DENSE_NODES", 10)
        monkeypatch.setattr(normal_equations, "TOLERANCE", 1e-10)
    solver = LeastSquaresSolver(prior_views=prior_views)
    views, *_ = planted(places(6, "jitter"), noise=0.3)
    prepared = solver.prepare(views.xy)
    solution = prepared.fit(views)
    for left in range(7):
        rest = [i for i in range(7) if i != left]
        alone = solver.fit(Views(views.features[rest], views.xy[rest])).semantics_at(views.xy[left])
        found = prepared.semantics_without(left, views.features[left], solution)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
        assert (solution.semantics_at(views.xy[left]) - alone).abs().mean() > 0.01


def test_what_cannot_be_left_out_is_refused() -> None:
    views, *_ = planted(places(2))
    prepared = LeastSquaresSolver().prepare(views.xy)
    solution = prepared.fit(views)
    for view in (-1, 3):
        with pytest.raises(ValueError, match=rf"view must be 0\.\.2, got {view}"):
            prepared.semantics_without(view, views.features[0], solution)
    with pytest.raises(
        ValueError, match=r"features must be \[h, w, C\] = \[5, 6, 4\] as the solution's, got \[3, 5, 6, 4\]"
    ):
        prepared.semantics_without(0, views.features, solution)
    views, *_ = planted(places(1))
    prepared = LeastSquaresSolver().prepare(views.xy)
    with pytest.raises(ValueError, match="without one of 2 views nothing is left to compare; sample at least 2"):
        prepared.semantics_without(0, views.features[0], prepared.fit(views))


def test_the_gauge_is_the_level_of_all_views() -> None:
    """A constant of any view, the whole image or another, belongs to F by its share, and not to G."""
    views, _, _ = planted(places(12), noise=0.3)
    base = LeastSquaresSolver().fit(views)
    for view in (3, -1):
        shifted = views.features.clone()
        shifted[view] += 13
        other = LeastSquaresSolver().fit(Views(shifted, views.xy))
        torch.testing.assert_close(other.semantics, base.semantics + 1)
        torch.testing.assert_close(other.artifact, base.artifact)
    assert base.artifact.mean(dim=(0, 1)).abs().max() < 1e-12


def test_auto_chooses_by_held_out_views() -> None:
    smooth = GridField(normal(3, 3, DIM))
    xy = places(40)
    noisy = Views(smooth(xy) + 0.5 * normal(*xy.shape[:3], DIM, seed=4), xy)
    chosen = LeastSquaresSolver(smoothness="auto").fit(batches(noisy, 7))
    assert chosen.stats["smoothness"] >= 1
    assert chosen.stats["num_views"] == 41
    sharp, _, _ = planted(xy)
    assert LeastSquaresSolver(smoothness="auto").fit(sharp).stats["smoothness"] <= 0.01
    fixed = LeastSquaresSolver(smoothness=chosen.stats["smoothness"]).fit(noisy)
    torch.testing.assert_close(fixed.semantics, chosen.semantics)


def test_a_prior_artifact_is_what_the_artifact_is_pulled_to() -> None:
    """Found in one image it leaves another's alone where it is right, and F comes back from a handful of views."""
    xy = places(6, "jitter")
    views, _, artifact = planted(xy, noise=0.3)
    known = artifact + 7  # its level is nothing
    solver = LeastSquaresSolver(prior_views=20.0, prior_artifact=known)
    solution = solver.fit(views)
    beside = LeastSquaresSolver(prior_views=20.0).fit(Views(views.features - artifact, xy))  # written out
    torch.testing.assert_close(solution.semantics, beside.semantics)
    torch.testing.assert_close(solution.artifact, beside.artifact + artifact)
    parts = solution.semantics + solution.artifact + solution.residual
    torch.testing.assert_close(parts, views.features[-1])
    torch.testing.assert_close(solution.raw, views.features[-1])
    prepared = solver.prepare(xy)
    torch.testing.assert_close(prepared.fit(batches(views, 2)).semantics, solution.semantics)
    rest = list(range(1, 7))
    alone = solver.fit(Views(views.features[rest], xy[rest])).semantics_at(xy[0])
    torch.testing.assert_close(prepared.semantics_without(0, views.features[0], solution), alone, rtol=0, atol=1e-6)
    free = LeastSquaresSolver().fit(views)
    assert (solution.artifact - artifact).norm() < 0.7 * (free.artifact - artifact).norm()
    assert LeastSquaresSolver(0.5, "auto", 3.0, known).fit(planted(places(12))[0]).stats["prior_views"] == 3.0


def test_a_prior_artifact_that_does_not_fit() -> None:
    views, _, artifact = planted(places(6))
    with pytest.raises(ValueError, match="counts for nothing with prior_views=0"):
        LeastSquaresSolver(prior_artifact=artifact)
    solver = LeastSquaresSolver(prior_views=5, prior_artifact=artifact[:3])
    with pytest.raises(ValueError, match=r"must be \[h, w, C\] = \[5, 6, 4\] as the views, got \[3, 6, 4\]"):
        solver.fit(views)
    with pytest.raises(ValueError, match="prior_artifact holds NaN or Inf"):
        LeastSquaresSolver(prior_views=5, prior_artifact=artifact * torch.nan).fit(views)


def test_places_that_no_view_covers_are_filled_smoothly() -> None:
    xy = places(12) * torch.tensor([0.5, 1.0])  # nothing lies on the right half
    views, _, _ = planted(xy)
    solution = LeastSquaresSolver().fit(views)
    right = solution.semantics_at(torch.tensor([[1.0, 0.5], [0.9, 0.5]]))
    assert right.isfinite().all()
    torch.testing.assert_close(right[0], right[1], atol=0.1, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    views, _, _ = planted(places(12))
    views.features[5, 2, 3, 1] = bad
    with pytest.raises(ValueError, match=r"views \[5\] hold NaN or Inf; compute them in float32"):
        LeastSquaresSolver().fit(batches(views, 4))
    views.features[0] = bad
    with pytest.raises(ValueError, match=r"views \[0, 5\] hold NaN or Inf"):
        LeastSquaresSolver().fit(views)


def test_gradients_are_not_kept() -> None:
    views, _, _ = planted(places(5))
    solution = LeastSquaresSolver().fit(Views(views.features.requires_grad_(), views.xy))
    assert not solution.semantics.requires_grad
    assert torch.equal(solution.raw, views.features[-1])


def test_too_few_views_are_refused() -> None:
    views, _, _ = planted(places(12))
    with pytest.raises(ValueError, match=r"needs at least 2, got 1"):
        LeastSquaresSolver().fit(Views(views.features[:1], views.xy[:1]))
    same = views.xy[:1].expand(13, -1, -1, -1)
    with pytest.raises(ValueError, match=r"all 13 views lie at the same place"):
        LeastSquaresSolver().fit(Views(views.features, same))
    with pytest.raises(ValueError, match="no views given"):
        LeastSquaresSolver().fit(iter([]))
    with pytest.raises(ValueError, match=r"needs at least 7, got 6"):
        LeastSquaresSolver(smoothness="auto").fit(Views(views.features[:6], views.xy[:6]))


def test_views_of_other_grids_are_refused() -> None:
    views, _, _ = planted(places(12))
    other = Views(views.features[:2, :4], views.xy[:2, :4])
    with pytest.raises(ValueError, match=r"must share one grid \[h, w, C\], got \[5, 6, 4\] and \[4, 6, 4\]"):
        LeastSquaresSolver().fit([views, other])


def test_views_of_one_patch_are_refused() -> None:
    views, _, _ = planted(places(3))
    with pytest.raises(ValueError, match="views of a single patch hold nothing to compare"):
        LeastSquaresSolver().fit(Views(views.features[:, :1, :1], views.xy[:, :1, :1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothness": 0}, "smoothness must be a positive number or 'auto', got 0"),
        ({"smoothness": float("nan")}, "smoothness must be"),
        ({"smoothness": "best"}, "smoothness must be"),
        ({"density": "2"}, "density must be 0.5..16 nodes per patch, got '2'"),
        ({"prior_views": -1.0}, r"prior_views must be 0\.\.1e6, got -1.0"),
        ({"prior_views": float("nan")}, "prior_views must be"),
        ({"density": 0.1}, r"density must be 0.5..16 nodes per patch, got 0.1"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeastSquaresSolver(**options)


def test_auto_cannot_be_prepared() -> None:
    with pytest.raises(ValueError, match=r'needs features: fit one image, then prepare with its stats\["smoothness"\]'):
        LeastSquaresSolver(smoothness="auto").prepare(places(3))


def test_a_decomposition_does_not_keep_the_views() -> None:
    views, _, _ = planted(places(12))
    raw = LeastSquaresSolver().fit(Views(views.features.float(), views.xy.float())).raw
    assert raw.untyped_storage().nbytes() == raw.numel() * raw.element_size()


def test_only_so_much_is_kept_to_leave_views_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "LEFT_OUT_BYTES", 3 * 4 * 30**2)  # of three views, 5 x 6 patches
    views, *_ = planted(places(6, "jitter"), noise=0.3)
    prepared = LeastSquaresSolver().prepare(views.xy)
    solution = prepared.fit(views)
    first = [prepared.semantics_without(i, views.features[i], solution) for i in range(7)]
    assert len(prepared._left_out) == 3
    again = [prepared.semantics_without(i, views.features[i], solution) for i in range(7)]
    assert all(map(torch.equal, first, again))
