"""From a name and `create_model`'s arguments to a model: timm's own entrypoint, then stride, head and weights."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from timm.layers import to_2tuple
from timm.models._features import FeatureGetterNet
from timm.models.eva import Eva
from torch import Tensor

from .checkpoints.backbone import SAVED, load_backbone
from .checkpoints.heads import head_from_state, read_head
from .checkpoints.models import holds_denoiser, name_a_denoiser
from .checkpoints.published import published_head, published_weights
from .head import DenoiserHead
from .hub import client as hub
from .manifest import Variant, backbone_of, named_patch_size
from .models import denoise
from .stride import OverlapPatchEmbed, set_stride

SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "state_dict")  # PretrainedCfg fields that name weights
NOWHERE = {**dict.fromkeys(SOURCES), "custom_load": False}
LOST_HEAD = (
    "{source} holds a denoiser, but {name} without a dvt tag is a plain model; pass "
    'denoiser={{"grid_size": [h, w], "num_blocks": n}} of the head that was saved'
)
NOT_RECORDED = (
    *("device", "dtype", "cache_dir", "pretrained_model_args", "pretrained_cfg_overlay"),
    *("features_only", "out_indices", "feature_cls"),
)


def build_model(
    entrypoint: Callable[..., Any],
    variant: Variant | None,
    cfg: Any,
    base_cfg: Any,
    *,
    pretrained: bool,
    denoiser: DenoiserHead | str | Path | Mapping[str, Any] | None = None,
    stride: int | None = None,
    **kwargs: Any,
) -> Any:
    """Build a denoised or distilled model.

    Args:
        entrypoint: timm's own function of the architecture.
        variant: the row of the name, None for a plain name with `denoiser=` or `stride=`.
        cfg: timm PretrainedCfg of the model asked for.
        base_cfg: timm PretrainedCfg of the backbone, whose weights and own image size it gives.
        pretrained: load weights, as in timm.
        denoiser: another head than the variant's: the head itself, its folder, its file or `hf-hub:user/repo`
            (weights included), or its shape `{"grid_size": [h, w], "num_blocks": n}` for weights loaded later.
        stride: distance of two patches in pixels; smaller than the patch for overlapping patches.
        **kwargs: as timm's. `dynamic_img_size` is on by default. The position embedding then keeps the base's own
            grid and is resampled from there for every image size; without it, it is resampled once to `img_size`.

    Raises:
        RuntimeError: if weights are asked for that nobody published, or a checkpoint misses the head.
        ValueError: on arguments that no denoised model can serve.
        TypeError: on a `denoiser` of another kind.
    """
    _refuse_unsupported(kwargs)
    cache_dir = kwargs.get("cache_dir")
    with_head = denoiser is not None or (variant is not None and not variant.distilled)
    cfg = _overlaid(cfg, kwargs.pop("pretrained_cfg_overlay", None))
    own_weights = _names_own_weights(cfg, variant, base_cfg)
    if variant is not None and not own_weights:
        cfg = dataclasses.replace(cfg, **{key: getattr(base_cfg, key) for key in NOWHERE})
    source = _source(cfg, variant, denoiser, own_weights, cache_dir) if pretrained else None
    head, head_config = _resolve_head(denoiser, variant, pretrained and not own_weights, cache_dir)
    late_head = partial(
        _late_head, denoiser=denoiser, variant=variant, source=source, pretrained=pretrained, cache_dir=cache_dir
    )
    if variant is not None and with_head and "global_pool" in kwargs:  # it must not take away the norm that heads read
        kwargs.setdefault("use_fc_norm" if entrypoint.__module__ == Eva.__module__ else "fc_norm", False)
    img_size = _set_img_size(kwargs, cfg, base_cfg, stride)
    cfg = dataclasses.replace(cfg, fixed_input_size=not kwargs["dynamic_img_size"])
    fetched, base_sha256 = _fetch_base(cfg, variant, cache_dir) if pretrained and source is None else (cfg, None)
    _check_base(head_config, variant.base if variant else f"{cfg.architecture}.{cfg.tag}", base_sha256)

    def finish(model: Any) -> Any:
        with_classifier = not kwargs.get("features_only")
        held = {} if source is None else load_backbone(model, source, stride, img_size, cache_dir, with_classifier)
        if stride is not None and not isinstance(model.patch_embed, OverlapPatchEmbed):
            set_stride(model, stride, img_size)
        if with_head:
            denoise(model, head if head is not None else late_head(model.embed_dim, held))
        elif held:
            raise RuntimeError(LOST_HEAD.format(source="the checkpoint", name=cfg.architecture))
        model._model_args = {key: value for key, value in kwargs.items() if key not in NOT_RECORDED}
        return model

    arguments = {"pretrained": pretrained and source is None, "pretrained_cfg": fetched, **kwargs}
    if kwargs.get("features_only"):
        arguments["feature_cls"] = lambda model, **options: FeatureGetterNet(finish(model), **options)
        model = entrypoint(**arguments)
    else:
        model = finish(entrypoint(**arguments))
    if stride is None and kwargs["dynamic_img_size"] and kwargs["img_size"] != img_size and hasattr(model, "_traits"):
        model._traits = dict(model._traits, img_size=None)  # the nominal size is the cfg's, not the base's own
    if fetched is not cfg:
        for built in (model, getattr(model, "model", model)):  # features_only=True has two
            built.pretrained_cfg["hf_hub_id"] = cfg.hf_hub_id
    return model


def build_plain(entrypoint: Callable[..., Any], cfg: Any, *, pretrained: bool, **kwargs: Any) -> Any:
    """Build a model without head or stride, as timm does.

    Raises:
        RuntimeError: if it was about to load, or has loaded, a checkpoint that holds a denoiser: some savers write the
            bare architecture, and timm may then load what fits and drop the rest.
    """
    name, overlay = entrypoint.__name__, kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained:
        for key in ("state_dict", "file"):
            _refuse_lost_head(name, overlay.get(key) or field(cfg, key))
    location = overlay.get("hf_hub_id") or field(cfg, "hf_hub_id")
    try:
        model = entrypoint(pretrained=pretrained, pretrained_cfg=cfg, **kwargs)
        if not hasattr(model, "_model_args"):  # timm 1.0.21 does not note what rebuilds a model
            model._model_args = {key: value for key, value in kwargs.items() if key not in NOT_RECORDED}
        return model
    finally:
        if pretrained and location:
            repo, revision = hub.split_source(location)
            for file in (hub.WEIGHTS_NAME, hub.PICKLED_WEIGHTS):
                _refuse_lost_head(name, hub.cached(repo, file, revision, kwargs.get("cache_dir")))


def _refuse_lost_head(name: str, checkpoint: Any) -> None:
    """Raise RuntimeError if a state dict or a path, which a plain model loads, holds a denoiser."""
    held = name_a_denoiser(checkpoint) if isinstance(checkpoint, Mapping) else checkpoint and holds_denoiser(checkpoint)
    if held:
        source = "state_dict" if isinstance(checkpoint, Mapping) else checkpoint
        raise RuntimeError(LOST_HEAD.format(source=source, name=name))


def warn_of_lost_tag(name: str, cfg: Any) -> None:
    """Warn where a plain model may have been meant denoised: timm drops the tag if `pretrained_cfg` is a dict."""
    if cfg and not isinstance(cfg, str) and not field(cfg, "tag") and not field(cfg, "source"):
        warnings.warn(
            f"{name} comes out plain: timm drops the tag of a name when pretrained_cfg is a dict. For a denoised model "
            "pass pretrained_cfg_overlay=dict(...) instead, or denoiser=...; for a plain one name its tag in the dict",
            stacklevel=4,
        )


def field(cfg: Any, key: str) -> Any:
    """A field of a `pretrained_cfg`, which may be a PretrainedCfg, a dict, a tag or None."""
    return cfg.get(key) if isinstance(cfg, Mapping) else getattr(cfg, key, None)


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    if kwargs.get("use_naflex"):
        raise ValueError("use_naflex=True builds a NaFlexVit, which these names and stride= do not know; leave it out")
    if kwargs.get("features_only") and kwargs.get("feature_cls", "getter") != "getter":
        raise ValueError(
            f"feature_cls={kwargs['feature_cls']!r} reads the blocks themselves, past the denoiser; leave it out "
            "(timm's default for ViTs is 'getter')"
        )


def _overlaid(cfg: Any, overlay: Mapping[str, Any] | None) -> Any:
    """The cfg with `pretrained_cfg_overlay` on it; the weights of another source are in timm's own format."""
    overlay = dict(overlay or {})
    if any(overlay.get(key) for key in SOURCES):
        overlay.setdefault("custom_load", False)
    return dataclasses.replace(cfg, **overlay)


