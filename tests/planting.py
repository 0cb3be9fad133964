"""Planted views, a ViT whose features are known, and what a store holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from helpers import TINY
from PIL import Image
from torch import Tensor, nn

from dvt_timm.offline import Views, open_store
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.grid_field import GridField
from dvt_timm.offline.windows import sample_windows

GRID = PatchGrid((70, 84), (14, 14), (14, 14))  # 5 x 6 patches
DIM = 4


def places(num_views: int = 30, kind: str = "crops", seed: int = 0) -> Tensor:  # [V, 5, 6, 2]
    return patch_xy(sample_windows(num_views, kind, seed, GRID.image_size), *GRID.centers())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(xy: Tensor, noise: float = 0.0) -> tuple[Views, GridField, Tensor]:
    """Views that are exactly F + G + o, with F on the solver's own nodes."""
    field = GridField(normal(11, 13, DIM))
    artifact = normal(5, 6, DIM, seed=1)
    artifact -= artifact.mean(dim=(0, 1))
    offset = normal(len(xy), 1, 1, DIM, seed=2)
    offset -= offset.mean(dim=0)
    features = field(xy) + artifact + offset
    return Views(features + noise * normal(*features.shape, seed=3), xy), field, artifact


def batches(views: Views, size: int) -> Iterator[Views]:
    for start in range(0, len(views), size):
        yield Views(views.features[start : start + size], views.xy[start : start + size])


def ramps(width: int = 320, height: int = 320) -> Image.Image:
    """Red grows with x, green with y."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray((255 * np.stack([x, y, 0 * x], axis=2)).round().astype(np.uint8))


def seeing(**options: Any) -> Any:
    """A real ViT whose patch features are its position embedding plus, in two channels, mean red and green in 0..1."""
    model = timm.create_model(TINY, dynamic_img_size=True, num_classes=0, **options).eval()
    cfg = model.pretrained_cfg
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # blocks pass their input on
        kernel = model.patch_embed.proj.weight
        for i in range(2):
            kernel[i, i] = cfg["std"][i] / kernel[0, 0].numel()
            model.patch_embed.proj.bias[i] = cfg["mean"][i]
    model.norm = nn.Identity()
    return model


def contents(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """SHA-256 of an image -> (raw, clean)."""
    opened = open_store(folder)
    return {entry.sha256: opened[i] for i, entry in enumerate(opened.entries)}


class Blind(nn.Module):
    """A denoiser that leaves a constant."""

    dim, source, config = 64, None, {}

    def __init__(self, constant: float = 1.0) -> None:
        super().__init__()
        self.constant = constant
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.constant
