"""Stage 1 as released: a neural field for F, a map for G, an MLP for h, fitted by Adam in two phases.

arXiv 2401.02957, section 4.1; the numbers are the authors' script's. With prediction F + G in phase 1 (the first half
of the steps) and F + G + stop_grad(h(y)) in phase 2, where G is frozen, each step minimizes over random patches

    MSE(prediction, y) + 1 - mean cos(prediction, y)
    + [phase 2]  0.1 MSE(h(y), stop_grad(y - F - G)) + 0.02 mean |h(y)|

Letters: V views, h x w patches, C channels, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, grid_sample, mse_loss
from tqdm import trange

from .._util.schedule import warmed_up_cosine
from .coords import places_in_image
from .hash_grid import HashGrid
from .solution import Decomposition, Views, collect

PEAK_RATE, LAST_RATE = 0.01, 0.001  # learning rates of Adam
BETAS, EPSILON, WEIGHT_DECAY = (0.9, 0.99), 1e-15, 1e-5
LOSS_SCALE = 1024  # the released code never divides it out again, which leaves 1/1024 of the weight decay and epsilon
RESIDUAL_WEIGHT, SPARSITY_WEIGHT = 0.1, 0.02
RECORDED = 200  # points of the loss curve


class NoiseModel(nn.Module):
    """The parameters of F, G and h for one image."""

    def __init__(self, dim: int, grid: tuple[int, int], encoding: HashGrid) -> None:
        """Take C as `dim` and (h, w) as `grid`."""
        super().__init__()
        self.encoding = encoding
        self.decoder = nn.Sequential(nn.Linear(encoding.out_dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, dim))
        self.artifact_map = nn.Parameter(0.02 * torch.randn(1, dim, *grid))
        self.residual_predictor = nn.Sequential(
            nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, dim // 4), nn.ReLU(), nn.Linear(dim // 4, dim)
        )

    def semantics(self, xy: Tensor) -> Tensor:
        """Read F: [N, 2] in [0, 1], image frame -> [N, C]."""
        features: Tensor = self.decoder(self.encoding(xy))
        return features

    def artifact(self, xy: Tensor) -> Tensor:
        """Read G: [N, 2] in [-1, 1], view frame, -1 and 1 at the centers of the outermost patches -> [N, C]."""
        sampled = grid_sample(self.artifact_map, xy[None, None], mode="bilinear", align_corners=True)
        return sampled[0, :, 0].T


def losses(
    raw: Tensor,  # [N, C] y
    semantics: Tensor,  # [N, C] F
    artifact: Tensor,  # [N, C] G
    residual: Tensor | None = None,  # [N, C] h(y), from phase 2 on
) -> dict[str, Tensor]:
    """Compute the weighted terms of the loss under the released code's names, and their sum as "loss"."""
    explained = semantics + artifact
    predicted = explained if residual is None else explained + residual.detach()
    terms = {
        "patch_l2_loss": mse_loss(predicted, raw),
        "cosine_similarity_loss": 1 - cosine_similarity(predicted, raw, dim=-1).mean(),
    }
    if residual is not None:
        terms["residual_loss"] = RESIDUAL_WEIGHT * mse_loss(residual, (raw - explained).detach())
        terms["residual_sparsity_loss"] = SPARSITY_WEIGHT * residual.abs().mean()
    return {**terms, "loss": torch.stack(list(terms.values())).sum()}


