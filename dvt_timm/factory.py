"""From a name and `create_model`'s arguments to a model: timm's own entrypoint, then stride, head and weights."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.layers import to_2tuple
from timm.models import adapt_input_conv, load_pretrained
from timm.models._features import FeatureGetterNet
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor

from . import hub
from .head import DenoiserHead
from .manifest import Variant, named_patch_size
from .models import denoise
from .stride import set_stride

NOWHERE = {"url": None, "file": None, "hf_hub_id": None, "hf_hub_filename": None, "custom_load": False}
STEM = "patch_embed.proj.weight"
SAVED = ("local-dir", "hf-hub")  # PretrainedCfg.source of a whole saved model
NOT_RECORDED = ("device", "dtype", "cache_dir", "features_only", "out_indices", "feature_cls", "pretrained_model_args")


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
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    cfg = dataclasses.replace(cfg, **overlay)
    checkpoint = _checkpoint(cfg, overlay, variant, denoiser, kwargs.get("cache_dir")) if pretrained else None
    if variant is not None and checkpoint is None and not overlay.keys() & NOWHERE.keys():
        cfg = dataclasses.replace(cfg, **{key: getattr(base_cfg, key) for key in NOWHERE})
    head = _resolve_head(denoiser, variant, pretrained and checkpoint is None, kwargs.get("cache_dir"))
    if head is not None and "global_pool" in kwargs:  # pooling must not take away the final norm, which the head reads
        kwargs.setdefault("use_fc_norm" if entrypoint.__module__ == Eva.__module__ else "fc_norm", False)
    img_size = _set_img_size(kwargs, cfg, base_cfg, stride)
    cfg = dataclasses.replace(cfg, fixed_input_size=not kwargs["dynamic_img_size"])

    def finish(model: Any) -> Any:
        if stride:
            set_stride(model, stride, img_size)
        if head is not None:
            denoise(model, head if isinstance(head, DenoiserHead) else DenoiserHead(model.embed_dim, **head))
        if checkpoint is not None:
            _load_whole(model, {**cfg.to_dict(), **checkpoint}, kwargs.get("cache_dir"))
        model._model_args = {key: value for key, value in kwargs.items() if key not in NOT_RECORDED}
        return model

    arguments = {"pretrained": pretrained and checkpoint is None, "pretrained_cfg": cfg, **kwargs}
    if kwargs.get("features_only"):
        arguments["feature_cls"] = lambda model, **options: FeatureGetterNet(finish(model), **options)
        model = entrypoint(**arguments)
    else:
        model = finish(entrypoint(**arguments))
    if not stride and kwargs["dynamic_img_size"] and kwargs["img_size"] != img_size and hasattr(model, "_traits"):
        model._traits = dict(model._traits, img_size=None)  # the nominal size is the cfg's, not the base's own
    return model


def refuse_lost_head(name: str, cfg: Any, overlay: Mapping[str, Any] | None) -> None:
    """Raise RuntimeError if a plain model is about to load a checkpoint that holds a denoiser.

    Some savers write the bare architecture, and timm may then load what fits and drop the rest.
    """
    file = (overlay or {}).get("file") or _field(cfg, "file")
    if file and hub.holds_denoiser(file):
        raise RuntimeError(
            f"{file} holds a denoiser, but {name} without a dvt tag is a plain model; pass "
            'denoiser={"grid_size": [h, w], "num_blocks": n} of the head that was saved'
        )


def warn_of_lost_tag(name: str, cfg: Any) -> None:
    """Warn where a plain model may have been meant denoised: timm drops the tag if `pretrained_cfg` is a dict."""
    if cfg and not isinstance(cfg, str) and not _field(cfg, "tag") and not _field(cfg, "source"):
        warnings.warn(
            f"{name} comes out plain: timm drops the tag of a name when pretrained_cfg is a dict. For a denoised model "
            "pass pretrained_cfg_overlay=dict(...) instead, or denoiser=...; for a plain one name its tag in the dict",
            stacklevel=4,
        )


def _field(cfg: Any, key: str) -> Any:
    """A field of a `pretrained_cfg`, which may be a PretrainedCfg, a dict, a tag or None."""
    return cfg.get(key) if isinstance(cfg, Mapping) else getattr(cfg, key, None)


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    if kwargs.get("use_naflex"):
        raise ValueError("use_naflex=True builds a NaFlexVit, which has no denoised form; leave it out")
    if kwargs.get("features_only") and kwargs.get("feature_cls", "getter") != "getter":
        raise ValueError(
            f"feature_cls={kwargs['feature_cls']!r} reads the blocks themselves and gives maps that are not denoised; "
            "leave it out (timm's default for ViTs is 'getter')"
        )


def _checkpoint(
    cfg: Any, overlay: Mapping[str, Any], variant: Variant | None, denoiser: Any, cache_dir: Any
) -> dict[str, Any] | None:
    """What to put into `cfg` to load a whole model's weights, nothing if it names them; None for base weights.

    Raises:
        ValueError: if a distilled name is to get a head.
    """
    local_file = overlay.get("file") or (cfg.file if cfg.source is None and not cfg.hf_hub_id else None)
    if cfg.source in SAVED or (local_file and hub.holds_denoiser(local_file)):
        return {}
    if variant is None or not variant.distilled:
        return None
    if denoiser is not None:
        raise ValueError(
            f"{variant.name} is a plain model with distilled weights, which no head goes with; pass denoiser=... to "
            f"{variant.base}"
        )
    return {"state_dict": hub.published_weights(variant, cache_dir)}


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
    kwargs["img_size"] = native if stride or (dynamic and "img_size" not in kwargs) else wanted
    return wanted


def _resolve_head(
    denoiser: Any, variant: Variant | None, load: bool, cache_dir: Any
) -> DenoiserHead | dict[str, Any] | None:
    """The head itself, or the shape of one to be built; None for a plain model."""
    if denoiser is None and (variant is None or variant.distilled):
        return None
    if isinstance(denoiser, DenoiserHead):
        return denoiser
    if isinstance(denoiser, str | Path):
        return hub.load_head(denoiser, cache_dir=cache_dir)
    if isinstance(denoiser, Mapping):
        return _head_shape(denoiser, load)
    if denoiser is not None or variant is None:
        raise TypeError(f"denoiser must be a DenoiserHead, a path, hf-hub:... or a shape, got {denoiser!r}")
    if load or variant.head is not None:
        return hub.published_head(variant, cache_dir)
    return {"grid_size": variant.grid_size}


def _head_shape(shape: Mapping[str, Any], load: bool) -> dict[str, Any]:
    """A head's shape, checked; a warning if its weights were expected to be loaded too."""
    if not {"grid_size"} <= shape.keys() <= {"grid_size", "num_blocks"}:
        raise ValueError(f'denoiser={dict(shape)} should be {{"grid_size": [h, w], "num_blocks": n}}')
    if load:
        warnings.warn(
            "the denoiser is built from its shape alone and has random weights; load them, or pass its folder or "
            "file as denoiser=...",
            stacklevel=6,
        )
    return dict(shape)


