"""A head put on a model, and taken off, in place."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ._util.errors import warn_caller
from .head import DenoiserHead
from .models import DenoisedEva, DenoisedVisionTransformer

COMPILED = "_orig_mod."  # what torch.compile puts before the names of parameters


def attach_head(model: Any, head: DenoiserHead) -> DenoisedVisionTransformer | DenoisedEva:
    """Put a head behind the final norm of a timm model, in place; see `dvt_timm.denoise`."""
    _refuse_compiled(model)
    denoised = {
        VisionTransformer: DenoisedVisionTransformer,
        Eva: DenoisedEva,
        DenoisedVisionTransformer: DenoisedVisionTransformer,
        DenoisedEva: DenoisedEva,
    }.get(type(model))
    if denoised is None:
        raise TypeError(
            f"cannot denoise a {type(model).__name__}: the denoiser reads the patch tokens of timm's VisionTransformer "
            "and Eva themselves; with another feature extractor call DenoiserHead on its (B, H, W, C) map"
        )
    if not isinstance(head, DenoiserHead):
        raise TypeError(f"head must be a DenoiserHead, got {type(head).__name__}; dvt_timm.load_head reads one")
    if head.dim != model.embed_dim:
        raise ValueError(
            f"the head is {head.dim} channels wide, the model {model.embed_dim}; use a head made for this model"
        )
    if not isinstance(model.patch_drop, nn.Identity | None):
        raise ValueError("the model drops patches that the denoiser needs; build it with patch_drop_rate=0")
    if isinstance(model.norm, nn.Identity):
        warn_caller(
            "this model has no norm before its pooling, and the published heads read tokens after one; build it with "
            "fc_norm=False (Eva: use_fc_norm=False), unless your head was trained without"
        )
    weight = next(model.blocks.parameters())
    model.__class__ = denoised
    model.denoiser = head.to(device=weight.device, dtype=weight.dtype).train(model.training)
    return model


def undenoise(model: DenoisedVisionTransformer | DenoisedEva) -> VisionTransformer | Eva:
    """Take the head off a denoised model, in place: the model is of timm's own class again.

    Args:
        model: a denoised model, from `timm.create_model` or `denoise`.

    Returns:
        The same model.

    Raises:
        TypeError: if the model has no head, or is compiled.
    """
    _refuse_compiled(model)
    if not isinstance(model, DenoisedVisionTransformer | DenoisedEva):
        raise TypeError(f"undenoise takes a denoised model, got {type(model).__name__}; it has no head to take off")
    plain: Any = model
    args = {key: value for key, value in plain._model_args.items() if key != "denoiser"}
    del plain.denoiser
    plain.__class__ = Eva if isinstance(model, Eva) else VisionTransformer
    plain._model_args = args
    return plain


def uncompiled(module: Any) -> Any:
    """Give the module that torch.compile has wrapped; give any other module as it is."""
    return getattr(module, COMPILED[:-1], module)


def _refuse_compiled(model: Any) -> None:
    if uncompiled(model) is not model:
        raise TypeError("a compiled model cannot change its head: put it on, or take it off, before torch.compile")
