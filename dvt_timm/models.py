"""timm's VisionTransformer and Eva with a denoiser head behind their final norm.

`y = norm(blocks(x))` becomes `[prefix tokens of y, head(patch tokens of y)]` wherever timm hands features out.
Prefix tokens pass untouched, so the logits of a token-pooled classifier do not change.
"""

from inspect import signature
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ._util.errors import warn_caller

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as _TimmViT
else:
    _TimmViT = object


@torch.fx.wrap
def check_image_size(
    x: Tensor,  # [B, 3, height, width]
    patch_size: tuple[int, int],
    img_size: tuple[int, int],
    fixed: bool,
    padded: bool,
) -> None:
    """Raise ValueError unless images are whole patches, or padded to them, and have the fixed size if there is one."""
    if x.ndim != 4:
        raise ValueError(f"images must be [B, channels, height, width], got {list(x.shape)}")
    for name, side, patch, expected in (
        ("height", x.shape[2], patch_size[0], img_size[0]),
        ("width", x.shape[3], patch_size[1], img_size[1]),
    ):
        if fixed and side != expected:
            raise ValueError(
                f"{name} {side} is not the fixed {expected} of this model; resize to it, or build with "
                f"dynamic_img_size=True (the default) or img_size of your images"
            )
        if not padded and (side < patch or side % patch != 0):
            fitting = max(side // patch, 1) * patch
            advice = "build with that img_size" if fixed else "pass dynamic_img_pad=True"
            raise ValueError(f"{name} {side} is not a multiple of patch size {patch}; resize to {fitting} or {advice}")


def _check_traceable(x: Tensor | torch.fx.Proxy, dynamic: bool) -> None:
    if dynamic and isinstance(x, torch.fx.Proxy):
        raise ValueError(
            "torch.fx cannot trace timm's models for images of any size; build the model with dynamic_img_size=False "
            "and img_size=... of your images"
        )


def _renamed(method: FunctionType, name: str) -> FunctionType:
    """Copy a method under another name: TorchScript knows no super() and compiles by the function's name."""
    copy = FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)
    copy.__annotations__ = method.__annotations__
    return copy


class _Denoised(_TimmViT):
    """The part that both families share; it comes before the timm class among their bases."""

    __jit_unused_properties__ = ("_model_args",)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Give (H, W) in patches of images x [B, 3, height, width]; raise ValueError if they do not fit the model."""
        if not torch.jit.is_scripting():
            _check_traceable(x, self.dynamic_img_size)
        embed = self.patch_embed
        check_image_size(x, embed.patch_size, embed.img_size, embed.strict_img_size, embed.dynamic_img_pad)
        if self.dynamic_img_size:
            return embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        return embed.grid_size

    def _denoise(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, H * W, C] -> [B, H, W, C]
        B, N, C = patches.shape
        torch._assert(
            grid[0] * grid[1] == N,
            "the denoiser needs every patch token of the image, but some were dropped or merged on the way; "
            "use a plain model where tokens are dropped (patch_drop_rate, token merging, masking)",
        )
        y = patches.reshape(B, grid[0], grid[1], C)
        if not torch.jit.is_scripting() and self.grad_checkpointing:
            return checkpoint(self.denoiser, y)
        return self.denoiser(y)

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
        if attn_mask is None and not is_causal:
            tokens = self._plain_forward_features(x)
        else:
            tokens = self._masked_forward_features(x, attn_mask, is_causal)
        return self._denoise_tokens(tokens, grid)

    @torch.jit.unused
    def _masked_forward_features(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        return self._plain_forward_features(x, **self._masks(attn_mask, is_causal))

    def _masks(self, attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
        """Choose the mask arguments that timm knows (the older, the fewer), and those that were given all the same."""
        given = {"attn_mask": attn_mask, "is_causal": is_causal}
        return {
            key: value
            for key, value in given.items()
            if key in self._timm_masks or not (value is None or value is False)
        }

    def _forward_intermediates(self, x: Tensor, indices: Any, **options: Any) -> Any:
        """Call timm's `forward_intermediates`, then replace the last block's map and the final features."""
        depth = len(self.blocks)
        take_indices, max_index = feature_take_indices(depth, indices)
        has_last = depth - 1 in take_indices
        grid = self._grid(x)
        output = super().forward_intermediates(x, indices, **options)
        final, maps = _unpack(output)

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
        return _repack(output, final, maps)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Prune as timm does, but keep the final norm, since the denoiser reads what it gives.

        Raises:
            ValueError: if the last block is not among `indices`: nothing would be denoised.
        """
        _, max_index = feature_take_indices(len(self.blocks), indices)
        if max_index != len(self.blocks) - 1:
            raise ValueError(
                f"only the last block's map is denoised, but indices {indices} end at block {max_index} of "
                f"{len(self.blocks)}; include the last block (-1), or use the plain model for earlier maps"
            )
        return super().prune_intermediate_layers(indices, prune_norm=False, prune_head=prune_head)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name timm's parameters without weight decay, and the head's."""
        return super().no_weight_decay() | {f"denoiser.{name}" for name in self.denoiser.no_weight_decay()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give timm's parameter groups, and one for the head between the last block and the classifier."""
        return dict(super().group_matcher(coarse), denoiser=r"^denoiser\.")

    @property
    def _model_args(self) -> dict[str, Any]:
        """The arguments that rebuild the model, which timm records here; the head's shape is always among them."""
        return dict(self.__dict__.get("_model_args", {}), denoiser=self.denoiser.config)

    @_model_args.setter
    def _model_args(self, value: dict[str, Any]) -> None:
        self.__dict__["_model_args"] = value


