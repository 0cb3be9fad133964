"""A truth for denoising: an artifact planted in a real network's position embedding, and how much of it is left.

What the network gives without the planted artifact is the truth, through all its blocks.

Letters: h x w patches, C channels, K directions in which positions are moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .._util.modules import uncompiled

Kind = Literal["plaid", "smooth", "noise", "border"]
DIRECTIONS = 8  # K
COARSE = 4  # nodes a side of a smooth artifact


@contextmanager
def plant(model: Any, kind: Kind = "plaid", strength: float = 3.0, seed: int = 0) -> Iterator[Any]:
    """Let a model carry a known artifact of position, as long as the context lasts.

    `plaid`: every row and every column of patches has an offset of its own, as DINOv2-B's grid has.
    `smooth`: offsets that change slowly over the image. `noise`: every patch has its own. `border`: the outermost
    patches share one.

    Args:
        model: a timm `VisionTransformer` or `Eva` with an absolute position embedding, denoised or not.
        kind: of the artifact.
        strength: its standard deviation over patches and channels, relative to that of the patches' positions.
        seed: of the draw; the same one gives the same artifact on every machine.

    Yields:
        The model, whose position embedding is put back bit for bit at the end, after an error too.

    Raises:
        ValueError: if the model has no absolute position embedding, the kind is none of these or needs a larger grid,
            or the strength is not positive.
    """
    inner = uncompiled(model)
    embedding = getattr(inner, "pos_embed", None)
    if embedding is None:
        raise ValueError(f"this {type(inner).__name__} has no absolute position embedding to plant an artifact in")
    if not strength > 0:
        raise ValueError(f"strength must be positive, got {strength}")
    num_prefix = 0 if inner.no_embed_class else inner.num_prefix_tokens
    patches = embedding.data[0, num_prefix:]  # [h * w, C], shares its memory with the embedding
    before = patches.clone()
    h, w = inner.patch_embed.grid_size
    if kind == "border" and min(h, w) < 3:
        raise ValueError(f"a grid of {h} x {w} patches has no border to tell from the rest; plant another kind")
    artifact = planted_offsets(kind, (h, w), patches.shape[1], seed)
    artifact = artifact * (strength * before.float().std(correction=0) / artifact.std(correction=0))
    with torch.no_grad():
        embedding[0, num_prefix:] += artifact.flatten(0, 1).to(embedding)
    try:
        yield model
    finally:
        with torch.no_grad():
            embedding[0, num_prefix:] = before


def planted_offsets(kind: Kind, grid: tuple[int, int], dim: int, seed: int = 0) -> Tensor:
    """Draw an artifact of a kind: [h, w, C], of mean 0 over the patches.

    Args:
        kind: as in `plant`.
        grid: (h, w), at least 3 x 3 patches for a border.
        dim: C.
        seed: of the draw.

    Raises:
        ValueError: if the kind is none of `plant`'s.
    """
    generator = torch.Generator().manual_seed(seed)
    offsets = _offsets(kind, grid, generator) @ torch.randn(DIRECTIONS, dim, generator=generator)
    return offsets - offsets.mean(dim=(0, 1))


def _offsets(kind: Kind, grid: tuple[int, int], generator: torch.Generator) -> Tensor:  # [h, w, K]
    h, w = grid
    if kind == "plaid":
        rows, columns = (torch.randn(side, DIRECTIONS, generator=generator) for side in grid)
        return rows[:, None] + columns
    if kind == "smooth":
        nodes = torch.randn(1, DIRECTIONS, COARSE, COARSE, generator=generator)
        return interpolate(nodes, (h, w), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    if kind == "noise":
        return torch.randn(h, w, DIRECTIONS, generator=generator)
    if kind == "border":
        edge = torch.ones(h, w, 1)
        edge[1:-1, 1:-1] = 0
        return edge * torch.randn(DIRECTIONS, generator=generator)
    raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")


def artifact_left(clean_planted: Tensor, clean: Tensor, raw_planted: Tensor, raw: Tensor) -> float:
    """Say which share of an artifact is left: its power in the clean map over its power in the raw one.

    Args:
        clean_planted: [h, w, C], what denoising gives where the artifact is planted.
        clean: [h, w, C], what it gives without.
        raw_planted: [h, w, C], the features with the artifact.
        raw: [h, w, C], the features without.

    Returns:
        0 if nothing is left, 1 if all is; each map's mean over the patches is no artifact.

    Raises:
        ValueError: if the shapes differ, or raw features are the same with and without.
    """
    _check_alike(clean_planted, clean, raw_planted, raw)
    planted = _power(raw_planted - raw)
    if planted == 0:
        raise ValueError("raw features are the same with and without an artifact: plant one first")
    return _power(clean_planted - clean) / planted


def distance_to_truth(clean_planted: Tensor, truth: Tensor) -> float:
    """Measure the squared distance of a clean map to the truth, relative to the truth's variance over the patches.

    Args:
        clean_planted: [h, w, C], what denoising gives where the artifact is planted.
        truth: [h, w, C], raw features without it.

    Returns:
        0 for the truth itself; each map's mean over the patches is left out.

    Raises:
        ValueError: if the shapes differ, or the truth does not vary.
    """
    _check_alike(clean_planted, truth)
    spread = _power(truth)
    if spread == 0:
        raise ValueError("the truth is the same at every patch: nothing can be measured against it")
    return _power(clean_planted - truth) / spread


def won_back(score: float, planted: float, truth: float) -> float:
    """Say which share of what an artifact cost is won back.

    Args:
        score: of the clean features, mIoU or any other of which more is better.
        planted: the same of raw features with the artifact.
        truth: the same of raw features without it.

    Returns:
        0 if nothing is won, 1 if all is; more, or less than 0, if it goes beyond.

    Raises:
        ValueError: if the artifact costs nothing.
    """
    if not truth > planted:
        raise ValueError(f"the artifact costs nothing: {planted} with it, {truth} without; plant a stronger one")
    return (score - planted) / (truth - planted)


def _power(fmap: Tensor) -> float:
    """The power of a map [h, w, C] about its mean over the patches."""
    fmap = fmap.double()
    return float((fmap - fmap.mean(dim=(0, 1))).square().sum())


def _check_alike(*maps: Tensor) -> None:
    shapes = [list(fmap.shape) for fmap in maps]
    if any(shape != shapes[0] or len(shape) != 3 for shape in shapes):
        raise ValueError(f"maps must be [h, w, C] of one shape, got {shapes}; measure one photo at a time")
