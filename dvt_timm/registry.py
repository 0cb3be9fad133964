"""Puts the names into timm's registry; no other module patches it."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm.models
from timm.models import is_model, model_entrypoint, register_model
from torch import nn

from .factory import create, refuse_denoiser, request_of
from .manifest import Variant, published_variants
from .names import find_variant, keep_variant, listed_cfg, own_variant, takes_denoiser


def register_variant(name: str, *, base: str, head: str | Path | None = None) -> None:
    """Make `timm.create_model(name)` build `base` with a head of one's own, in this process.

    Args:
        name: "arch.tag" with the architecture of `base` and a tag that is not taken; a name of one's own is replaced.
        base: timm name of the backbone, "arch.tag", or a denoised name, which stands for its backbone.
        head: folder, `.safetensors` file or `hf-hub:user/repo[@revision]`, read when a model is built; None for a
            head whose weights the caller loads.

    Raises:
        ValueError: if `name` is taken or has another architecture than `base`, or if `base` is unknown to timm, has
            no patch tokens to denoise, or is distilled.
        RuntimeError: if timm knows no such tag of `base`.
        TypeError: if `head` is the head itself.
    """
    arch, _, tag = name.partition(".")
    if not tag or base.partition(".")[0] != arch:
        raise ValueError(f"name must be '<arch>.<tag>' with the architecture of base {base!r}, got {name!r}")
    if not is_model(base):
        raise ValueError(f"timm knows no architecture {arch!r}; see timm.list_models()")
    if not takes_denoiser(arch):
        raise ValueError(
            f"{arch} is not among timm's ViT, DeiT and EVA models, whose patch tokens can be denoised; name one of "
            "them, or call DenoiserHead on the (B, H, W, C) map of any model"
        )
    known = find_variant(base)
    if known is not None and known.distilled:
        raise ValueError(f"{base} has distilled weights, which no head goes with; use {known.base}")
    if not isinstance(head, str | Path | None):
        kind = type(head).__name__
        raise TypeError(f"head must be a folder, a file or hf-hub:..., got a {kind}; write a head with save_head")
    variant = own_variant(name, base, head)
    cfg = listed_cfg(variant)
    keep_variant(variant)
    _list(variant, cfg)
    with _overwriting():
        _install(arch, _denoising)


def register_published() -> None:
    """Register every published name; make ViTs take `denoiser=` and `stride=`, and all others refuse both."""
    for variant in published_variants().values():
        _list(variant, listed_cfg(variant))
    with _overwriting():
        for arch in timm.list_models():
            if takes_denoiser(arch):
                _install(arch, _denoising)
            elif model_entrypoint(arch).__module__.startswith("timm."):
                _install(arch, _refusing)


@contextmanager
def _overwriting() -> Iterator[None]:
    """Silence timm's warning that an architecture is registered anew, which is what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Overwriting \w+ in registry")
        yield


def _list(variant: Variant, cfg: Any) -> None:
    """Put a name among the tags of its architecture, behind timm's own: the default stays."""
    default_cfg = _module(model_entrypoint(variant.arch)).default_cfgs[variant.arch]
    if variant.tag not in default_cfg.cfgs:
        default_cfg.tags.append(variant.tag)
    default_cfg.cfgs[variant.tag] = cfg


def _install(arch: str, wrap: Callable[..., Any]) -> None:
    """Put our entrypoint in the place of timm's, for the registry and for the modules that hold it."""
    current = model_entrypoint(arch)
    plain = getattr(current, "_plain", current)
    module, wrapped = _module(plain), wrap(plain)
    wrapped._plain = plain
    exported = list(module.__all__)
    register_model(wrapped)
    module.__all__[:] = exported  # older timm appends the name once more
    for namespace in (module, timm.models):
        if getattr(namespace, arch, None) in (current, plain):
            setattr(namespace, arch, wrapped)


def _denoising(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(plain)
    def entrypoint(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
        return create(plain, request_of(plain.__name__, pretrained_cfg, pretrained, options))

    return entrypoint


def _refusing(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(plain)
    def entrypoint(*args: Any, **options: Any) -> nn.Module:
        refuse_denoiser(plain, options)
        return plain(*args, **options)

    return entrypoint


def _module(entrypoint: Callable[..., nn.Module]) -> Any:
    return sys.modules[entrypoint.__module__]
