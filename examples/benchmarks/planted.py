"""Views with a known answer: semantics of a real photo, an artifact, a residual, outliers and noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate
from torchvision.transforms.functional import pil_to_tensor

from dvt_timm.offline import Views
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.grid_field import GridField
from dvt_timm.offline.windows import sample_windows

PHOTO = Path(__file__).parent.parent / "data/cat.jpg"
NODES = 48  # of the semantics' own grid, finer than and not aligned with any solver's
SCALES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Planted:
    views: Views
    semantics: Tensor  # [h, w, C] at the whole image's patches

    def error(self, semantics: Tensor) -> float:
        """Squared error of F relative to its variance, the free constant per channel removed."""
        truth, guess = (part - part.mean(dim=(0, 1)) for part in (self.semantics, semantics))
        return ((guess - truth).square().sum() / truth.square().sum()).item()


def plant(
    num_views: int,
    kind: str = "crops",
    dim: int = 192,
    side: int = 16,
    seed: int = 0,
    low_discrepancy: bool | None = None,
) -> Planted:
    """V = num_views + 1 views of side x side patches: y = F + G + h + outliers + noise, F of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    grid = PatchGrid((14 * side, 14 * side), (14, 14), (14, 14))
    xy = patch_xy(
        sample_windows(num_views, kind, seed, grid.image_size, low_discrepancy=low_discrepancy), *grid.centers()
    )
    field = GridField(semantics(dim, generator))
    content = field(xy)  # [V, h, w, C]
    features = content + artifact(side, dim, generator) + residual(content, generator)
    outliers = (torch.rand(features.shape[:3], generator=generator) < 0.005)[..., None]
    features = features + outliers * 5 * torch.randn(dim, generator=generator)
    features = features + 0.3 * torch.randn(features.shape, generator=generator)
    return Planted(Views(features, xy), content[-1])


def semantics(dim: int, generator: torch.Generator) -> Tensor:  # [NODES, NODES, C]
    """A photo through random convolutions at several scales, mixed; each channel of variance 1."""
    photo = Image.open(PHOTO).convert("RGB").resize((NODES, NODES), Image.Resampling.BICUBIC)
    pixels = pil_to_tensor(photo)[None].float() / 255 - 0.5
    parts = []
    for scale in SCALES:
        kernel = torch.randn(dim // len(SCALES), 3, 5, 5, generator=generator)
        small = interpolate(pixels, NODES // scale, mode="area")
        response = torch.tanh(conv2d(small, kernel, padding=2))
        parts.append(interpolate(response, NODES, mode="bicubic"))
    maps = torch.cat(parts, dim=1)[0].permute(1, 2, 0)  # [NODES, NODES, C]
    maps = maps @ torch.randn(dim, dim, generator=generator)
    return (maps - maps.mean(dim=(0, 1))) / maps.std(dim=(0, 1))


def artifact(side: int, dim: int, generator: torch.Generator) -> Tensor:  # [h, w, C]
    """Slow waves of the position, and a pattern of its own for every patch."""
    position = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(position, position, indexing="ij")
    waves = torch.stack([x, y, x.abs(), y.abs(), x * y, torch.cos(3 * x), torch.cos(3 * y)], dim=-1)
    waves = waves @ torch.randn(waves.shape[-1], dim, generator=generator)
    return 0.5 * waves / waves.std() + 0.6 * torch.randn(side, side, dim, generator=generator)


def residual(content: Tensor, generator: torch.Generator) -> Tensor:  # [V, h, w, C]
    """What depends on content and position together: a mixture of the content, scaled by a pattern of positions."""
    dim = content.shape[-1]
    mixed = torch.tanh(content @ torch.randn(dim, dim, generator=generator) / dim**0.5)
    return 0.4 * mixed * torch.randn(*content.shape[1:3], 1, generator=generator)
