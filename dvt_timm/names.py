"""What timm knows of a backbone by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model, model_entrypoint
from torch import nn

from .hub import client as hub
from .hub.client import WEIGHTS_NAME
from .manifest import published_variants

VIT_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")


def plain_model(base: str) -> Any:
    """A timm ViT without weights or memory, for its sizes; the same one for a name, so not to be changed.

    Raises:
        ValueError: if timm knows no such ViT.
    """
    model = _weightless(full_name(base), model_entrypoint(base))
    if not isinstance(getattr(model, "patch_embed", None), PatchEmbed):
        raise ValueError(f"{base} is no ViT, whose patch tokens a head could denoise")
    return model


def full_name(base: str) -> str:
    """A timm name, "arch.tag", with the tag that timm takes where it names none.

    Raises:
        ValueError: if timm knows no such model or tag.
    """
    try:
        if not is_model(base):
            raise RuntimeError("no such architecture")
        tag = base_cfg(base).tag
    except RuntimeError as error:
        raise ValueError(f"timm knows no model {base!r} ({error}); name one of timm.list_models()") from error
    return f"{base.partition('.')[0]}.{tag}" if tag else base


def base_cfg(base: str) -> PretrainedCfg:
    """What timm knows of a name's weights: nothing if it was registered without a cfg.

    Raises:
        RuntimeError: if timm knows no such tag.
    """
    return get_pretrained_cfg(base) or PretrainedCfg()


def takes_denoiser(base: str) -> bool:
    """Whether `create_model` takes a head for a name: not for ViTs of another module of timm or of one's own."""
    return model_entrypoint(base).__module__ in VIT_MODULES


@lru_cache
def _weightless(base: str, entrypoint: Callable[..., nn.Module]) -> nn.Module:
    """The model of a name, for as long as the name has this entrypoint."""
    with torch.device("meta"):
        return timm.create_model(base)


def base_sha256(base: str) -> str | None:
    """The SHA-256 of the weights that timm loads for a base, embedded or in the cache; None if not known."""
    for variant in published_variants():
        if variant.name == base and variant.base_file is not None:
            return variant.base_sha256
    repo, revision = hub.split_source(base_cfg(base).hf_hub_id or "")
    path = hub.cached(repo, WEIGHTS_NAME, revision) if repo else None
    return None if path is None else hub.recorded_sha256(path)
