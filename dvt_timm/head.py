"""The denoiser head: a learned position embedding and one transformer block.

Stage 2 of Denoising Vision Transformers (arXiv 2401.02957, section 4.2): the head predicts, from a ViT's
patch tokens after the final norm, the tokens without their position artifacts.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

HEAD_DIM = 64  # channels of one attention head, in every published denoiser


@torch.fx.wrap
def resample_positions(
    pos_embed: Tensor,  # [1, h * w, C]
    grid_size: tuple[int, int],  # (h, w)
    height: int,
    width: int,
) -> Tensor:  # [1, height * width, C]
    """Resample a position embedding to another grid, bicubic and antialiased; leave it as it is on its own grid.

    The arithmetic is that of timm's `resample_abs_pos_embed`, whose older versions take 2 x 8 positions for 4 x 4.
    """
    if height == grid_size[0] and width == grid_size[1]:
        return pos_embed
    positions = pos_embed.float().reshape(1, grid_size[0], grid_size[1], -1).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, size=[height, width], mode="bicubic", antialias=True)
    return positions.permute(0, 2, 3, 1).reshape(1, height * width, -1).to(pos_embed.dtype)


@torch.fx.wrap
def check_map(x: Tensor, dim: int) -> None:
    """Raise ValueError unless x is [B, H, W, dim]."""
    if x.ndim != 4 or x.shape[3] != dim:
        raise ValueError(
            f"the denoiser takes a feature map of shape (B, H, W, {dim}), got {list(x.shape)}; "
            "reshape the patch tokens to their grid, channels last, and use a head of the model's width"
        )


def as_grid(grid_size: Sequence[int]) -> tuple[int, int]:
    """Read (height, width) from two whole numbers of at least 1; raise ValueError on anything else."""
    try:
        height, width = (operator.index(side) for side in grid_size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(f"grid_size must be (height, width) in patches, two integers of at least 1, got {grid_size!r}")
    return height, width


@dataclass(frozen=True)
class HeadSource:
    """The origin of a head's weights."""

    place: str  # a folder, a file or "hf-hub:user/repo[@revision]", as it was named
    commit: str | None = None  # of the repository
    sha256: str | None = None  # of the file of weights
    base: str | None = None  # timm name of the backbone that it was trained on
    base_sha256: str | None = None  # of that backbone's file of weights
    stride: int | None = None  # pixels between patches that it was trained at


class Head(nn.Module):
    """What makes the feature maps of a model clean: [B, H, W, C] -> [B, H, W, C].

    Attributes:
        dim: channels C.
        source: where its weights come from (`place`, `commit`, `sha256`, `base`, `base_sha256`, `stride`), None if they
            come from nowhere.
    """

    __jit_unused_properties__ = ("config",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.source: HeadSource | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds it besides `dim`, JSON-friendly: nothing."""
        return {}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone."""
        return set()


class DenoiserHead(Head):
    """A position embedding and `num_blocks` transformer blocks that remove position artifacts from a feature map.

    It is the denoiser of stage 2 (arXiv 2401.02957, section 4.2). The blocks are timm's own `Block` (heads = dim / 64,
    mlp_ratio 4, qkv bias, LayerNorm eps 1e-6, no LayerScale), so code that wraps or patches every `Block` of a model
    (FSDP, LoRA patterns, token merging) meets this one too. State-dict keys are those of the authors' files:
    `pos_embed`, `denoiser.*` (`denoiser.<i>.*` if there are several blocks).

    Args:
        dim: channels C, a positive multiple of 64.
        grid_size: (height, width) in patches of the position embedding, both at least 1; it need not be square.
        num_blocks: number of transformer blocks, at least 1; every published head has 1.

    Raises:
        ValueError: if `dim` is no positive multiple of 64, `grid_size` is not two whole numbers of at least 1, or
            `num_blocks` is no whole number of at least 1.
    """

    __jit_unused_properties__ = ("config",)

    def __init__(
        self,
        dim: int,
        grid_size: Sequence[int],
        num_blocks: int = 1,
    ) -> None:
        super().__init__(dim)
        if dim <= 0 or dim % HEAD_DIM:
            raise ValueError(f"dim must be a positive multiple of {HEAD_DIM} (one attention head), got {dim}")
        if isinstance(num_blocks, bool) or not isinstance(num_blocks, int) or num_blocks < 1:
            raise ValueError(f"num_blocks must be an integer of at least 1, got {num_blocks!r}")
        self.grid_size = as_grid(grid_size)
        self.num_blocks = num_blocks
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size[0] * self.grid_size[1], dim))
        self.reset_parameters()
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        blocks = [Block(dim, dim // HEAD_DIM, qkv_bias=True, norm_layer=norm_layer) for _ in range(num_blocks)]
        self.denoiser = blocks[0] if num_blocks == 1 else nn.Sequential(*blocks)

    def reset_parameters(self) -> None:
        """Draw the position embedding anew; the layers of the blocks have a `reset_parameters` of their own."""
        nn.init.normal_(self.pos_embed, std=0.02)

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds this head besides `dim`, JSON-friendly: `{"grid_size": [h, w], "num_blocks": n}`."""
        return {"grid_size": list(self.grid_size), "num_blocks": self.num_blocks}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone."""
        return {"pos_embed"}

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C] -> [B, H, W, C]
        """Denoise a feature map of any grid.

        Args:
            x: [B, H, W, C], the patch tokens of B images after the model's final norm.

        Returns:
            [B, H, W, C], the denoised tokens.

        Raises:
            ValueError: if x is not [B, H, W, dim].
        """
        check_map(x, self.dim)
        _, H, W, _ = x.shape
        return self._with_positions(x, resample_positions(self.pos_embed, self.grid_size, H, W))

    @torch.jit.ignore
    def traced(self, x: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, H, W, C] -> [B, H, W, C]
        """Denoise a map whose grid (H, W) is fixed while torch.jit traces: its positions are a constant in the trace.

        ONNX has no operator for their antialiased resampling.
        """
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            positions = resample_positions(self.pos_embed.detach(), self.grid_size, grid[0], grid[1])
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
        return self._with_positions(x, positions)

    def _with_positions(self, x: Tensor, positions: Tensor) -> Tensor:  # [B, H, W, C], [1, H * W, C] -> [B, H, W, C]
        B, H, W, C = x.shape
        x = self.denoiser(x.reshape(B, H * W, C) + positions)
        return x.reshape(B, H, W, C)

    def __repr__(self) -> str:
        place = "" if self.source is None else f", source={self.source.place!r}"
        return f"DenoiserHead(dim={self.dim}, grid_size={self.grid_size}, num_blocks={self.num_blocks}{place})"
