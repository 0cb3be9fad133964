"""The linear system behind the closed-form stage 1, solved directly or, on large grids, by conjugate gradients.

In the least-squares sense, for all views v and patches p: B_vp F + G_p + o_v = y_vp. Every view has every patch, so
that G (a value per patch) and o (a value per view) are a balanced two-way layout: to eliminate both is to take the
means over views and over patches off the rest. With Q for that, F solves

    (B^T Q B + lambda L) F = B^T Q y,      F^T L F: squared differences of neighboring nodes, added up

for all channels at once. With a prior that pulls G to 0 as kappa views without artifact would, only V / (V + kappa) of
the means over views are taken off. The matrix depends on the places of the patches only. It cannot tell F + c from F,
since G - c fits as well; the solution has mean 0.

Letters: V views, P = h * w patches, K = R_y * R_x nodes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .grid_field import Basis, roughness_gradient

DENSE_NODES = 8192  # above as many, conjugate gradients take over
CHUNK = 32  # channels that conjugate gradients solve at a time
TOLERANCE, MAX_ITERATIONS = 1e-5, 1000  # conjugate gradients stop at this residual, relative to the right-hand side

Solve = Callable[[Tensor], Tensor]  # right-hand sides [K, C] -> F [K, C]


class Layout:
    """Where all patches of all views lie, and sums of the rows of B over views and over patches."""

    def __init__(self, xy: Tensor, nodes: tuple[int, int], prior_views: float = 0.0) -> None:
        """Take xy [V, P, 2] in [0, 1], image frame, the nodes (R_y, R_x) of F, and kappa."""
        self.xy, self.nodes = xy, nodes
        self.prior_views = prior_views
        self.weight = len(xy) + prior_views  # of a value of G
        self.num_nodes = nodes[0] * nodes[1]
        self.basis = Basis.at(xy.flatten(0, 1), nodes, torch.float64)
        V, P = xy.shape[:2]
        row = torch.arange(V * P, device=xy.device)
        self.per_patch = self._summed(row % P, P)  # [P, K] over views
        self.per_view = self._summed(row // P, V)  # [V, K] over patches

    @property
    def share(self) -> float:
        """V / (V + kappa): how much of the mean over views, less F, is G."""
        return len(self.xy) / self.weight

    @property
    def is_dense(self) -> bool:
        """Whether a dense factor, which takes 8 K^2 bytes, solves it."""
        return self.num_nodes <= DENSE_NODES

    def _summed(self, row: Tensor, num_rows: int) -> Tensor:
        where = torch.stack([row[:, None].expand(-1, 4).flatten(), self.basis.index.flatten()])
        shape = (num_rows, self.num_nodes)
        sums = torch.sparse_coo_tensor(where, self.basis.weight.flatten(), shape, check_invariants=True)
        return sums.to_dense() if self.is_dense else sums.coalesce()


def data_matrix(layout: Layout) -> Tensor:
    """Compute B^T Q B as a dense matrix [K, K], float64."""
    P = layout.xy.shape[1]
    K, basis = layout.num_nodes, layout.basis
    flat = torch.zeros(K * K, dtype=torch.float64, device=layout.xy.device)
    for i in range(4):
        weight = basis.weight * basis.weight[:, i : i + 1]
        flat.scatter_add_(0, (basis.index * K + basis.index[:, i : i + 1]).flatten(), weight.flatten())
    matrix, total = flat.reshape(K, K), layout.per_view.sum(dim=0)
    matrix.addmm_(layout.per_patch.T, layout.per_patch, alpha=-1 / layout.weight)
    matrix.addmm_(layout.per_view.T, layout.per_view, alpha=-1 / P)
    return matrix.addr_(total, total, alpha=1 / (layout.weight * P))


def factorized(matrix: Tensor, nodes: tuple[int, int], smoothness: float) -> Solve:
    """Solve with one Cholesky factor of `data_matrix`, which is left as it is."""
    system = matrix + matrix.diagonal().mean() / len(matrix)  # fixes the mean at 0
    flat, (rows, columns) = system.view(-1), nodes
    node = torch.arange(len(matrix), device=matrix.device).reshape(rows, columns)
    for first, second in ((node[:, :-1], node[:, 1:]), (node[:-1], node[1:])):
        a, b = first.flatten(), second.flatten()
        for i, j, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            flat[i * len(matrix) + j] += sign * smoothness  # each pair occurs once
    factor = torch.linalg.cholesky(system)

    def solve(sides: Tensor) -> Tensor:
        return torch.cholesky_solve(sides.double(), factor).to(sides.dtype)

    return solve


def left_out(layout: Layout, solve: Solve, view: int) -> Tensor:
    """Compute what leaving a view out changes in F at the places of its patches: [P, P] times its own residuals.

    To leave a view out is to give each of its patches a parameter d of its own. Those that explain it all are
    `d = S^-1 r`, with r the residuals of the fit with it, `S = E^T Q E - R^T M^-1 R` and `R = B^T Q E`, where E picks
    the view's rows and M is the system's matrix; F then changes by `-M^-1 R d`, and its level, the mean of the other
    views', with it.
    """
    V, P, weight = *layout.xy.shape[:2], layout.weight
    rows = Basis.at(layout.xy[view], layout.nodes, torch.float64).dense()  # [P, K]
    per_patch, per_view = (sums.to_dense() for sums in (layout.per_patch, layout.per_view))
    total = per_view.sum(dim=0)
    R = (rows - per_patch / weight - per_view[view] / P + total / (weight * P)).T
    response = solve(R)
    S = -(R.T @ response) + 1 / (weight * P)  # which leaves open what is the same for all patches of the view
    S.diagonal().add_(1 - 1 / weight)
    others = (total - per_view[view]) / ((V - 1) * P)
    return torch.linalg.solve(S, (rows - others) @ response, left=False)


def conjugate_gradients(layout: Layout, smoothness: float) -> Solve:
    """Solve without a matrix, preconditioned by the diagonal, some channels at a time.

    Raises (on solving):
        RuntimeError: if it does not converge.
    """
    V, P = layout.xy.shape[:2]
    bases = {dtype: layout.basis.to(dtype) for dtype in (torch.float32, torch.float64)}
    power = layout.basis.squared().scatter(torch.ones_like(layout.basis.weight[:, :1]))  # [K, 1] diagonal of B^T B

    def solve(sides: Tensor) -> Tensor:
        basis = bases[sides.dtype]
        diagonal = (power * (1 - 1 / layout.weight) + 4 * smoothness).to(sides.dtype)

        def apply(field: Tensor) -> Tensor:  # [K, c] -> [K, c]
            table = basis.read(field).reshape(V, P, -1)
            table = table - layout.share * table.mean(dim=0)
            table -= table.mean(dim=1, keepdim=True)
            rough = roughness_gradient(field.reshape(*layout.nodes, -1)).flatten(0, 1)
            return basis.scatter(table.flatten(0, 1)) + smoothness * rough

        return torch.cat([_iterate(apply, part, diagonal) for part in sides.split(CHUNK, dim=1)], dim=1)

    return solve


def _iterate(apply: Solve, sides: Tensor, diagonal: Tensor) -> Tensor:
    """Run conjugate gradients on every column of sides [K, c], with a diagonal preconditioner [K, 1]."""
    field = torch.zeros_like(sides)
    residual = sides - sides.mean(dim=0)
    target = TOLERANCE * residual.norm(dim=0)
    tiny = torch.finfo(sides.dtype).tiny
    direction = residual / diagonal
    product = (residual * direction).sum(dim=0)
    for _ in range(MAX_ITERATIONS):
        if bool((residual.norm(dim=0) <= target).all()):
            return field - field.mean(dim=0)
        image = apply(direction)
        step = product / (direction * image).sum(dim=0).clamp(min=tiny)
        field += step * direction
        residual -= step * image
        scaled = residual / diagonal
        previous, product = product, (residual * scaled).sum(dim=0)
        direction = scaled + product / previous.clamp(min=tiny) * direction
    raise RuntimeError(
        f"conjugate gradients did not converge in {MAX_ITERATIONS} iterations; pass a larger smoothness or a smaller "
        "density"
    )
