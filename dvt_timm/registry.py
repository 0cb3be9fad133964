"""The names in timm's registry; the only module that touches it."""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm.models
from timm.layers import to_2tuple
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model, model_entrypoint, register_model
from torch import nn

from .checkpoints.heads import is_head_config, refused
from .checkpoints.models import saved_config
from .factory import NOWHERE, build_model, build_plain, field, warn_of_lost_tag
from .head import DenoiserHead, as_grid
from .manifest import Variant, published_variants, weights_path
from .names import VIT_MODULES, plain_model, takes_denoiser

_variants: dict[str, Variant] = globals().get("_variants", {})  # a reload keeps what users registered


def list_variants(pretrained: bool = False) -> list[str]:
    """Every name that this package adds to timm, "arch.tag".

    Args:
        pretrained: only those with published (or embedded, or the user's own) weights.
    """
    return sorted(name for name, variant in _variants.items() if variant.has_weights or not pretrained)


def get_variant(name: str) -> Variant:
    """The row of a name.

    Raises:
        KeyError: if the name is not one of `list_variants()`.
    """
    return _variants[name]


def backbone_name(name: str) -> str:
    """The timm name of the backbone behind a denoised name; that of embedded weights, and any other, as it is."""
    variant = _variants.get(name)
    return name if variant is None or (variant.base_file and variant.head is None) else variant.base


def register_variant(name: str, *, base: str, head: str | Path | None = None) -> None:
    """Make `timm.create_model(name)` build `base` with a head of one's own.

    Args:
        name: "arch.tag" with the architecture of `base` and a tag that is not taken; one's own is replaced.
        base: timm name of the backbone, "arch.tag", or a denoised name, for its backbone.
        head: folder, `.safetensors` file or `hf-hub:user/repo[@revision]`, read when a model is built; None for a
            head whose weights the caller loads.

    Raises:
        ValueError: if the names do not fit together, or `base` has no patch tokens to denoise, or is distilled.
        RuntimeError: if timm knows no such tag of `base`.
        TypeError: if `head` is the head itself.
    """
    arch, _, tag = name.partition(".")
    if not tag or base.partition(".")[0] != arch:
        raise ValueError(f"name must be '<arch>.<tag>' with the architecture of base {base!r}, got {name!r}")
    if not is_model(base):
        raise ValueError(f"timm knows no architecture {arch!r}; see timm.list_models()")
    if not takes_denoiser(arch):
        raise ValueError(f"{arch} is not among timm's ViT, DeiT and EVA models, whose patch tokens can be denoised")
    known = _variants.get(base, Variant(name, base))
    if known.distilled:
        raise ValueError(f"{base} has distilled weights, which no head goes with; use {known.base}")
    if isinstance(head, DenoiserHead):
        raise TypeError("head must be a folder, a file or hf-hub:..., got a DenoiserHead; write it with save_head")
    published = {variant.name for variant in published_variants()}
    if name in published or (name not in _variants and tag in _default_cfg(arch).cfgs):
        raise ValueError(f"the tag {tag!r} of {arch} is taken; choose another")
    _add(dataclasses.replace(_user_variant(base, head), name=name))
    _install(arch)


def register_published() -> None:
    """Register every row of the manifest, and `denoiser=` and `stride=` on every ViT; again and again if need be."""
    for variant in published_variants():
        _add(variant)
    for module in VIT_MODULES:
        for arch in timm.list_models(module=module.rpartition(".")[2]):
            _install(arch)


def _add(variant: Variant) -> None:
    """Put a name among the tags of its architecture, behind timm's own: the default stays."""
    default_cfg, cfg = _default_cfg(variant.arch), _listed_cfg(variant)
    if variant.tag not in default_cfg.cfgs:
        default_cfg.tags.append(variant.tag)
    default_cfg.cfgs[variant.tag] = cfg
    _variants[variant.name] = variant


def _install(arch: str) -> None:
    """Put our entrypoint in the place of timm's, for the registry and for the modules that hold it."""
    current, plain = model_entrypoint(arch), _plain_entrypoint(arch)
    module = _module(plain)
    wrapped = _wrap(plain)
    exported = list(module.__all__)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"Overwriting {arch} in registry")
        register_model(wrapped)
    module.__all__[:] = exported  # older timm appends the name once more
    for namespace in (module, timm.models):
        if getattr(namespace, arch, None) in (current, plain):
            setattr(namespace, arch, wrapped)


