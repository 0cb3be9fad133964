"""The plan of a request of `create_model`, made of what the request says, without a look at disk or Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from timm.layers import to_2tuple
from timm.models import PretrainedCfg
from timm.models._features import FeatureGetterNet

from .checkpoints.heads import refused
from .checkpoints.models import NOTE, SAVED
from .head import Head, as_grid
from .manifest import Own, Variant, Weights, named_patch_size
from .names import (
    NOWHERE,
    SOURCES,
    backbone_cfg,
    backbone_of,
    base_cfg,
    cfg_field,
    full_name,
    is_eva,
    list_variants,
    listed_cfg,
    name_of,
    own_variant,
)

GETTER = "getter"  # the feature_cls of timm's ViTs
RANDOM_HEAD = (
    "the denoiser is built from its shape alone and has random weights; load them, or pass its folder or file as "
    "denoiser=..."
)
READS_BLOCKS = (
    "feature_cls={kind!r} hands out what the blocks give, before the denoiser: none of these maps is denoised; leave "
    "it out (timm's default for ViTs is 'getter')"
)
READS_VIEWS = (
    "feature_cls={kind!r} reads the blocks themselves, where a model that averages over positions has several views of "
    "each image; leave it out (timm's default for ViTs is 'getter')"
)
NO_HEAD = "{name} has no published weights; pass a head trained for {base} as denoiser=..., or use pretrained=False"


@dataclass(frozen=True)
class Request:
    """What `create_model` asks of an architecture's entrypoint."""

    arch: str
    cfg: Any  # pretrained_cfg as timm passes it on: a PretrainedCfg, a dict, a tag or None
    pretrained: bool
    options: Mapping[str, Any]  # all other arguments, `denoiser` and `stride` among them
    variant: Variant | None = None  # the row of the name
    head: tuple[str, dict[str, Any]] | None = None  # where a head lies in the place of a model, and its config.json

    @property
    def is_plain(self) -> bool:
        """Whether timm alone builds what is asked for."""
        asked = self.options.get("denoiser") is not None or self.options.get("stride") is not None
        return self.variant is None and self.head is None and not asked


@dataclass(frozen=True)
class Shape:
    """The shape of a head whose weights are made, or come with the backbone's."""

    config: Mapping[str, Any]  # as that of a `DenoiserHead` or a `PositionProjection`


@dataclass(frozen=True)
class Positions:
    """Means over so many views that move the positions, in the place of a head."""

    num_views: int


Denoiser: TypeAlias = Head | Positions | Weights | Shape | None
Backbone: TypeAlias = Literal["random", "base", "own"] | Weights
Held: TypeAlias = Literal["no", "maybe", "must"]


@dataclass(frozen=True)
class Plan:
    """The way from a request to a model."""

    base: str  # timm name of the backbone
    base_sha256: str | None  # of its weights, where they are embedded
    cfg: PretrainedCfg  # what the model says of itself, and where the backbone's weights are
    backbone: Backbone  # weights: none, timm's of the base, the caller's own that `cfg` names, or distilled ones
    head: Denoiser
    held: Held  # whether own weights hold a head, which then goes before `head`
    stride: int | None  # pixels between patches, None for the patch size
    img_size: tuple[int, int]  # (height, width) in pixels that was asked for
    options: dict[str, Any]  # arguments of timm's entrypoint
    features: int | list[int] | None = None  # out_indices of features_only=True, None without
    feature_cls: Any = GETTER  # what makes maps of the model then
    warnings: tuple[str, ...] = ()
    scrambles: bool = False  # whether the head is random where the name stands for a trained one


def plan_of(request: Request) -> Plan:
    """Decide how the denoised, distilled or strided model of a request is built; read nothing.

    Raises:
        RuntimeError: if weights are asked for that nobody published.
        TypeError: if `denoiser` is neither a head, nor a source, nor a shape, nor positions.
        ValueError: on arguments that no denoised model can serve.
    """
    options = dict(request.options)
    _refuse_unsupported(options)
    target = _target(request, options.pop("denoiser", None))
    stride, variant = options.pop("stride", None), target.variant
    cfg, overlay = target.cfg, options.pop("pretrained_cfg_overlay", None)
    if overlay:
        cfg = _overlaid(cfg, overlay)
    own = _names_own_weights(cfg, variant, target.base_cfg)
    if variant is not None and not own:
        cfg = dataclasses.replace(cfg, **{key: getattr(target.base_cfg, key) for key in NOWHERE})
    backbone = _backbone(request, target, cfg, own)
    head, held = _head(request, target, cfg, backbone)
    reads_norm = head is not None and not isinstance(head, Positions)
    if variant is not None and reads_norm and "global_pool" in options:
        options.setdefault("use_fc_norm" if is_eva(request.arch) else "fc_norm", False)  # heads read what norm gives
    img_size = _set_img_size(options, cfg, target.base_cfg, stride)
    if target.denoiser is not None:
        cfg = dataclasses.replace(cfg, **_named(target))
    features = options.pop("out_indices", 3) if options.pop("features_only", False) else None
    feature_cls = options.pop("feature_cls", GETTER)
    reads_blocks = features is not None and feature_cls not in (GETTER, FeatureGetterNet)
    if reads_blocks and isinstance(head, Positions):
        raise ValueError(READS_VIEWS.format(kind=feature_cls))
    warnings = [RANDOM_HEAD] if request.pretrained and isinstance(head, Shape) and held == "no" else []
    if reads_blocks and head is not None:
        warnings.append(READS_BLOCKS.format(kind=feature_cls))
    return Plan(
        base=name_of(cfg) if variant is None else backbone_of(variant.name),
        base_sha256=variant.backbone.sha256 if variant and variant.backbone else None,
        cfg=cfg,
        backbone=backbone,
        head=head,
        held=held,
        stride=stride,
        img_size=img_size,
        options=options,
        features=features,
        feature_cls=feature_cls,
        warnings=tuple(warnings),
        scrambles=isinstance(head, Shape) and target.denoiser is None,
    )


