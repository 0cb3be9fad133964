"""The names that exist and what is behind each: the manifest's, users' own, and what timm knows of a backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model, model_entrypoint
from torch import nn

from .manifest import Own, Variant, published_variants, weights_path

VIT_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")  # their models take a head
SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "state_dict")  # fields of a PretrainedCfg that name weights
NOWHERE = {**dict.fromkeys(SOURCES), "custom_load": False}

_own: dict[str, Variant] = globals().get("_own", {})  # users' own; a reload keeps them


def list_variants(filter: str = "", pretrained: bool = False) -> list[str]:
    """List the names that this package adds to timm, "arch.tag", users' own among them.

    Args:
        filter: a pattern as in `timm.list_models`, "*dinov2*"; every name by default.
        pretrained: list only those with weights: published, embedded, or the user's own.

    Returns:
        The names, sorted.
    """
    variants = {**published_variants(), **_own}
    return sorted(
        name
        for name, variant in variants.items()
        if fnmatch(name, filter or "*") and (variant.weights is not None or not pretrained)
    )


def find_variant(name: str) -> Variant | None:
    """Give the row of a name, None if it is not one of `list_variants()`."""
    return _own.get(name) or published_variants().get(name)


def keep_variant(variant: Variant) -> None:
    """Keep a user's own name for this process.

    Raises:
        ValueError: if the name is taken.
    """
    if variant.name in published_variants() or (variant.name not in _own and _is_tag_of_timm(variant)):
        raise ValueError(f"the tag {variant.tag!r} of {variant.arch} is taken; choose another")
    _own[variant.name] = variant


def own_variant(name: str, base: str, head: str | Path | None) -> Variant:
    """Make the row of a user's own head on the backbone of a timm name or of one of ours, with its embedded weights."""
    known = find_variant(base) or Variant(base, base)
    return Variant(name, known.base, None if head is None else Own(head), backbone=known.backbone)


def backbone_of(name: str) -> str:
    """Give the timm name of the backbone behind a name, one that every process knows.

    For a denoised name it is the base; where the backbone's weights are embedded, it is the published name that has
    them. Any other name stays as it is.
    """
    variant = find_variant(name)
    if variant is None:
        return name
    if variant.backbone is None:
        return variant.base
    return next(name for name, published in published_variants().items() if published.backbone == variant.backbone)


def name_of(model_or_cfg: Any) -> str:
    """Give the timm name of a model or of its `pretrained_cfg`: "arch.tag", or "arch" if it has no tag."""
    cfg = model_or_cfg if isinstance(model_or_cfg, Mapping | PretrainedCfg) else model_or_cfg.pretrained_cfg
    return ".".join(filter(None, (cfg_field(cfg, "architecture"), cfg_field(cfg, "tag"))))


def cfg_field(cfg: Any, key: str) -> Any:
    """Read a field of a `pretrained_cfg`, which may be a PretrainedCfg, a dict, a tag or None."""
    return cfg.get(key) if isinstance(cfg, Mapping) else getattr(cfg, key, None)


def takes_denoiser(base: str) -> bool:
    """Say whether `create_model` takes a head for a name: not for ViTs of timm's other modules or of a user's own."""
    return model_entrypoint(base).__module__ in VIT_MODULES


def is_eva(arch: str) -> bool:
    """Say whether an architecture is one of timm's `Eva`."""
    return model_entrypoint(arch).__module__ == "timm.models.eva"


def full_name(base: str) -> str:
    """Complete a timm name to "arch.tag", with the tag that timm takes where it names none.

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
    """Give what timm knows of a name's weights: nothing if it was registered without a cfg.

    Raises:
        RuntimeError: if timm knows no such tag.
    """
    return get_pretrained_cfg(base) or PretrainedCfg()


def backbone_cfg(variant: Variant) -> PretrainedCfg:
    """Make the cfg of a variant's backbone: the base's, with the embedded weights as the source where it has some."""
    cfg = base_cfg(variant.base)
    if variant.backbone is None:
        return cfg
    return dataclasses.replace(cfg, **{**NOWHERE, "file": str(weights_path(variant.backbone.file))})


def listed_cfg(variant: Variant, input_size: tuple[int, int, int] | None = None) -> PretrainedCfg:
    """Make the cfg that timm lists for a name: the backbone's at our sizes, without a source if there are no weights.

    Args:
        variant: the row of the name.
        input_size: (channels, height, width) in pixels, that of the released heads by default.
    """
    cfg = dataclasses.replace(
        backbone_cfg(variant),
        architecture=variant.arch,
        tag=variant.tag,
        input_size=input_size or variant.input_size,
        crop_pct=1.0,
    )
    if variant.distilled:
        cfg = dataclasses.replace(cfg, num_classes=0)  # their files hold features alone
    return cfg if variant.weights is not None else dataclasses.replace(cfg, **NOWHERE)


def plain_model(base: str) -> Any:
    """Give a timm ViT without weights or memory, to read its sizes; callers share it, so do not change it.

    Raises:
        ValueError: if timm knows no such ViT.
    """
    variant = find_variant(base)
    base = base if variant is None else variant.base
    model = _weightless(full_name(base), model_entrypoint(base))
    if not isinstance(getattr(model, "patch_embed", None), PatchEmbed):
        raise ValueError(f"{base} is no ViT, whose patch tokens a head could denoise; name one")
    return model


@lru_cache
def _weightless(base: str, entrypoint: Callable[..., nn.Module]) -> nn.Module:
    """Build the model of a name once, for as long as the name has this entrypoint."""
    with torch.device("meta"):
        return timm.create_model(base)


def _is_tag_of_timm(variant: Variant) -> bool:
    try:
        return get_pretrained_cfg(variant.name) is not None
    except RuntimeError:  # timm knows the architecture, and no such tag
        return False