def _names_own_weights(cfg: Any, variant: Variant | None, base_cfg: Any) -> bool:
    """Whether `cfg` names weights of the caller's own: a file, a state dict, a saved model, another repository."""
    if cfg.source in SAVED or cfg.state_dict is not None:
        return True
    if variant is None and cfg.file is not None:
        return True
    return any(getattr(cfg, key) not in (None, getattr(base_cfg, key)) for key in SOURCES)


def _source(cfg: Any, variant: Variant | None, denoiser: Any, own_weights: bool, cache_dir: Any) -> Any:
    """The `pretrained_cfg` to load weights with that may hold a head or are distilled; None where timm loads the base.

    Raises:
        ValueError: if a distilled name is to get a head.
    """
    if own_weights:
        return _at_commit(cfg.to_dict(), cache_dir)
    if variant is None or not variant.distilled:
        return None
    if denoiser is not None:
        raise ValueError(
            f"{variant.name} is a plain model with distilled weights, which no head goes with; pass denoiser=... to "
            f"{variant.base}"
        )
    return {**cfg.to_dict(), **NOWHERE, "state_dict": published_weights(variant, cache_dir)}


def _set_img_size(kwargs: dict[str, Any], cfg: Any, base_cfg: Any, stride: int | None) -> tuple[int, int]:
    """Put `dynamic_img_size` and timm's `img_size` into kwargs; the (height, width) in pixels that was asked for.

    timm builds at the base's own size where the position embedding is to keep its grid, or is resampled by the stride.

    Raises:
        ValueError: if the size is smaller than a patch, or fixed and not whole patches.
    """
    dynamic = kwargs.setdefault("dynamic_img_size", True)
    native = tuple(base_cfg.input_size[-2:])
    wanted = to_2tuple(kwargs.get("img_size") or cfg.input_size[-2:])
    patch_size = to_2tuple(kwargs.get("patch_size") or named_patch_size(cfg.architecture) or 1)
    for side, patch in zip(wanted, patch_size, strict=True):
        if side < patch or (side % patch and not dynamic):
            raise ValueError(
                f"img_size {tuple(wanted)} is not whole patches of {patch} pixels; use "
                f"{max(side // patch, 1) * patch} in place of {side}"
            )
    kwargs["img_size"] = native if stride is not None or (dynamic and "img_size" not in kwargs) else wanted
    return wanted


