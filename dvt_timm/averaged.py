"""timm's VisionTransformer and Eva whose maps are means over views that move the positions: no head, no training.

A batch of B images is seen as (K + 1) B: K windows of the position embedding and, last, the plain pass, which gives the
prefix tokens and the level of every map. See `positions` for the windows.

Letters: K windows, B images, N = h * w patches, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from .cleaned import Cleaned, Seen, repack, tokens_and_maps, unpack
from .positions import PositionViews, plain_embedding, windowed_embedding, windowed_rotation


class _Averaged(Cleaned):
    """The part that both families share."""

    denoiser: PositionViews

    def forward_features(
        self,
        x: Tensor,  # [B, 3, height, width]
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:  # [B, prefix + H * W, C]
        """Compute what timm's `forward_features` gives, with patch tokens that are means over position views."""
        self._check(x)
        masks = self._view_masks(attn_mask, is_causal)
        return self._mean_tokens(super().forward_features(self.denoiser.repeated(x), **masks))

    def _seen(self, x: Tensor, blocks: Sequence[int]) -> Seen:
        self._check(x)
        tokens, maps = tokens_and_maps(super(), self.denoiser.repeated(x), blocks)
        means = [self.denoiser.mean(fmap, (2, 3)) for fmap in maps]
        return Seen(self.denoiser.plain(tokens), self._mean_tokens(tokens), means)

    def _check(self, x: Tensor) -> None:
        """Raise ValueError if images do not fit the model, or torch.fx traces it."""
        if isinstance(x, torch.fx.Proxy):
            raise ValueError("torch.fx cannot trace a model that averages over positions; use torch.export")
        self._grid(x)

    def _mean_tokens(self, tokens: Tensor) -> Tensor:  # [(K + 1) B, prefix + N, C] -> [B, prefix + N, C]
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        return torch.cat([self.denoiser.plain(prefix), self.denoiser.mean(patches, (1,))], dim=1)

    def _view_masks(self, attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
        """Choose the mask arguments that timm knows; a mask for each image is repeated for each view."""
        if attn_mask is not None and attn_mask.ndim == 4 and attn_mask.shape[0] > 1:
            attn_mask = self.denoiser.repeated(attn_mask)
        return self._masks(attn_mask, is_causal)

    def _moved(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # [(K + 1) B, prefix + N, C]
        """Move tokens that have the plain position embedding to their windows' positions."""
        if self.pos_embed is None:
            return tokens
        windows = self.denoiser.windows
        patches = slice(-grid[0] * grid[1], None)
        moved, plain = windowed_embedding(self, windows, grid)[:, patches], plain_embedding(self, grid)[:, patches]
        prefix, rest = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        rest = rest.unflatten(0, (len(windows), -1)) + (moved - plain)[:, None]
        return torch.cat([prefix, rest.flatten(0, 1)], dim=1)

    def _grid_of_patches(self, x: Tensor) -> tuple[int, int]:  # [(K + 1) B, h, w, C] or [(K + 1) B, N, C]
        torch._assert(
            x.shape[0] % len(self.denoiser.windows) == 0,
            "a model that averages over positions repeats its batch itself; call its forward_features or "
            "forward_intermediates, or dvt_timm.undenoise it to run its blocks",
        )
        return (x.shape[1], x.shape[2]) if self.dynamic_img_size else self.patch_embed.grid_size

    def _forward_intermediates(self, x: Tensor, indices: Any, **options: Any) -> Any:
        """Call timm's `forward_intermediates` for all views, and average every map and the final features."""
        self._check(x)
        masks = self._view_masks(options.pop("attn_mask"), options.pop("is_causal"))
        output = super().forward_intermediates(self.denoiser.repeated(x), indices, **options, **masks)
        final, maps = unpack(output)
        over = (2, 3) if options["output_fmt"] == "NCHW" else (1,)
        means = [
            (self.denoiser.mean(each[0], over), self.denoiser.plain(each[1]))
            if isinstance(each, tuple)
            else self.denoiser.mean(each, over)
            for each in maps
        ]
        if isinstance(output, dict) and "image_intermediates_prefix" in output:
            prefixes = [self.denoiser.plain(prefix) for prefix in output["image_intermediates_prefix"]]
            output = dict(output, image_intermediates_prefix=prefixes)
        return repack(output, None if final is None else self._mean_tokens(final), means)


class AveragedVisionTransformer(_Averaged, VisionTransformer):
    """timm's `VisionTransformer` whose maps are means over views that move the positions.

    `timm.create_model(NAME, denoiser={"positions": K})` and `denoise(model, positions=K)` build it. Class and register
    tokens are those of the plain pass; it takes K + 1 passes.
    """

    _timm_masks = frozenset(signature(VisionTransformer.forward_features).parameters)

    def _pos_embed(self, x: Tensor) -> Tensor:
        grid = self._grid_of_patches(x)
        return self._moved(super()._pos_embed(x), grid)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """Compute what timm's `forward_intermediates` gives, every map a mean over position views."""
        return self._forward_intermediates(
            x,
            indices,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
            attn_mask=attn_mask,
            is_causal=is_causal,
        )


class AveragedEva(_Averaged, Eva):
    """timm's `Eva` whose maps are means over views that move the positions, absolute and rotary.

    `timm.create_model(NAME, denoiser={"positions": K})` and `denoise(model, positions=K)` build it. Class and register
    tokens are those of the plain pass; it takes K + 1 passes.
    """

    _timm_masks = frozenset(signature(Eva.forward_features).parameters)

    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        grid = self._grid_of_patches(x)
        tokens, rotation = super()._pos_embed(x)
        if rotation is not None:
            rotation = windowed_rotation(self.rope, self.denoiser.windows, grid)  # [..., K + 1, heads or 1, N, 2 D]
            batch = tokens.shape[0] // len(self.denoiser.windows)
            repeated = (*rotation.shape[:-3], batch, *rotation.shape[-3:])
            rotation = rotation.unsqueeze(-4).expand(repeated).flatten(-5, -4)
        return self._moved(tokens, grid), rotation

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute what timm's `forward_intermediates` gives, every map a mean over position views."""
        return self._forward_intermediates(
            x,
            indices,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            attn_mask=attn_mask,
            is_causal=is_causal,
        )
