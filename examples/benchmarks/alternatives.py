"""Variations of the closed form that `stage1.py options` weighs against it: weighted, without a constant per view,
robust, relative, and with a predicted residual. Slow and plain: one sparse design matrix, one dense factorization.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dvt_timm.offline import Decomposition, Views
from dvt_timm.offline.grid_field import Basis, GridField

SMOOTHNESS, DENSITY = 1.0, 2
ROUNDS = 3  # of the robust fit
RIDGE = 1e-2  # of the residual's predictor, relative to the features' mean square


def weighted(views: Views, weight: Tensor | None = None, offset: bool = True) -> Decomposition:
    """F, G and, with `offset`, a constant per view; each patch's squared error counts `weight` [V, h, w] times."""
    V, h, w, C = views.features.shape
    P, nodes = h * w, (DENSITY * h + 1, DENSITY * w + 1)
    K = nodes[0] * nodes[1]
    basis = Basis.at(views.xy.reshape(-1, 2), nodes, torch.float64)
    sample = torch.arange(V * P)
    columns = [basis.index, K + (sample % P)[:, None]]
    values = [basis.weight, torch.ones(V * P, 1, dtype=torch.float64)]
    if offset:  # of the last view, which is the whole image, it counts 0 times
        columns.append(K + P + (sample // P)[:, None])
        values.append((sample < (V - 1) * P).double()[:, None])
    size = K + P + offset * V
    index, value = torch.cat(columns, dim=1), torch.cat(values, dim=1)
    root = torch.ones(V * P, dtype=torch.float64) if weight is None else weight.reshape(-1).double().sqrt()
    where = torch.stack([sample[:, None].expand_as(index).flatten(), index.flatten()])
    design = torch.sparse_coo_tensor(where, (value * root[:, None]).flatten(), (V * P, size), check_invariants=True)
    design = design.coalesce()
    system = torch.sparse.mm(design.t(), design).to_dense()
    system[:K, :K] += SMOOTHNESS * roughness(nodes)
    system[K : K + P, K : K + P] += 1.0 / P  # mean of G is 0
    system.diagonal()[K + P :] += 1e-9
    sides = design.t() @ (views.features.reshape(-1, C).double() * root[:, None])
    solution = torch.cholesky_solve(sides, torch.linalg.cholesky(system)).float()
    field = GridField(solution[:K].reshape(*nodes, C))
    raw, semantics, artifact = views.features[-1], field(views.xy[-1]), solution[K : K + P].reshape(h, w, C)
    return Decomposition(raw, semantics, artifact, raw - semantics - artifact, {}, field)


def roughness(nodes: tuple[int, int]) -> Tensor:
    """L as a matrix [K, K]."""
    lines = [torch.eye(size, dtype=torch.float64) for size in nodes]
    paths = []
    for line in lines:
        difference = line[1:] - line[:-1]
        paths.append(difference.T @ difference)
    return torch.kron(paths[0], lines[1]) + torch.kron(lines[0], paths[1])


def remainder(solution: Decomposition, views: Views) -> Tensor:
    """y - F - G, each view's mean removed: [V, h, w, C]."""
    rest = views.features - solution.semantics_at(views.xy) - solution.artifact
    return rest - rest.mean(dim=(1, 2), keepdim=True)


def robust(views: Views) -> Decomposition:
    """Iteratively reweighted: patches farther off than usual count less (Huber, at the median distance)."""
    solution = weighted(views)
    for _ in range(ROUNDS):
        distance = remainder(solution, views).norm(dim=-1)
        solution = weighted(views, (distance.median() / distance.clamp(min=1e-12)).clamp(max=1))
    return solution


def relative(views: Views) -> Decomposition:
    """Weights 1 / ||y||^2, which come close to the released cosine loss."""
    weight = 1 / views.features.square().sum(dim=-1)
    return weighted(views, weight / weight.mean())


def with_residual(views: Views) -> Decomposition:
    """A ridge regression of y predicts what F and G leave, and F and G are fitted again to the rest."""
    solution = weighted(views)
    flat = views.features.flatten(0, 2).double()
    mean = flat.mean(dim=0)
    rest = remainder(solution, views).flatten(0, 2).double()
    gram = (flat - mean).T @ (flat - mean)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    predicted = (flat - mean) @ torch.linalg.solve(gram, (flat - mean).T @ rest)
    return weighted(Views(views.features - predicted.reshape(views.features.shape).float(), views.xy))


ALTERNATIVES: dict[str, Callable[[Views], Decomposition]] = {
    "no constant per view": lambda views: weighted(views, offset=False),
    "robust weights (IRLS)": robust,
    "relative weights": relative,
    "residual by ridge regression": with_residual,
}
