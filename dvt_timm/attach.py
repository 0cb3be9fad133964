"""What makes a model's maps clean, put on it and taken off, in place."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ._util.errors import warn_caller
from ._util.modules import refuse_replaced, uncompiled
from .averaged import AveragedEva, AveragedVisionTransformer
from .cleaned import Cleaned, make_plain
from .head import Head
from .homes import Resident, home_of, move_out, settle, width_of
from .models import DenoisedEva, DenoisedVisionTransformer
from .positions import PositionViews, check_positions

METHODS = ("forward", "forward_features", "forward_intermediates", "get_intermediate_layers", "_pos_embed")  # of timm


def attach_head(model: Any, head: Head) -> Any:
    """Put a head behind the final norm of a model, in place; see `dvt_timm.denoise`."""
    _refuse_compiled(model)
    if home_of(model) is not None:
        _check_head(head, width_of(model))
        return settle(model, head)
    if _timm_class(model) is None:
        raise TypeError(
            f"cannot denoise a {type(model).__name__}: the denoiser reads the patch tokens of timm's VisionTransformer "
            "and Eva themselves, of torch.hub's DINOv2 and DINOv3 and of some models of transformers; "
            + (_inside(model) or "with another feature extractor call DenoiserHead on its (B, H, W, C) map")
        )
    refuse_replaced(model, METHODS)
    _check_head(head, model.embed_dim)
    _refuse_dropped_patches(model)
    if isinstance(model.norm, nn.Identity):
        warn_caller(
            "this model has no norm before its pooling, and the published heads read tokens after one; build it with "
            "fc_norm=False (Eva: use_fc_norm=False), unless your head was trained without"
        )
    weight = next(model.blocks.parameters())
    head = head.to(device=weight.device, dtype=weight.dtype).train(model.training)
    return _cleaned(model, head, {VisionTransformer: DenoisedVisionTransformer, Eva: DenoisedEva})


def _check_head(head: Any, width: int) -> None:
    """Raise TypeError if it is no head, ValueError if it is not as wide as the model."""
    if not isinstance(head, Head):
        raise TypeError(f"head must be a denoiser head, got {type(head).__name__}; dvt_timm.load_head reads one")
    if head.dim != width:
        raise ValueError(f"the head is {head.dim} channels wide, the model {width}; use a head made for this model")


def attach_positions(model: Any, num_views: int) -> AveragedVisionTransformer | AveragedEva:
    """Let a timm model average over views of its positions, in place; see `dvt_timm.denoise`."""
    _refuse_compiled(model)
    views = PositionViews(num_views)
    if _timm_class(model) is None:
        raise TypeError(
            f"cannot move the positions of a {type(model).__name__}: those of timm's VisionTransformer and Eva "
            "themselves can be moved; use a head, or dvt_timm.offline, with another model"
        )
    refuse_replaced(model, METHODS)
    check_positions(model)
    _refuse_dropped_patches(model)
    if getattr(model.pos_drop, "p", 0) > 0:
        raise ValueError("the model drops positions that are to be moved; build it with pos_drop_rate=0")
    return _cleaned(model, views, {VisionTransformer: AveragedVisionTransformer, Eva: AveragedEva})


def undenoise(model: Any) -> Any:
    """Take off what makes a model's maps clean, in place: the model is of its own class again.

    Args:
        model: a denoised model, from `timm.create_model` or `denoise`.

    Returns:
        The same model.

    Raises:
        TypeError: if the model has no denoiser, is compiled, or a method of it was replaced since.
    """
    _refuse_compiled(model)
    if isinstance(model, Resident):
        return move_out(model)
    if not isinstance(model, Cleaned):
        raise TypeError(f"undenoise takes a denoised model, got {type(model).__name__}; it has no denoiser to take off")
    refuse_replaced(model, METHODS)
    make_plain(model)
    return model


def _timm_class(model: Any) -> type | None:
    """Give timm's class of a model that is itself of it, or of ours; None for any other."""
    own = {DenoisedVisionTransformer, AveragedVisionTransformer, DenoisedEva, AveragedEva}
    if type(model) in own:
        return Eva if isinstance(model, Eva) else VisionTransformer
    return type(model) if type(model) in (VisionTransformer, Eva) else None


def _inside(model: Any) -> str:
    """Say which part of a model takes a head, if any does."""
    for name, part in model.named_modules() if isinstance(model, nn.Module) else ():
        if name and (_timm_class(part) is not None or home_of(part) is not None):
            return f"it holds one that takes a head: denoise its .{name}"
    return ""


def _cleaned(model: Any, denoiser: nn.Module, classes: dict[type | None, type]) -> Any:
    """Make a model one of these classes, by its timm class, with a denoiser in the place of any that it has."""
    if isinstance(model, Cleaned):
        undenoise(model)
    model.__class__ = classes[_timm_class(model)]
    model.denoiser = denoiser
    return model


def _refuse_dropped_patches(model: Any) -> None:
    if not isinstance(model.patch_drop, nn.Identity | None):
        raise ValueError("the model drops patches that the denoiser needs; build it with patch_drop_rate=0")


def _refuse_compiled(model: Any) -> None:
    if uncompiled(model) is not model:
        raise TypeError("a compiled model cannot change its denoiser: put it on, or take it off, before torch.compile")
