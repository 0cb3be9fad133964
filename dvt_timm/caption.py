"""The line below a picture: the model, its head and where that comes from, the size, the version."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ._version import __version__
from .head import DenoiserHead, Head
from .hub.client import is_source
from .names import name_of
from .positions import PositionViews

DIGITS = 12  # of a SHA-256


def caption_of(model: Any, grid: Sequence[int], parts: Iterable[str] = ()) -> str:
    """Say what a picture of a model's features shows, in one line.

    >>> caption_of(model, (37, 49))
    'vit_base_patch14_dinov2.dvt | head: hf-hub:me/head, sha256 0123456789ab | 518 x 686 pixels, 37 x 49 patches | ...'

    Args:
        model: a timm `VisionTransformer` or `Eva`, denoised or not.
        grid: (height, width) in patches of its maps.
        parts: what else is to be said, before the version.
    """
    embed = model.patch_embed
    sides = zip(grid, embed.proj.stride, embed.patch_size, strict=True)
    height, width = ((count - 1) * stride + patch for count, stride, patch in sides)
    size = f"{height} x {width} pixels, {grid[0]} x {grid[1]} patches"
    head = _head_line(getattr(model, "denoiser", None))
    return " | ".join([name_of(model), head, size, *parts, f"dvt-timm {__version__}"])


def _head_line(head: Head | None) -> str:
    if head is None:
        return "no head"
    if isinstance(head, PositionViews):
        return f"no head, means over {head.config['positions']} views of positions"
    kind = "head" if isinstance(head, DenoiserHead) else type(head).__name__
    if head.source is None:
        return f"{kind} without a source"
    sha256 = f", sha256 {head.source.sha256[:DIGITS]}" if head.source.sha256 else ""
    return f"{kind}: {short_place(head.source.place)}{sha256}"


def short_place(place: str) -> str:
    """Name a repository as it is, a file or folder by the end of its path: a picture is shown to others."""
    return place if is_source(place) else "/".join(Path(place).parts[-2:])