def _wrap(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    arch = plain.__name__

    @functools.wraps(plain)
    def entrypoint(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        saved = _saved_config(pretrained_cfg, kwargs.get("cache_dir"))
        if saved is not None and is_head_config(saved[1]):
            return _build_saved_head(plain, *saved, pretrained=pretrained, **kwargs)
        tag = _tag(pretrained_cfg)
        variant = _variants.get(f"{arch}.{tag}")
        known = [name for name in list_variants() if name.startswith(f"{arch}.")]
        if variant is None and saved is None and tag is not None and tag.startswith("dvt"):
            raise RuntimeError(
                f"no variant {arch}.{tag}; the denoised ones of {arch} are: {', '.join(known) or 'none'}. Make one "
                "with dvt_timm.register_variant, or pass a head of your own as denoiser=..."
            )
        if variant is None and kwargs.get("denoiser") is None and kwargs.get("stride") is None:
            kwargs = {key: value for key, value in kwargs.items() if key not in ("denoiser", "stride")}
            if known:
                warn_of_lost_tag(arch, pretrained_cfg)
            return build_plain(plain, pretrained_cfg, pretrained=pretrained, **kwargs)
        cfg = _as_cfg(arch, pretrained_cfg)
        base_cfg = cfg if variant is None else _base_cfg(variant)
        return build_model(plain, variant, cfg, base_cfg, pretrained=pretrained, **kwargs)

    entrypoint._plain = plain  # type: ignore[attr-defined]
    return entrypoint


def _saved_config(cfg: Any, cache_dir: Any) -> tuple[str, dict[str, Any]] | None:
    source = field(cfg, "source")
    return saved_config(source, field(cfg, "file" if source == "local-dir" else "hf_hub_id"), cache_dir)


def _build_saved_head(
    plain: Callable[..., nn.Module],
    location: str,
    config: Mapping[str, Any],
    *,
    pretrained: bool,
    denoiser: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """A head's folder or repository in the place of a model's: its base with this head, or a caller's own `denoiser`.

    Raises:
        ValueError: if timm does not know the base that it names, or the head is damaged.
    """
    base, shape = config.get("base"), {key: config.get(key) for key in ("grid_size", "num_blocks")}
    if not isinstance(base, str) or base.partition(".")[0] != plain.__name__:
        raise ValueError(f"{location}: its base is {base!r}, which is no {plain.__name__}; save or push the head again")
    args = config.get("model_args", {})
    with refused(location):
        if not args.keys() <= {"denoiser", "stride"} or not isinstance(args.get("stride", 1), int):
            raise ValueError(f"its model_args {args} are not those of a head")
        grid, embed = as_grid(shape["grid_size"]), plain_model(base).patch_embed  # type: ignore[arg-type]
    strides = to_2tuple(args.get("stride", embed.patch_size))
    height, width = ((n - 1) * stride + patch for n, stride, patch in zip(grid, strides, embed.patch_size, strict=True))
    variant = _user_variant(base, location)
    cfg = _listed_cfg(variant, (3, height, width))
    if denoiser == args.get("denoiser"):  # timm passes what the configuration says
        denoiser = None if pretrained else shape
    return build_model(
        plain,
        variant if pretrained else None,
        cfg,
        _base_cfg(variant),
        pretrained=pretrained,
        denoiser=denoiser,
        **kwargs,
    )


def _user_variant(base: str, head: str | Path | None) -> Variant:
    """A head on the backbone of a name, embedded weights included."""
    known = _variants.get(base, Variant(base, base))
    return Variant(known.base, known.base, head=head, base_file=known.base_file, base_sha256=known.base_sha256)


def _plain_entrypoint(arch: str) -> Callable[..., nn.Module]:
    entrypoint = model_entrypoint(arch)
    plain: Callable[..., nn.Module] = getattr(entrypoint, "_plain", entrypoint)
    return plain


def _module(entrypoint: Callable[..., nn.Module]) -> Any:
    return sys.modules[entrypoint.__module__]


def _default_cfg(arch: str) -> Any:
    """timm's DefaultCfg of an architecture: its tags, default first, and their cfgs."""
    return _module(model_entrypoint(arch)).default_cfgs[arch]


def _tag(cfg: Any) -> str | None:
    if isinstance(cfg, Mapping):
        return cfg.get("tag")
    return cfg if isinstance(cfg, str) or cfg is None else cfg.tag


def _as_cfg(arch: str, cfg: Any) -> Any:
    if isinstance(cfg, Mapping):
        cfg = PretrainedCfg(**{"input_size": get_pretrained_cfg(arch).input_size, **cfg})
    elif cfg is None or isinstance(cfg, str):
        cfg = get_pretrained_cfg(f"{arch}.{cfg}" if cfg else arch)
    return dataclasses.replace(cfg, architecture=cfg.architecture or arch)


def _base_cfg(variant: Variant) -> Any:
    """The base tag's cfg, at the embedded weights where they ship with the package."""
    cfg = get_pretrained_cfg(variant.base)
    if variant.base_file is None:
        return cfg
    return dataclasses.replace(cfg, **{**NOWHERE, "file": str(weights_path(variant.base_file))})


def _listed_cfg(variant: Variant, input_size: tuple[int, int, int] | None = None) -> Any:
    """What timm lists for a name: the base tag's cfg with our sizes, without a source if there are no weights."""
    cfg = dataclasses.replace(
        _base_cfg(variant),
        architecture=variant.arch,
        tag=variant.tag,
        input_size=input_size or variant.input_size,
        crop_pct=1.0,
        fixed_input_size=False,
    )
    if variant.distilled:
        cfg = dataclasses.replace(cfg, num_classes=0)  # their files hold features alone
    return cfg if variant.has_weights else dataclasses.replace(cfg, **NOWHERE)
