"""Which part of an image each view shows."""

from __future__ import annotations

import torch
from torch import Tensor

from .coords import Windows

ZOOM = (0.6, 1.25)  # jitter: side of the window, relative to the image's
SHIFT = 0.25  # jitter: the window's center is off the image's by up to this share of the image
CROP_AREA = (0.1, 0.5)  # crops: share of the image's area (the authors' script)
CROP_ASPECT = (3 / 4, 4 / 3)  # crops: width / height in pixels of the squeezed image


def sample_windows(
    num_views: int,
    kind: str,
    seed: int,
    size: tuple[int, int],
    zoom: tuple[float, float] = ZOOM,
    shift: float = SHIFT,
    low_discrepancy: bool | None = None,
) -> Windows:
    """Draw random windows and, last, take the whole image.

    Args:
        num_views: V - 1.
        kind: what `sample_views` takes; every view of "positions" shows the whole image.
        seed: decides the draw.
        size: (H, W) of the views in pixels; crops keep to their aspect ratio in them.
        zoom: the smallest and the largest side of jitter's windows, relative to the image's.
        shift: the farthest that their centers are off the image's, as a share of the image.
        low_discrepancy: whether the windows are spread evenly (a scrambled Sobol sequence) rather than drawn one by
            one; by default those of jitter are, those of the released crops are not.

    Returns:
        V windows.
    """
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    if kind == "positions":
        return Windows(whole.expand(num_views + 1, -1), torch.zeros(num_views + 1, dtype=torch.bool))
    jittered = kind.startswith("jitter")
    if low_discrepancy or (low_discrepancy is None and jittered):
        draws = torch.quasirandom.SobolEngine(5, scramble=True, seed=seed).draw(num_views, dtype=torch.float64)
    else:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(num_views, 5, generator=generator, dtype=torch.float64)
    center, half = _jitter(draws, zoom, shift) if jittered else _crops(draws, size)  # [V - 1, 2] each, (x, y)
    boxes = torch.cat([torch.cat([center - half, center + half], dim=1), whole])
    return Windows(boxes, torch.cat([draws[:, 4] < 0.5, torch.tensor([False])]))


def _jitter(draws: Tensor, zoom: tuple[float, float], shift: float) -> tuple[Tensor, Tensor]:
    side = zoom[0] * (zoom[1] / zoom[0]) ** draws[:, :1]
    center = 0.5 + shift * (2 * draws[:, 1:3] - 1)
    return center, (side / 2).expand(-1, 2)


def _crops(draws: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * draws[:, :1]
    aspect = CROP_ASPECT[0] * (CROP_ASPECT[1] / CROP_ASPECT[0]) ** draws[:, 1:2] * size[0] / size[1]
    sides = torch.cat([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)
    center = sides / 2 + (1 - sides) * draws[:, 2:4]
    return center, sides / 2
