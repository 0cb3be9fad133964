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
from .manifest import Variant
from .models import denoise
from .stride import set_stride

NOWHERE = {"url": None, "file": None, "hf_hub_id": None, "hf_hub_filename": None, "custom_load": False}
_IDENTITY = ("file", "tag", "source")  # PretrainedCfg fields that say which model it is
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
    checkpoint = _whole_checkpoint(cfg, overlay) if pretrained else None
    plain = variant is not None and variant.distilled and denoiser is None
    if variant is not None and checkpoint is None and not overlay.keys() & NOWHERE.keys():
        cfg = dataclasses.replace(cfg, **{key: getattr(base_cfg, key) for key in NOWHERE})
    with_head = not plain and (variant is not None or denoiser is not None)
    head = _resolve_head(denoiser, variant, pretrained and checkpoint is None, kwargs) if with_head else None
    if with_head and "global_pool" in kwargs:  # pooling must not take away the final norm, which the head reads
        kwargs.setdefault("use_fc_norm" if entrypoint.__module__ == Eva.__module__ else "fc_norm", False)
    distilled = pretrained and plain and checkpoint is None
    if distilled:
        checkpoint = {"state_dict": hub.published_weights(variant, kwargs.get("cache_dir"))}  # type: ignore[arg-type]

    dynamic = kwargs.setdefault("dynamic_img_size", True)
    native = tuple(base_cfg.input_size[-2:])
    wanted = to_2tuple(kwargs.get("img_size") or cfg.input_size[-2:])
    kwargs["img_size"] = native if stride or (dynamic and "img_size" not in kwargs) else wanted
    cfg = dataclasses.replace(cfg, fixed_input_size=not dynamic)

    def finish(model: Any) -> Any:
        if stride:
            set_stride(model, stride, wanted)
        if isinstance(head, DenoiserHead):
            denoise(model, head)
        elif head is not None:
            denoise(model, DenoiserHead(model.embed_dim, **head))
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
    if dynamic and not stride and kwargs["img_size"] == native and hasattr(model, "_traits"):
        model._traits = dict(model._traits, img_size=None)  # the nominal size is the cfg's, not the base's own
    return model


def refuse_silent_plain(name: str, pretrained: bool, cfg: Any) -> None:
    """Speak up where a model is about to come out plain although it may have been meant denoised.

    timm drops the tag of the name when `pretrained_cfg` is a dict, and some savers write the bare architecture.

    Raises:
        RuntimeError: if the checkpoint to be loaded holds a denoiser.
    """
    if isinstance(cfg, str) or not cfg:
        return
    file, tag, source = (cfg.get(key) if isinstance(cfg, Mapping) else getattr(cfg, key) for key in _IDENTITY)
    if pretrained and file and hub.holds_denoiser(file):
        raise RuntimeError(
            f"{file} holds a denoiser, but {name} without a dvt tag is a plain model; pass "
            'denoiser={"grid_size": [h, w], "num_blocks": n} of the head that was saved'
        )
    if not tag and not source:
        warnings.warn(
            f"{name} comes out plain: timm drops the tag of a name when pretrained_cfg is a dict. For a denoised model "
            "pass pretrained_cfg_overlay=dict(...) instead, or denoiser=...; for a plain one name its tag in the dict",
            stacklevel=4,
        )


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    if kwargs.get("use_naflex"):
        raise ValueError("use_naflex=True builds a NaFlexVit, which has no denoised form; leave it out")
    if kwargs.get("patch_drop_rate"):
        raise ValueError("patch_drop_rate drops tokens that the denoiser needs; use 0, or the plain model")
    if kwargs.get("features_only") and kwargs.get("feature_cls", "getter") != "getter":
        raise ValueError(
            f"feature_cls={kwargs['feature_cls']!r} reads the blocks themselves and gives maps that are not denoised; "
            "leave it out (timm's default for ViTs is 'getter')"
        )


def _whole_checkpoint(cfg: Any, overlay: Mapping[str, Any]) -> dict[str, Any] | None:
    """An empty override if `cfg` points at a whole saved model, None if at base weights."""
    local_file = overlay.get("file") or (cfg.file if cfg.source is None and not cfg.hf_hub_id else None)
    if cfg.source in SAVED or (local_file and hub.holds_denoiser(local_file)):
        return {}
    return None


def _resolve_head(
    denoiser: Any, variant: Variant | None, load: bool, kwargs: dict[str, Any]
) -> DenoiserHead | dict[str, Any]:
    """The head itself, or the shape of one to be built."""
    if isinstance(denoiser, DenoiserHead):
        return denoiser
    if isinstance(denoiser, str | Path):
        return hub.load_head(denoiser, cache_dir=kwargs.get("cache_dir"))
    if isinstance(denoiser, Mapping):
        unknown = denoiser.keys() - {"grid_size", "num_blocks"}
        if unknown or "grid_size" not in denoiser:
            raise ValueError(f'denoiser={dict(denoiser)} should be {{"grid_size": [h, w], "num_blocks": n}}')
        if load:
            warnings.warn(
                "the denoiser is built from its shape alone and has random weights; load them, or pass its folder or "
                "file as denoiser=...",
                stacklevel=5,
            )
        return dict(denoiser)
    if denoiser is not None or variant is None:
        raise TypeError(f"denoiser must be a DenoiserHead, a path, hf-hub:... or a shape, got {denoiser!r}")
    if load or variant.head is not None:
        return hub.published_head(variant, kwargs.get("cache_dir"))
    return {"grid_size": variant.grid_size}


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
