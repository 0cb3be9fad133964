"""What timm's models with clean maps share: images are checked, and their raw features stay at hand."""

from collections.abc import Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ._util.modules import shallow_copy

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


def renamed(method: FunctionType, name: str) -> FunctionType:
    """Copy a method under another name: TorchScript knows no super() and compiles by the function's name."""
    copy = FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)
    copy.__annotations__ = method.__annotations__
    return copy


class Cleaned(_TimmViT):
    """What every model with clean maps shares; it comes before the timm class among their bases.

    `denoiser` is the module that makes them clean; its `config` is the JSON-friendly argument that rebuilds it. The
    method `_seen` is what `seen_by` calls.
    """

    __jit_unused_properties__ = ("_model_args",)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Give (H, W) in patches of images x [B, 3, height, width]; raise ValueError if they do not fit the model."""
        embed = self.patch_embed
        check_image_size(x, embed.patch_size, embed.img_size, embed.strict_img_size, embed.dynamic_img_pad)
        if self.dynamic_img_size:
            return embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        return embed.grid_size

    def _masks(self, attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
        """Choose the mask arguments that timm knows (the older, the fewer), and those that were given all the same."""
        masks = {"attn_mask": attn_mask, "is_causal": is_causal}
        given = {
            key: not (value is None or value is False or isinstance(value, torch.fx.Proxy))
            for key, value in masks.items()
        }
        return {key: value for key, value in masks.items() if key in self._timm_masks or given[key]}

    @property
    def _model_args(self) -> dict[str, Any]:
        """The arguments that rebuild the model, which timm records here; the denoiser's is always among them."""
        return dict(self.__dict__.get("_model_args", {}), denoiser=self.denoiser.config)

    @_model_args.setter
    def _model_args(self, value: dict[str, Any]) -> None:
        self.__dict__["_model_args"] = value


def make_plain(model: Any) -> None:
    """Take the denoiser of a model off, in place: the model is of timm's own class again."""
    args = {key: value for key, value in model._model_args.items() if key != "denoiser"}
    del model.denoiser
    model.__class__ = Eva if isinstance(model, Eva) else VisionTransformer
    model._model_args = args


def as_plain(model: Any) -> Any:
    """Make a twin of a model that gives raw features, of timm's own class; both share their weights."""
    if not isinstance(model, Cleaned):
        return model
    twin = shallow_copy(model)
    del twin.denoiser
    twin.__class__ = Eva if isinstance(model, Eva) else VisionTransformer
    return twin


def plain_intermediates(model: Any, x: Tensor, layer: int) -> Tensor:  # [B, 3, height, width] -> [B, C, H, W]
    """Compute the patch map of one block after the final norm, as the model gives it without a denoiser."""
    plain = as_plain(model)
    (fmap,) = plain.forward_intermediates(x, [layer], norm=True, stop_early=True, intermediates_only=True)
    return fmap


class Seen(NamedTuple):
    """What one pass over B images gives, after the final norm."""

    raw: Tensor  # [B, prefix + H * W, C], tokens as the backbone gives them
    clean: Tensor | None  # the same, clean; None if the model is plain
    maps: list[Tensor]  # [B, C, H, W] each, of the blocks that were asked for


def seen_by(model: Any, x: Tensor, blocks: Sequence[int] = ()) -> Seen:  # [B, 3, height, width]
    """Let a model see images once: their tokens, raw and clean, and the maps of some blocks.

    Args:
        model: a timm `VisionTransformer` or `Eva`, with clean maps or not.
        x: as the model wants them.
        blocks: ascending, without the last one. Means over positions clean their maps too, heads do not.

    Raises:
        ValueError: if the images do not fit the model.
    """
    if isinstance(model, Cleaned):
        return model._seen(x, blocks)
    embed = model.patch_embed
    check_image_size(x, embed.patch_size, embed.img_size, embed.strict_img_size, embed.dynamic_img_pad)
    tokens, maps = tokens_and_maps(model, x, blocks)
    return Seen(tokens, None, maps)


def tokens_and_maps(model: Any, x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Call timm's own pass: tokens [B, prefix + H * W, C] and the maps [B, C, H, W] of blocks, after the final norm.

    Args:
        model: or `super()` within a method of one.
        x: [B, 3, height, width].
        blocks: ascending.
    """
    if not blocks:
        return model.forward_features(x), []
    tokens, maps = model.forward_intermediates(x, list(blocks), norm=True)
    return tokens, maps


def unpack(output: Any) -> tuple[Tensor | None, list[Any]]:
    """Take final features (None if there are none) and intermediates out of what `forward_intermediates` returns."""
    if isinstance(output, dict):
        return output.get("image_features"), output["image_intermediates"]
    if isinstance(output, tuple):
        return output
    return None, output


def repack(output: Any, final: Tensor | None, maps: list[Any]) -> Any:
    """Put final features and intermediates into the form that `forward_intermediates` returned."""
    if isinstance(output, dict):
        replaced = dict(output, image_intermediates=maps)
        return replaced if final is None else dict(replaced, image_features=final)
    return maps if final is None else (final, maps)
