"""The way from a request of `create_model` to a model: plan (pure), fetch (disk and Hub), assemble."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from timm.models import FeatureGraphNet, FeatureHookNet, PretrainedCfg
from timm.models._builder import pretrained_cfg_for_features
from timm.models._features import FeatureGetterNet
from torch import Tensor

from ._util.errors import warn_caller
from ._util.files import PICKLED_WEIGHTS, WEIGHTS_NAME
from .attach import attach_head, attach_positions
from .checkpoints.heads import head_from_state, load_head, new_head
from .checkpoints.models import (
    SAVED,
    is_ours,
    load_backbone,
    pinned,
    read_weights,
    saved_config,
    weights_sha256,
)
from .checkpoints.published import published_head, published_weights
from .checkpoints.tensors import is_head_config, kind_of
from .head import Head, HeadSource
from .hub import client as hub
from .names import backbone_of, cfg_field, find_variant, list_variants, name_of
from .plan import NO_HEAD, RANDOM_HEAD, Plan, Positions, Request, Shape, has_lost_tag, plan_of
from .stride import OverlapPatchEmbed, set_stride

logger = logging.getLogger("dvt_timm")

LOST_TAG = (
    "{name} comes out plain: timm drops the tag of a name when pretrained_cfg is a dict. For a denoised model pass "
    "pretrained_cfg_overlay=dict(...) instead, or denoiser=...; for a plain one name its tag in the dict"
)
LOST_HEAD = (
    "{place} holds a denoiser, but {name} without a dvt tag is a plain model; pass "
    'denoiser={{"grid_size": [h, w], "num_blocks": n}} of the head that was saved'
)
FEATURE_NETS = {"getter": FeatureGetterNet, "fx": FeatureGraphNet, "hook": FeatureHookNet}  # by timm's feature_cls
NOT_RECORDED = (
    *("device", "dtype", "cache_dir", "pretrained_model_args", "pretrained_cfg_overlay"),
    *("features_only", "out_indices", "feature_cls"),
)


@dataclass(frozen=True)
class Fetched:
    """What was read from disk and Hub for a plan."""

    cfg: PretrainedCfg  # the plan's, its Hub repository at one commit
    head: Head | Positions | Shape | None
    state: dict[str, Tensor] | None = None  # of the backbone; None where timm loads it, or it stays random
    warnings: tuple[str, ...] = ()


def request_of(arch: str, cfg: Any, pretrained: bool, options: Mapping[str, Any]) -> Request:
    """Make a request of what timm passes on, the row of the name, and the config.json of a head taken for a model.

    Raises:
        RuntimeError: if the tag is one of ours that does not exist.
        ValueError: if a newer version wrote the config.json, or if that of a repository names a head elsewhere.
    """
    source, tag = cfg_field(cfg, "source"), cfg if isinstance(cfg, str) else cfg_field(cfg, "tag")
    variant, head = find_variant(f"{arch}.{tag}"), None
    if source in SAVED:
        location = cfg_field(cfg, "file" if source == "local-dir" else "hf_hub_id")
        saved = saved_config(source, location, options.get("cache_dir"))
        head = saved if saved is not None and is_head_config(saved[1]) else None
        if head is None and saved is not None and is_ours(saved[1]) and options.get("denoiser") is None:
            variant = None  # the tag says where a saved model comes from, its configuration what it is
    elif variant is None and str(tag).startswith("dvt"):
        known = list_variants(f"{arch}.*")
        raise RuntimeError(
            f"no variant {arch}.{tag}; the denoised ones of {arch} are: {', '.join(known) or 'none'}. Make one with "
            "dvt_timm.register_variant, or pass a head of your own as denoiser=..."
        )
    return Request(arch, cfg, pretrained, options, variant, head)


def create(entrypoint: Callable[..., Any], request: Request) -> Any:
    """Build the model that is asked for.

    Args:
        entrypoint: timm's own function of the architecture.
        request: what `create_model` asks for.

    Raises:
        RuntimeError: if weights are asked for that nobody published, or a saved model lacks its head.
        ValueError: on arguments that no denoised model can serve.
        TypeError: if `denoiser` is neither a head, nor a source, nor a shape, nor positions.
    """
    if request.is_plain:
        return build_plain(entrypoint, request)
    plan = plan_of(request)
    fetched = fetch(plan)
    for message in (*plan.warnings, *fetched.warnings):
        warn_caller(message)
    return assemble(entrypoint, plan, fetched)


def fetch(plan: Plan) -> Fetched:
    """Read what a plan needs: files of this package, of the caller, of the Hub.

    Raises:
        OSError: if a file is not to be had.
        RuntimeError: if weights lack the head that they should hold, or hold one that nobody asked for.
        ValueError: if a file is damaged.
    """
    cache_dir = plan.options.get("cache_dir")
    head = _fetch_head(plan, cache_dir) if plan.held == "no" else None  # before the backbone, which is larger
    cfg, sha256, state = plan.cfg, None, None
    if plan.backbone == "base":
        sha256 = plan.base_sha256
        if cfg.hf_hub_id and not (cfg.hf_hub_filename or cfg.file):
            cfg, sha256 = pinned(cfg, cache_dir)
    elif plan.backbone == "own":
        cfg, state, held = read_weights(cfg, cache_dir)
        head = head if plan.held == "no" else _held_head(plan, cfg, held, cache_dir)
        if held and head is None:
            raise RuntimeError(LOST_HEAD.format(place="the file of weights", name=cfg.architecture))
        if isinstance(head, Head) and head.source is not None and head.source.base_sha256:
            sha256 = weights_sha256(cfg, cache_dir)
    elif not isinstance(plan.backbone, str):
        state = published_weights(plan.backbone, plan.base, cache_dir)
    if isinstance(head, Positions):
        return Fetched(cfg, head, state)
    if isinstance(head, Shape):
        return Fetched(cfg, head, state, (RANDOM_HEAD,) if plan.held == "maybe" else ())
    return Fetched(cfg, head, state, _doubts(head, plan.base, sha256))


def assemble(entrypoint: Callable[..., Any], plan: Plan, fetched: Fetched) -> Any:
    """Build the model of a plan: timm's own, then its weights, stride and head.

    Raises:
        RuntimeError: if the weights do not fit the model.
        ValueError, TypeError: if the head or the stride does not fit it.
    """
    model = entrypoint(pretrained=plan.backbone == "base", pretrained_cfg=fetched.cfg, **plan.options)
    if fetched.state is not None:
        load_backbone(model, fetched.state, fetched.cfg, plan.stride, plan.img_size, plan.features is None)
    if plan.stride is not None and not isinstance(model.patch_embed, OverlapPatchEmbed):
        set_stride(model, plan.stride, plan.img_size)
    head = fetched.head
    if isinstance(head, Shape):
        head = new_head(model.embed_dim, head.config)
    if isinstance(head, Positions):
        attach_positions(model, head.num_views)
    elif head is not None:
        attach_head(model, head)
    if plan.scrambles:
        _log_once(f"{name_of(plan.cfg)} without pretrained=True has a random head, which scrambles features")
    model._model_args = {key: value for key, value in plan.options.items() if key not in NOT_RECORDED}
    sized = plan.stride is not None or not plan.options["dynamic_img_size"] or plan.options["img_size"] == plan.img_size
    if not sized and hasattr(model, "_traits"):
        model._traits = dict(model._traits, img_size=None)  # the nominal size is the cfg's, not the base's own
    if fetched.cfg.hf_hub_id != plan.cfg.hf_hub_id:
        model.pretrained_cfg["hf_hub_id"] = plan.cfg.hf_hub_id
    return model if plan.features is None else _features_only(model, plan.features, plan.feature_cls)


def denoise(
    model: Any,
    head: Head | str | Path | None = None,
    *,
    positions: int | None = None,
    cache_dir: str | Path | None = None,
) -> Any:
    """Make the maps of a model clean, in place: by a denoiser head, or as means over views of its positions.

    With a head a timm model becomes a `DenoisedVisionTransformer` or `DenoisedEva`. The head itself, not a copy, moves
    to the model's device and dtype: give each model a head of its own. With `positions` a timm model becomes an
    `AveragedVisionTransformer` or `AveragedEva`, which needs no head and takes so many passes and one. A model that is
    denoised already gets the new denoiser instead of its old one.

    Models of torch.hub and transformers take a head too, one that was trained on timm's weights of the same backbone.
    It acts on the patch tokens after the final norm in `forward_features` and `get_intermediate_layers` of torch.hub's
    models, in `last_hidden_state` and the last of `feature_maps` of transformers'. Class and register tokens and
    `hidden_states` are the backbone's; what is pooled from patch tokens (`pooler_output` of SigLIP) follows them.

    Args:
        model: a timm `VisionTransformer` or `Eva`; the `DinoVisionTransformer` of torch.hub's dinov2 or dinov3; a
            `Dinov2Model`, `Dinov2WithRegistersModel`, `DINOv3ViTModel`, `SiglipVisionModel` of transformers, or a
            `Dinov2Backbone`, `Dinov2WithRegistersBackbone`, `DINOv3ViTBackbone`.
        head: the denoiser, as wide as the model; or its folder, its `.safetensors` file or
            `hf-hub:user/repo[@revision]`.
        positions: how many views move the positions of a timm model, 8 for flat maps; in the place of a head.
        cache_dir: where the Hub client keeps its files, its own default if None.

    Returns:
        The same model.

    Raises:
        TypeError: if the model is none of these (a subclass of a timm class is not), is compiled, or a method of it was
            replaced (accelerate does that for a `device_map` of several devices); if `head` is neither a `DenoiserHead`
            nor a source, or neither or both of `head` and `positions` are given.
        ValueError: if the head is not as wide as the model, the model drops patches or has no positions to move, or the
            head's file is damaged.
        OSError: if there is no head at the source, or the Hub refuses or fails.

    Warns:
        UserWarning: if a timm model has no final norm before its pooling, or the head was trained on another backbone;
            what models of torch.hub and transformers were trained on is not known.
    """
    if (head is None) == (positions is None):
        raise TypeError("denoise takes a head, or positions=8 for means over views of positions; pass one of them")
    if positions is not None:
        return attach_positions(model, positions)
    head = load_head(head, cache_dir=cache_dir) if isinstance(head, str | Path) else head
    if isinstance(head, Head) and cfg_field(getattr(model, "pretrained_cfg", None), "tag"):
        for message in _doubts(head, backbone_of(name_of(model)), None):
            warn_caller(message)
    return attach_head(model, head)  # type: ignore[arg-type]


def build_plain(entrypoint: Callable[..., Any], request: Request) -> Any:
    """Build a model without head or stride, as timm does.

    Raises:
        RuntimeError: if the weights that the model would load, or has loaded, hold a denoiser: some savers write the
            bare architecture, and timm may then load what fits and drop the rest.
    """
    arch, options = request.arch, {k: v for k, v in request.options.items() if k not in ("denoiser", "stride")}
    if has_lost_tag(request):
        warn_caller(LOST_TAG.format(name=arch))
    overlay = options.get("pretrained_cfg_overlay") or {}
    if request.pretrained:
        for key in ("state_dict", "file"):
            _refuse_lost_head(arch, overlay.get(key) or cfg_field(request.cfg, key))
    location = overlay.get("hf_hub_id") or cfg_field(request.cfg, "hf_hub_id")
    try:
        model = entrypoint(pretrained=request.pretrained, pretrained_cfg=request.cfg, **options)
        if not hasattr(model, "_model_args"):  # timm 1.0.21 does not note what rebuilds a model
            model._model_args = {key: value for key, value in options.items() if key not in NOT_RECORDED}
        return model
    finally:
        if request.pretrained and location:
            repo, revision = hub.split_source(location)
            for file in (WEIGHTS_NAME, PICKLED_WEIGHTS):
                _refuse_lost_head(arch, hub.cached(repo, file, revision, options.get("cache_dir")))


def refuse_denoiser(entrypoint: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise TypeError if a head or a stride is asked for with an architecture that takes none."""
    asked = [name for name in ("denoiser", "stride") if options.get(name) is not None]
    if asked:
        raise TypeError(
            f"{entrypoint.__name__} ({entrypoint.__module__}) takes no {' or '.join(asked)}: timm's ViT, DeiT and EVA "
            "names do. For the features of any other model call dvt_timm.DenoiserHead on their (B, H, W, C) map"
        )


