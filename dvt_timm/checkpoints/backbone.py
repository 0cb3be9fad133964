"""Checkpoints of whole models: the backbone goes into the model through timm, the denoiser's tensors come back."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv, load_pretrained
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor

from ..stride import overlapping_grid, set_stride
from .tensors import check_finite

SAVED = ("local-dir", "hf-hub")  # PretrainedCfg.source of a whole saved model
PREFIX, STEM = "denoiser.", "patch_embed.proj.weight"


def load_backbone(
    model: Any,
    source: dict[str, Any],
    stride: int | None,
    img_size: tuple[int, int],
    cache_dir: str | Path | None,
    with_classifier: bool,
) -> dict[str, Tensor]:
    """Load a checkpoint's backbone into a plain model through timm, with timm's adaptations.

    Args:
        model: a timm `VisionTransformer` or `Eva` without a head.
        source: a `pretrained_cfg` as a dict, which names the checkpoint.
        stride: distance of two patches in pixels that the model is to get, None for its patch size. A checkpoint of
            overlapping patches sets it here, before its position embedding is loaded.
        img_size: (height, width) in pixels that the position embedding is for then.
        cache_dir: of the Hub client.
        with_classifier: whether the model keeps its own, if it has one.

    Returns:
        The tensors of the checkpoint's denoiser under the keys of `DenoiserHead`, none if it holds none.

    Raises:
        RuntimeError: if the checkpoint does not fit the model.
        ValueError: if a saved model's position embedding is on a grid that nothing tells, or values are not finite.
    """
    base_filter = eva_filter if isinstance(model, Eva) else vit_filter
    held: dict[str, Tensor] = {}

    def backbone_of(state: dict[str, Tensor], model: VisionTransformer | Eva) -> dict[str, Tensor]:
        held.update({key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)})
        state = {key: value for key, value in state.items() if not key.startswith(PREFIX)}
        if stride is not None and _is_strided(state, model, stride, img_size, source.get("source") in SAVED):
            set_stride(model, stride, img_size)
        state = base_filter(state, model)
        if STEM in state:  # timm 1.0.21 would adapt a stem of the right width too
            state[STEM] = _adapt_stem(state[STEM], model.patch_embed.proj.in_channels)
        checkpoint = source.get("hf_hub_id") or source.get("file") or "the checkpoint"
        _check_complete(state, model, checkpoint, source.get("classifier"))
        check_finite(state, checkpoint)
        return state

    load_pretrained(
        model,
        pretrained_cfg={**source, "input_size": (3, *source["input_size"][1:])},
        num_classes=model.num_classes if with_classifier else 0,
        in_chans=3,
        filter_fn=backbone_of,
        cache_dir=cache_dir,
    )
    return held


def _check_complete(
    state: Mapping[str, Tensor], model: Any, checkpoint: str, classifier: str | tuple[str, ...] | None
) -> None:
    """Raise RuntimeError if tensors of a model are missing: timm lets it pass where the number of classes differs."""
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    own = tuple(f"{name}." for name in names)
    missing = [key for key in model.state_dict() if key not in state and not key.startswith(own)]
    if missing:
        raise RuntimeError(f"{checkpoint} does not fit the model: Missing key(s) in state_dict: {', '.join(missing)}")


def _is_strided(state: Mapping[str, Tensor], model: Any, stride: int, img_size: tuple[int, int], saved: bool) -> bool:
    """Whether a checkpoint's position embedding is on the denser grid of overlapping patches already.

    Raises:
        ValueError: if a saved model's is on neither grid: nothing says how its tokens lie.
    """
    if "pos_embed" not in state:
        return False
    tokens = state["pos_embed"].shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    height, width = overlapping_grid(img_size, model.patch_embed.patch_size, (stride, stride))
    if saved and tokens not in (model.patch_embed.num_patches, height * width):
        raise ValueError(
            f"the checkpoint has {tokens} positions, which are not the {height} x {width} patches of stride {stride} "
            f"at img_size {tuple(img_size)}; load it without img_size, as it was saved, then call model.set_input_size"
        )
    return bool(tokens == height * width)


def _adapt_stem(weight: Tensor, in_chans: int) -> Tensor:  # [C, c, p, p] -> [C, in_chans, p, p]
    width = weight.shape[1]
    if width == in_chans:
        return weight
    if width == 3:
        return adapt_input_conv(in_chans, weight)
    if "base_chans" not in signature(adapt_input_conv).parameters:
        raise ValueError(f"this version of timm cannot make {in_chans} input channels of {width}; update timm")
    return adapt_input_conv(in_chans, weight, base_chans=width)
