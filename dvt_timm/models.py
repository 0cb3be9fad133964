"""timm's VisionTransformer and Eva with a denoiser head behind their final norm.

`y = norm(blocks(x))` becomes `[prefix tokens of y, head(patch tokens of y)]` wherever timm hands features out.
Prefix tokens pass untouched, so the logits of a token-pooled classifier do not change.
"""

from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ._util.errors import warn_caller
from .cleaned import Cleaned, Seen, make_plain, renamed, repack, tokens_and_maps, unpack
from .head import DenoiserHead
from .tracing import embed_positions


class _Denoised(Cleaned):
    """The part that both families of denoised models share."""

    def _denoise(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, H * W, C] -> [B, H, W, C]
        B, N, C = patches.shape
        torch._assert(
            grid[0] * grid[1] == N,
            "the denoiser needs every patch token of the image, but some were dropped or merged on the way; "
            "use a plain model where tokens are dropped (patch_drop_rate, token merging, masking)",
        )
        y = patches.reshape(B, grid[0], grid[1], C)
        if not torch.jit.is_scripting():
            if self.grad_checkpointing:
                return checkpoint(self.denoiser, y)
            if self._is_exported() and isinstance(self.denoiser, DenoiserHead):
                return self.denoiser.traced(y, grid)
        return self.denoiser(y)

    @torch.jit.unused
    def _is_exported(self) -> bool:
        """Whether torch.jit traces it for ONNX, for images of one size."""
        return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export() and not self.dynamic_img_size

    def _denoise_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, prefix + H * W, C], after norm
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        return torch.cat([prefix, self._denoise(patches, grid).flatten(1, 2)], dim=1)

    def forward_features(
        self,
        x: Tensor,  # [B, 3, height, width]
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:  # [B, prefix + H * W, C]
        """Compute what timm's `forward_features` gives, with the head's patch tokens in place of the backbone's."""
        grid = self._grid(x)
        return self._denoise_tokens(self._raw_tokens(x, attn_mask, is_causal), grid)

    def forward(
        self,
        x: Tensor,  # [B, 3, height, width]
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Compute what timm's `forward` gives: logits, or what they are made of.

        The head is not run where only the class token is read, which it leaves as it is: it gets no gradients then.
        """
        skips_head = self.global_pool == "token" and self.attn_pool is None and self.num_prefix_tokens > 0
        if not torch.jit.is_scripting():
            skips_head = skips_head and not isinstance(x, torch.fx.Proxy)  # nodes of a graph may be asked for
        if skips_head:
            self._grid(x)  # refuses images that do not fit
            return self.forward_head(self._raw_tokens(x, attn_mask, is_causal))
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    def _raw_tokens(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        if attn_mask is None and not is_causal:
            return self._plain_forward_features(x)
        return self._masked_forward_features(x, attn_mask, is_causal)

    @torch.jit.unused
    def _masked_forward_features(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        return self._plain_forward_features(x, **self._masks(attn_mask, is_causal))

    def _forward_intermediates(self, x: Tensor, indices: Any, **options: Any) -> Any:
        """Call timm's `forward_intermediates`, then replace the last block's map and the final features."""
        depth = len(self.blocks)
        take_indices, max_index = feature_take_indices(depth, indices)
        has_last = depth - 1 in take_indices
        grid = self._grid(x)
        output = super().forward_intermediates(x, indices, **options)
        final, maps = unpack(output)

        if final is not None and options["stop_early"] and max_index < depth - 1:
            warn_caller(
                f"stop_early=True ends at block {max_index} of {depth}: the final features are not denoised; "
                "pass intermediates_only=True, or take the last block too"
            )
            return output

        denoised = None  # [B, H, W, C]
        if final is not None:
            denoised = self._denoise(final[:, self.num_prefix_tokens :], grid)
            final = torch.cat([final[:, : self.num_prefix_tokens], denoised.flatten(1, 2)], dim=1)
        if has_last:
            last, prefix = maps[-1] if isinstance(maps[-1], tuple) else (maps[-1], None)
            if denoised is None:
                patches = last.flatten(2).transpose(1, 2) if options["output_fmt"] == "NCHW" else last
                denoised = self._denoise(patches if options["norm"] else self.norm(patches), grid)
            nchw = options["output_fmt"] == "NCHW"
            last = denoised.permute(0, 3, 1, 2).contiguous() if nchw else denoised.flatten(1, 2)
            maps[-1] = last if prefix is None else (last, prefix)
        return repack(output, final, maps)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Prune as timm does, but keep the final norm, since the denoiser reads what it gives.

        Without the last block among `indices` nothing is left to denoise: the denoiser is taken off, with a warning.
        """
        depth = len(self.blocks)
        _, max_index = feature_take_indices(depth, indices)
        if max_index < depth - 1:
            warn_caller(
                f"indices {indices} end at block {max_index} of {depth}, and only the last block's map is denoised: "
                "the denoiser is taken off; include the last block (-1) for a denoised map"
            )
            plain: Any = self
            make_plain(plain)
            return plain.prune_intermediate_layers(indices, prune_norm, prune_head)
        return super().prune_intermediate_layers(indices, prune_norm=False, prune_head=prune_head)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name timm's parameters without weight decay, and the head's."""
        return super().no_weight_decay() | {f"denoiser.{name}" for name in self.denoiser.no_weight_decay()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give timm's parameter groups, and one for the head between the last block and the classifier."""
        return dict(super().group_matcher(coarse), denoiser=r"^denoiser\.")

    def _seen(self, x: Tensor, blocks: Sequence[int]) -> Seen:
        grid = self._grid(x)
        tokens, maps = tokens_and_maps(super(), x, blocks)
        return Seen(tokens, self._denoise_tokens(tokens, grid), maps)


class DenoisedVisionTransformer(_Denoised, VisionTransformer):
    """timm's `VisionTransformer` whose patch tokens come out of a `DenoiserHead`, in `model.denoiser`.

    `timm.create_model("<arch>.dvt...")` and `denoise` build it. Class and register tokens pass untouched.
    """

    _plain_forward_features = renamed(VisionTransformer.forward_features, "_plain_forward_features")
    _plain_pos_embed = renamed(VisionTransformer._pos_embed, "_plain_pos_embed")
    _timm_masks = frozenset(signature(VisionTransformer.forward_features).parameters)

    def _pos_embed(self, x: Tensor) -> Tensor:
        return self._plain_pos_embed(x) if torch.jit.is_scripting() else embed_positions(self, x)

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
        """Compute what timm's `forward_intermediates` gives; the last block's map is head(norm(x)) for any `norm`.

        Earlier maps are timm's own. With `stop_early` and without the last block nothing is denoised: the final
        features that timm returns then come with a warning.
        """
        return self._forward_intermediates(
            x,
            indices,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
            **self._masks(attn_mask, is_causal),
        )


class DenoisedEva(_Denoised, Eva):
    """timm's `Eva` whose patch tokens come out of a `DenoiserHead`, in `model.denoiser`.

    `timm.create_model("<arch>.dvt...")` and `denoise` build it. Class and register tokens pass untouched.
    """

    _plain_forward_features = renamed(Eva.forward_features, "_plain_forward_features")
    _plain_forward_intermediates = renamed(Eva.forward_intermediates, "_plain_forward_intermediates")
    _plain_pos_embed = renamed(Eva._pos_embed, "_plain_pos_embed")
    _timm_masks = frozenset(signature(Eva.forward_features).parameters)

    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._plain_pos_embed(x) if torch.jit.is_scripting() else embed_positions(self, x)

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
        """Compute what timm's `forward_intermediates` gives; the last block's map is head(norm(x)) for any `norm`.

        Earlier maps are timm's own. With `stop_early` and without the last block nothing is denoised: the final
        features that timm returns then come with a warning. In TorchScript, as in timm, `return_prefix_tokens` and
        `stop_early` have no effect; masks are refused there.
        """
        if torch.jit.is_scripting() and attn_mask is None and not is_causal:
            return self._scripted_intermediates(x, indices, norm, output_fmt, intermediates_only)
        return self._python_intermediates(
            x,
            indices,
            return_prefix_tokens,
            norm,
            stop_early,
            output_fmt,
            intermediates_only,
            attn_mask,
            is_causal,
        )

    def _scripted_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None,
        norm: bool,
        output_fmt: str,
        intermediates_only: bool,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        grid = self._grid(x)
        output = self._plain_forward_intermediates(x, indices, norm=norm, output_fmt=output_fmt)
        assert isinstance(output, tuple)  # TorchScript wants to know
        final, maps = output
        depth = len(self.blocks)
        has_last = depth - 1 in feature_take_indices(depth, indices)[0]
        if has_last or not intermediates_only:
            final = self._denoise_tokens(final, grid)
        if has_last:
            patches = final[:, self.num_prefix_tokens :]
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).reshape(x.shape[0], -1, grid[0], grid[1])
            maps[-1] = patches
        if intermediates_only:
            return maps
        return final, maps

    @torch.jit.unused
    def _python_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None,
        return_prefix_tokens: bool,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
        intermediates_only: bool,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        return self._forward_intermediates(
            x,
            indices,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            **self._masks(attn_mask, is_causal),
        )


def checkpoint_filter_fn(state_dict: dict[str, Any], model: Any, **options: Any) -> dict[str, Tensor]:
    """Bring a checkpoint into timm's form, as the function of this name beside the class of a plain model does."""
    family = import_module((Eva if isinstance(model, Eva) else VisionTransformer).__module__)
    return family.checkpoint_filter_fn(state_dict, model, **options)