class DenoisedVisionTransformer(_Denoised, VisionTransformer):
    """timm's `VisionTransformer` whose patch tokens come out of a `DenoiserHead`, in `model.denoiser`.

    `timm.create_model("<arch>.dvt...")` and `denoise` build it. Class and register tokens pass untouched.
    """

    _plain_forward_features = _renamed(VisionTransformer.forward_features, "_plain_forward_features")
    _timm_masks = frozenset(signature(VisionTransformer.forward_features).parameters)

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

    _plain_forward_features = _renamed(Eva.forward_features, "_plain_forward_features")
    _timm_masks = frozenset(signature(Eva.forward_features).parameters)

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
            **self._masks(attn_mask, is_causal),
        )


def plain_features(model: Any, x: Tensor) -> Tensor:  # [B, 3, height, width] -> [B, prefix + H * W, C]
    """Compute the tokens after the final norm, as the model gives them without a denoiser.

    Raises:
        ValueError: if the images do not fit the model.
    """
    embed = model.patch_embed
    check_image_size(x, embed.patch_size, embed.img_size, embed.strict_img_size, embed.dynamic_img_pad)
    return model._plain_forward_features(x) if isinstance(model, _Denoised) else model.forward_features(x)


def plain_intermediates(model: Any, x: Tensor, layer: int) -> Tensor:  # [B, 3, height, width] -> [B, C, H, W]
    """Compute the patch map of one block after the final norm, as the model gives it without a denoiser."""
    timm_model: Any = super(_Denoised, model) if isinstance(model, _Denoised) else model
    (fmap,) = timm_model.forward_intermediates(x, [layer], norm=True, stop_early=True, intermediates_only=True)
    return fmap


def _unpack(output: Any) -> tuple[Tensor | None, list[Any]]:
    """Take final features (None if there are none) and intermediates out of what `forward_intermediates` returns."""
    if isinstance(output, dict):
        return output.get("image_features"), output["image_intermediates"]
    if isinstance(output, tuple):
        return output
    return None, output


def _repack(output: Any, final: Tensor | None, maps: list[Any]) -> Any:
    """Put final features and intermediates into the form that `forward_intermediates` returned."""
    if isinstance(output, dict):
        replaced = dict(output, image_intermediates=maps)
        return replaced if final is None else dict(replaced, image_features=final)
    return maps if final is None else (final, maps)