def _resolve_head(
    denoiser: Any, variant: Variant | None, published: bool, cache_dir: Any
) -> tuple[DenoiserHead | None, dict[str, Any]]:
    """The head, where it can be had before the model is built, and its configuration.

    None for a shape, a checkpoint's own, or none.
    """
    if isinstance(denoiser, DenoiserHead):
        return denoiser, {}
    if isinstance(denoiser, str | Path):
        return read_head(denoiser, cache_dir)
    if isinstance(denoiser, Mapping):
        if not {"grid_size"} <= denoiser.keys() <= {"grid_size", "num_blocks"}:
            raise ValueError(f'denoiser={dict(denoiser)} should be {{"grid_size": [h, w], "num_blocks": n}}')
        return None, {}
    if denoiser is not None:
        raise TypeError(f"denoiser must be a DenoiserHead, a path, hf-hub:... or a shape, got {denoiser!r}")
    if variant is not None and not variant.distilled and (published or variant.head is not None):
        return published_head(variant, cache_dir)
    return None, {}


def _fetch_base(cfg: Any, variant: Variant | None, cache_dir: Any) -> tuple[Any, str | None]:
    """The base's cfg, its Hub repository at one commit and its weights in the cache; with their SHA-256, if known."""
    if cfg.hf_hub_id and not cfg.hf_hub_filename and not cfg.file:
        pinned, path = hub.pin_weights(cfg.hf_hub_id, cache_dir)
        return dataclasses.replace(cfg, hf_hub_id=pinned), hub.recorded_sha256(path) if path else None
    return cfg, variant.base_sha256 if variant else None


