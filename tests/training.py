"""What the tests of training share: planted stores, a teacher, the method written out."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from helpers import TINY, fitter
from torch import Tensor, nn

from dvt_timm.offline import FeatureStore, open_store
from dvt_timm.offline.run import settings_of
from dvt_timm.offline.store import StoreWriter, writing
from dvt_timm.train import TrainConfig
from dvt_timm.train.loop import CHECKPOINT

GRID, DIM = (4, 4), 64
SHORT = TrainConfig(steps=6, batch_size=4, lr=1e-3, warmup=0.2, workers=0, eval_every=4, checkpoint_every=2)


def planted(
    count: int, dtype: torch.dtype = torch.float32, grid: tuple[int, int] = GRID
) -> list[tuple[Tensor, Tensor]]:
    """(raw, clean): content of random directions, and one artifact for all."""
    draw = torch.Generator().manual_seed(0)
    artifact = torch.randn(*grid, DIM, generator=draw)
    clean = [torch.randn(*grid, DIM, generator=draw) for _ in range(count)]
    return [((each + artifact).to(dtype), each.to(dtype)) for each in clean]


def store_of(folder: Path, pairs: list[tuple[Tensor, Tensor]], first: int = 0, **changed: Any) -> FeatureStore:
    """A store that holds given pairs, of the tiny model; its images are numbered."""
    with writing(folder, {**settings_of(fitter(), half=False), **changed}):
        writer = StoreWriter(folder)
        for i, (raw, clean) in enumerate(pairs, first):
            writer.add(f"{i:064x}", Path(f"{i}.png"), {"raw": raw, "clean": clean}, {})
        writer.close()
    return open_store(folder)


def weights(run: Path) -> dict[str, Tensor]:
    """The last ones."""
    return torch.load(run / CHECKPOINT, weights_only=True)["module"]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def teacher(**options: Any) -> Any:
    """A tiny denoised model, whose head changes something."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, img_size=64, dynamic_img_size=True, denoiser={"grid_size": [4, 4]}, **options)
    return model.eval()


def restated(
    module: nn.Module, pair: Callable[[Any], tuple[Tensor, Tensor]], batches: list[Any], config: TrainConfig
) -> list[float]:
    """The method with nothing around it: AdamW written out. The losses."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    warm_up, peak, losses = round(0.15 * config.steps), 2e-4 * math.sqrt(config.batch_size / 256), []
    for step, batch in enumerate(batches):
        inputs, target = pair(batch)
        predicted = module(inputs)
        cosine = (predicted * target).sum(-1) / (predicted.norm(dim=-1) * target.norm(dim=-1))
        loss = (predicted - target).pow(2).mean() + (1 - cosine).mean()
        gradients = torch.autograd.grad(loss, parameters)
        progress = (step - warm_up) / (config.steps - warm_up)
        cosine_rate = 1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * progress)) / 2
        rate = peak * step / warm_up if step < warm_up else cosine_rate
        with torch.no_grad():
            for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - rate * config.weight_decay)
                hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                p.sub_(rate * hat[0] / (hat[1].sqrt() + 1e-8))
        losses.append(loss.item())
    return losses


class InterruptingStore(FeatureStore):
    """Sends Ctrl-C while a pair is read."""

    def __init__(self, store: FeatureStore, after: int) -> None:
        super().__init__(store.folder, store.settings, store.entries)
        self.left = after

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(i)