@dataclass(frozen=True)
class _Target:
    """The model that a request names."""

    variant: Variant | None  # the row of the name, None for a plain one
    cfg: PretrainedCfg  # of the model
    base_cfg: PretrainedCfg  # of the backbone: its weights and own image size
    denoiser: Any  # as the caller gave it


def _target(request: Request, denoiser: Any) -> _Target:
    if request.head is not None:
        return _saved_target(request, *request.head, denoiser)
    variant, cfg = request.variant, _as_cfg(request)
    return _Target(variant, cfg, cfg if variant is None else backbone_cfg(variant), denoiser)


def _saved_target(request: Request, location: str, config: Mapping[str, Any], denoiser: Any) -> _Target:
    """Take a head's folder or repository for its base with this head, or with the caller's own."""
    base, shape = config.get("base"), {key: config[key] for key in ("grid_size", "num_blocks", "rank") if key in config}
    if not isinstance(base, str) or base.partition(".")[0] != request.arch:
        raise ValueError(f"{location}: its base is {base!r}, which is no {request.arch}; save or push the head again")
    args = config.get("model_args", {})
    with refused(location):
        if not args.keys() <= {"denoiser", "stride"} or not isinstance(args.get("stride", 1), int):
            raise ValueError(f"its model_args {args} are not those of a head")
        full_name(base)  # complains of one that timm does not know
        patch, stride = config.get("patch_size"), args.get("stride", config.get("patch_size"))
        if not isinstance(patch, int) or not 0 < stride <= patch:
            raise ValueError(f"its patch_size {patch!r} and stride {stride!r} are not pixels of patches")
        _shape(shape)  # complains of one that is none
        sides = [(side - 1) * stride + patch for side in shape.get("grid_size", ())]
    variant = own_variant(backbone_of(base), base, location)
    cfg = listed_cfg(variant, (3, *(sides or backbone_cfg(variant).input_size[1:])))
    if denoiser == args.get("denoiser"):  # timm passes what the configuration says
        denoiser = None if request.pretrained else shape
    return _Target(variant if request.pretrained else None, cfg, backbone_cfg(variant), denoiser)


def _as_cfg(request: Request) -> PretrainedCfg:
    cfg, arch = request.cfg, request.arch
    if isinstance(cfg, Mapping):
        cfg = PretrainedCfg(**{"input_size": base_cfg(arch).input_size, **cfg})
    elif cfg is None or isinstance(cfg, str):
        cfg = base_cfg(f"{arch}.{cfg}" if cfg else arch)
    return dataclasses.replace(cfg, architecture=cfg.architecture or arch)


def has_lost_tag(request: Request) -> bool:
    """Say whether a plain model may have been meant denoised: timm drops the tag if `pretrained_cfg` is a dict."""
    cfg = request.cfg
    named = not cfg or isinstance(cfg, str) or cfg_field(cfg, "tag") or cfg_field(cfg, "source")
    return not named and bool(list_variants(f"{request.arch}.*"))


def _refuse_unsupported(options: Mapping[str, Any]) -> None:
    if options.get("use_naflex"):
        raise ValueError("use_naflex=True builds a NaFlexVit, which these names and stride= do not know; leave it out")


def _overlaid(cfg: PretrainedCfg, overlay: Mapping[str, Any]) -> PretrainedCfg:
    """Lay `pretrained_cfg_overlay` over a cfg; the weights of another source are in timm's own format."""
    if any(overlay.get(key) for key in SOURCES):
        overlay = {"custom_load": False, **overlay}
    return dataclasses.replace(cfg, **overlay)


def _names_own_weights(cfg: PretrainedCfg, variant: Variant | None, base_cfg: PretrainedCfg) -> bool:
    """Say whether `cfg` names weights of the caller's own: a file, a state dict, a saved model, another repository."""
    if cfg.source in SAVED or cfg.state_dict is not None:
        return True
    if variant is None and cfg.file is not None:
        return True
    return any(getattr(cfg, key) not in (None, getattr(base_cfg, key)) for key in SOURCES)