def _at_commit(source: dict[str, Any], cache_dir: Any) -> dict[str, Any]:
    """A `pretrained_cfg` whose Hub repository, if it names one, is at one commit: that of the config.json read."""
    location = source.get("hf_hub_id")
    by_source = source.get("source") == "hf-hub"
    named_otherwise = not by_source and any(source.get(key) for key in ("file", "state_dict", "hf_hub_filename"))
    if not location or source.get("source") == "local-dir" or named_otherwise:
        return source
    repo, revision = hub.split_source(location)
    if by_source and (config := hub.cached(repo, hub.CONFIG_NAME, revision, cache_dir)):
        location = f"{repo}@{hub.commit_of(config)}"
    pinned, path = hub.pin_weights(location, cache_dir)
    return source if path is None else {**source, **NOWHERE, "hf_hub_id": pinned}


def _check_base(head: Mapping[str, Any], base: str, base_sha256: str | None) -> None:
    """Warn where a head is put on another backbone than its configuration says."""
    trained_on = backbone_of(head.get("base") or base)
    if trained_on != backbone_of(base):
        difference = f"was trained on {trained_on}, not on {base}"
    elif base_sha256 and head.get("base_sha256", base_sha256) not in (base_sha256, None):
        difference = f"was trained on other weights of {base} (their SHA-256 is {head['base_sha256']})"
    else:
        return
    warnings.warn(f"the head {difference}: its output may be wrong", stacklevel=5)


def _late_head(
    dim: int,
    held: dict[str, Tensor],
    *,
    denoiser: Any,  # a head's shape, or None
    variant: Variant | None,
    source: dict[str, Any] | None,
    pretrained: bool,
    cache_dir: Any,
) -> DenoiserHead:
    """The head that was not to be had before the checkpoint was read: the checkpoint's, the published one, or new.

    Raises:
        RuntimeError: if a saved model lacks its head, or nobody published one.
        ValueError: if the checkpoint's head is damaged or of another shape.
    """
    if held:
        return head_from_state(held, denoiser or {}, "the checkpoint")
    if source is not None and source.get("source") in SAVED:
        raise RuntimeError("the checkpoint does not hold the denoiser of this model; pass a head as denoiser=...")
    if denoiser is None and source is not None:
        return published_head(variant, cache_dir)[0]  # type: ignore[arg-type]
    if denoiser is not None and pretrained:
        warnings.warn(
            "the denoiser is built from its shape alone and has random weights; load them, or pass its folder or "
            "file as denoiser=...",
            stacklevel=6,
        )
    return DenoiserHead(dim, **(denoiser or {"grid_size": variant.grid_size}))  # type: ignore[union-attr]