def _load_whole(model: Any, cfg: dict[str, Any], cache_dir: str | Path | None) -> None:
    """Load a checkpoint of base and head through timm, every key of the head required."""
    base_filter = eva_filter if isinstance(model, Eva) else vit_filter
    prefix = "denoiser."

    def split_filter(state: dict[str, Tensor], model: VisionTransformer | Eva) -> dict[str, Tensor]:
        head = {key: value for key, value in state.items() if key.startswith(prefix)}
        expected = {key for key in model.state_dict() if key.startswith(prefix)}
        if head.keys() != expected:
            raise RuntimeError(
                f"the checkpoint does not hold the denoiser of this model: missing {sorted(expected - head.keys())}, "
                f"unexpected {sorted(head.keys() - expected)}"
            )
        rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
        if rest[STEM].shape[1] == 3:  # timm 1.0.21 would adapt a stem of the right width too
            rest[STEM] = adapt_input_conv(model.patch_embed.proj.in_channels, rest[STEM])
        return {**base_filter(rest, model), **head}

    load_pretrained(
        model,
        pretrained_cfg={**cfg, "input_size": (3, *cfg["input_size"][1:])},
        num_classes=model.num_classes,
        in_chans=3,
        filter_fn=split_filter,
        cache_dir=cache_dir,
    )