def _named(target: _Target) -> dict[str, Any]:
    """Say in a cfg which head of the caller's takes the place of a name's, with the backbone's own tag."""
    denoiser, variant = target.denoiser, target.variant
    if isinstance(denoiser, Head):
        place = "a head of the caller's" if denoiser.source is None else denoiser.source.place
    elif isinstance(denoiser, str | Path):
        place = str(denoiser)
    elif _asks_positions(denoiser):
        place = f"means over {denoiser['positions']} views of positions"
    else:
        return {}
    tag = target.cfg.tag if variant is None else backbone_of(variant.name).partition(".")[2]
    return {"tag": tag, "notes": (f"{NOTE}{place}",)}


def _backbone(request: Request, target: _Target, cfg: PretrainedCfg, own: bool) -> Backbone:
    """Decide where the backbone's weights come from; raise ValueError if a distilled name is to get a head."""
    if not request.pretrained:
        return "random"
    if own:
        foreign = cfg.custom_load and cfg.source not in SAVED  # a format that timm's models read themselves
        return "base" if foreign and (cfg.file or cfg.url) else "own"
    variant = target.variant
    if variant is None or not variant.distilled or variant.weights is None:
        return "base"
    if target.denoiser is not None and not _asks_positions(target.denoiser):
        raise ValueError(
            f"{variant.name} is a plain model with distilled weights, which no head goes with; pass denoiser=... to "
            f"{variant.base}"
        )
    return variant.weights


def _head(request: Request, target: _Target, cfg: PretrainedCfg, backbone: Backbone) -> tuple[Denoiser, Held]:
    """Decide where the head comes from, and whether own weights may or must hold one, which goes first.

    Raises:
        RuntimeError: if nobody published one.
        TypeError, ValueError: if `denoiser` is neither a head, nor a source, nor a shape.
    """
    denoiser, variant = target.denoiser, target.variant
    held: Held = "no" if backbone != "own" else "must" if cfg.source in SAVED else "maybe"
    if isinstance(denoiser, Head):
        return denoiser, "no"
    if isinstance(denoiser, str | Path):
        return Own(denoiser), "no"
    if _asks_positions(denoiser):
        return Positions(denoiser["positions"]), "no"
    if denoiser is not None:
        return _shape(denoiser), held
    if variant is None or variant.distilled:
        return None, "no"
    if isinstance(variant.weights, Own):
        return variant.weights, "no"
    if not request.pretrained:
        return _shape({"grid_size": variant.grid_size}), "no"
    if variant.weights is None and held == "no":
        raise RuntimeError(NO_HEAD.format(name=variant.name, base=variant.base))
    return variant.weights, held


def _asks_positions(denoiser: Any) -> bool:
    return isinstance(denoiser, Mapping) and denoiser.keys() == {"positions"}


def _shape(denoiser: Any) -> Shape:
    if not isinstance(denoiser, Mapping):
        raise TypeError(
            f'denoiser must be a DenoiserHead, a path, hf-hub:..., a shape or {{"positions": n}}, got {denoiser!r}'
        )
    if denoiser.keys() == {"rank"}:
        return Shape(dict(denoiser))
    if not {"grid_size"} <= denoiser.keys() <= {"grid_size", "num_blocks"}:
        keys = ", ".join(map(str, list(denoiser)[:5]))
        raise ValueError(
            f'denoiser={{{keys}, ...}} should be {{"grid_size": [h, w], "num_blocks": n}}, {{"rank": n}} or '
            '{"positions": n}'
        )
    return Shape({"num_blocks": 1, **denoiser, "grid_size": list(as_grid(denoiser["grid_size"]))})


def _set_img_size(
    options: dict[str, Any], cfg: PretrainedCfg, base_cfg: PretrainedCfg, stride: int | None
) -> tuple[int, int]:
    """Put `dynamic_img_size` and timm's `img_size` into the options; give the (height, width) that was asked for.

    timm builds at the base's own size where the position embedding is to keep its grid, or is resampled by the stride.

    Raises:
        ValueError: if the size in pixels is smaller than a patch, or fixed and not whole patches.
    """
    dynamic = options.setdefault("dynamic_img_size", True)
    native = tuple(base_cfg.input_size[-2:])
    wanted = to_2tuple(options.get("img_size") or cfg.input_size[-2:])
    patch_size = to_2tuple(options.get("patch_size") or named_patch_size(cfg.architecture or "") or 1)
    for side, patch in zip(wanted, patch_size, strict=True):
        if side < patch or (side % patch and not dynamic):
            raise ValueError(
                f"img_size {tuple(wanted)} is not whole patches of {patch} pixels; use "
                f"{max(side // patch, 1) * patch} in place of {side}"
            )
    options["img_size"] = native if stride is not None or (dynamic and "img_size" not in options) else wanted
    return wanted