def learning_rate(step: int, num_steps: int) -> float:
    """Give a rate that rises linearly over a tenth of the steps, then falls in a cosine."""
    return warmed_up_cosine(step, num_steps, num_steps // 10, PEAK_RATE, LAST_RATE)


@dataclass(frozen=True)
class NeuralFieldSolver:
    """Stage 1 as released; by far slower and no closer to the truth than `LeastSquaresSolver`, kept to compare with.

    To repeat the released method, sample its views too: `kind="crops", num_views=768, edge_to_edge=True`.

    Attributes:
        num_steps: at least 10; the default is the authors' script's, the paper's text says 20,000.
        batch_size: patches per step, drawn with replacement from all views.
        seed: decides the initial parameters and the draws.
        progress: whether to show a bar on a terminal.

    Raises:
        ValueError: on values out of range.
    """

    num_steps: int = 25_000
    batch_size: int = 2048
    seed: int = 0
    progress: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_steps < 10 or self.batch_size < 1:
            raise ValueError(
                f"num_steps must be at least 10 and batch_size 1, got {self.num_steps} and {self.batch_size}"
            )

    def fit(self, views: Iterable[Views]) -> Decomposition:
        """Decompose an image; all its views are kept in memory, as float32.

        Args:
            views: `Views`, or batches of them (`sample_views`); the last view is the whole image.

        Raises:
            ValueError: if there are fewer than two views, or features are not finite, or become so while fitting.
        """
        data = collect(views)
        if len(data) < 2:
            raise ValueError(f"stage 1 compares views and needs at least 2, got {len(data)}; sample some")
        if not bool(data.features.isfinite().all()):
            raise ValueError("features hold NaN or Inf; compute them in float32, or check the model's weights")
        device = data.features.device
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(_cuda(device)):
            data = Views(data.features.clone(), data.xy.clone())  # tensors of inference mode know no gradients
            torch.manual_seed(self.seed)
            h, w, C = data.features.shape[1:]
            model = NoiseModel(C, (h, w), HashGrid()).to(device)
            curve = self._train(model, data)
        return self._decomposition(model, data, curve)

    def _train(self, model: NoiseModel, data: Views) -> list[dict[str, float]]:
        """Fit the model in place, and return the loss curve."""
        h, w, C = data.features.shape[1:]
        raw, xy = data.features.float().reshape(-1, C), data.xy.float().reshape(-1, 2)
        rows, columns = (torch.linspace(-1, 1, size, device=raw.device) for size in (h, w))
        xy_view = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)  # [h * w, 2]
        optimizer = torch.optim.Adam(
            model.parameters(), lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True
        )
        curve = []
        for step in trange(self.num_steps, unit="step", leave=False, disable=None if self.progress else True):
            second_phase = step >= self.num_steps // 2
            sample = torch.randint(len(raw), (self.batch_size,), device=raw.device)
            artifact = model.artifact(xy_view[sample % (h * w)])
            terms = losses(
                raw[sample],
                model.semantics(xy[sample]),
                artifact.detach() if second_phase else artifact,
                model.residual_predictor(raw[sample]) if second_phase else None,
            )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self.num_steps)
            optimizer.zero_grad()
            (LOSS_SCALE * terms["loss"]).backward()
            optimizer.step()
            if step % max(1, self.num_steps // RECORDED) == 0 or step == self.num_steps - 1:
                curve.append({"step": step, **{name: value.item() for name, value in terms.items()}})
                _check_finite(curve[-1])
        return curve

    @torch.no_grad()
    def _decomposition(self, model: NoiseModel, data: Views, curve: list[dict[str, float]]) -> Decomposition:
        constant = model.artifact_map.mean(dim=(2, 3))[0]  # [C], which F + G cannot tell apart
        artifact = model.artifact_map[0].permute(1, 2, 0) - constant

        @torch.no_grad()
        def semantics_at(xy: Tensor) -> Tensor:
            places = places_in_image(xy).to(constant.device).float()
            features = torch.cat([model.semantics(part) for part in places.split(1 << 16)])
            return (features + constant).reshape(*xy.shape[:-1], -1)

        stats = {
            "solver": "neural_field",
            "num_views": len(data),
            "num_steps": self.num_steps,
            "loss_curve": curve,
        }
        raw = data.features[-1].to(torch.float32, copy=True)  # a part would keep all views
        residual = model.residual_predictor(raw)
        return Decomposition(raw, semantics_at(data.xy[-1]), artifact.contiguous(), residual, stats, semantics_at)


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _check_finite(terms: dict[str, float]) -> None:
    if not math.isfinite(terms["loss"]):
        raise ValueError(f"the loss became {terms['loss']} at step {terms['step']}; check the scale of the features")