def _refuse_lost_head(name: str, weights: Any) -> None:
    """Raise RuntimeError if a state dict or a file, which a plain model loads, holds a denoiser."""
    if weights and kind_of(weights) == "denoised":
        place = "state_dict" if isinstance(weights, Mapping) else weights
        raise RuntimeError(LOST_HEAD.format(place=place, name=name))


def _fetch_head(plan: Plan, cache_dir: Any) -> Head | Positions | Shape | None:
    """Read the plan's head where it lies."""
    if plan.head is None or isinstance(plan.head, Head | Positions | Shape):
        return plan.head
    return published_head(plan.head, plan.base, cache_dir)


def _held_head(plan: Plan, cfg: PretrainedCfg, held: dict[str, Tensor], cache_dir: Any) -> Head | Positions | Shape:
    """Build the head that the weights hold, or read the plan's if they hold none and need not."""
    if held:
        shape = plan.head.config if isinstance(plan.head, Shape) else {}
        own = head_from_state(held, shape, "the file of weights")
        repo, commit = hub.split_source(cfg.hf_hub_id or "")
        own.source = HeadSource(f"{hub.HUB_PREFIX}{repo}" if repo else cfg.file or "state_dict", commit, base=plan.base)
        return own
    if plan.held == "must":
        raise RuntimeError("the file of weights does not hold the denoiser of this model; pass a head as denoiser=...")
    head = _fetch_head(plan, cache_dir)
    if head is None:
        raise RuntimeError(NO_HEAD.format(name=name_of(plan.cfg), base=plan.base))
    return head


def _doubts(head: Head | None, base: str, base_sha256: str | None) -> tuple[str, ...]:
    """Make the warning, if any, of a head that is put on another backbone than it was trained on."""
    source = head.source if head is not None else None
    if source is None or source.base is None:
        return ()
    if backbone_of(source.base) != base:
        difference = f"was trained on {backbone_of(source.base)}, not on {base}"
    elif base_sha256 is not None and source.base_sha256 not in (base_sha256, None):
        difference = f"was trained on other weights of {base} (their SHA-256 is {source.base_sha256})"
    else:
        return ()
    return (f"the head {difference}: its output may be wrong; use a head that was trained on this backbone",)


def _features_only(model: Any, indices: int | list[int], feature_cls: Any) -> Any:
    """Wrap a model as timm does for `features_only=True`; raise ValueError if a ViT has no maps of this class."""
    kind = FEATURE_NETS.get(feature_cls.lower()) if isinstance(feature_cls, str) else feature_cls
    if kind is None:
        known = ", ".join(map(repr, FEATURE_NETS))
        raise ValueError(f"feature_cls must be one of {known} for a ViT, got {feature_cls!r}; leave it out")
    net: Any = kind(model, out_indices=indices)
    if hasattr(model, "_traits"):  # timm 1.0.21 has none
        net._traits, net.in_chans = dict(model._traits), model._traits.get("in_chans")
    net.pretrained_cfg = net.default_cfg = pretrained_cfg_for_features(model.pretrained_cfg)
    return net


@cache
def _log_once(message: str) -> None:
    logger.warning(message)
