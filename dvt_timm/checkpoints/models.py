"""Whole models as files: a backbone and its head in one folder, file or repository, and their way into a model."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import PretrainedCfg, adapt_input_conv, load_pretrained
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_filter
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor, nn

from .._util.files import CONFIG_NAME, WEIGHTS_NAME, read_json, sha256_of, weights_file, write_json
from .._util.modules import uncompiled
from ..head import Head
from ..hub import client as hub
from ..names import NOWHERE
from ..stride import OverlapPatchEmbed, overlapping_grid, set_stride
from .folder import write_folder
from .heads import WRITTEN
from .tensors import UNREADABLE, check_finite, check_schema, reason_of

SAVED = ("local-dir", "hf-hub")  # PretrainedCfg.source of a whole saved model
NOTE = "denoiser: "  # what a note of a PretrainedCfg begins with that says where a denoiser came from
PREFIX, STEM = "denoiser.", "patch_embed.proj.weight"


def save_model(model: Any, folder: str | Path, *, base: str | None = None) -> Path:
    """Write a denoised or distilled model to a folder, backbone and head in one file.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` reads it, and so does
    `transformers.TimmWrapperModel.from_pretrained(FOLDER)`.

    Args:
        model: from `timm.create_model` or `denoise`.
        folder: made if it does not exist.
        base: timm name of the backbone that it comes from, for a later push; needed where the model's own tag is none
            of timm's.

    Returns:
        The folder.

    Raises:
        TypeError: for a head, a model that `create_model` did not build, a `features_only` model, which has lost its
            classifier and its name, and one whose patches come from a convolutional network; for one that could not be
            read again: its tensors are not those of the model that `create_model` builds of its configuration (LoRA
            that is not merged, pruned, parametrized or quantized weights, another classifier or depth), or have no
            values. Nothing is written then.
        ValueError: if its values are not finite; nothing is written then.
        OSError: if the folder cannot be written.
    """
    from timm.models._hub import save_config_for_hf

    model = uncompiled(model)
    if isinstance(model, Head):
        raise TypeError("cannot save a head as a model; use save_head")
    if not isinstance(getattr(model, "patch_embed", None), PatchEmbed) or not hasattr(model, "pretrained_cfg"):
        raise TypeError(
            f"cannot save this {type(model).__name__}; save a ViT that timm.create_model built without "
            "features_only=True"
        )
    args = _rebuild_args(model)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, CONFIG_NAME)
        save_config_for_hf(model, path, model_args=args)
        origin = {} if base is None else {"base": base}
        config = {**WRITTEN, "kind": "model", **origin, **_without_places(read_json(path)), "model_args": args}
        write_json(path, config)
        twin = _rebuilt(scratch, type(model).__name__)
    return write_folder(Path(folder), model, twin, config, {"format": "pt"})


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a configuration where on this machine the denoiser lay."""
    notes = config.get("pretrained_cfg", {}).get("notes")
    if not notes:
        return config
    kept = [note for note in notes if not note.startswith(NOTE)]
    return {**config, "pretrained_cfg": {**config["pretrained_cfg"], "notes": kept}}


def _rebuilt(folder: str, kind: str) -> Any:
    """Build the model that the configuration in a folder says, without memory; raise TypeError if there is none."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who loads the model hears them
            return timm.create_model(f"local-dir:{folder}", pretrained=False)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"cannot save this {kind}, which could not be built again: {error}") from error


def saved_config(source: str, location: str, cache_dir: str | Path | None) -> tuple[str, dict[str, Any]] | None:
    """Read the config.json that timm has read as a model's, and passes a part of on: it may be a head's.

    Args:
        source: timm's word for the kind of place, one of `SAVED`.
        location: "user/repo[@revision]", whose `config.json` timm has fetched, or a folder.
        cache_dir: of the Hub client.

    Returns:
        The place as `load_head` names it, a repository at the commit that was fetched, and its configuration; None if
        there is none.

    Raises:
        ValueError: if a newer version wrote the configuration, or if that of a repository names a head elsewhere.
    """
    path: Path | None = Path(location, CONFIG_NAME)
    if source == "hf-hub":
        repo, revision = hub.split_source(location)
        path = hub.cached(repo, CONFIG_NAME, revision, cache_dir)
        location = f"{hub.HUB_PREFIX}{repo}@{hub.commit_of(path)}" if path is not None else location
    if path is None or not path.is_file():
        return None
    config = read_json(path)
    if is_ours(config):
        check_schema(path, config)
    if source == "hf-hub" and isinstance(denoiser := config.get("model_args", {}).get("denoiser"), str):
        raise ValueError(f"{location} is refused: its configuration names a head elsewhere, {denoiser!r}")
    return location, config


def is_ours(config: Mapping[str, Any]) -> bool:
    """Say whether this package wrote a configuration."""
    return config.get("library") == WRITTEN["library"]


def pinned(cfg: PretrainedCfg, cache_dir: str | Path | None) -> tuple[PretrainedCfg, str | None]:
    """Fetch a base's weights from its Hub repository.

    Returns:
        The cfg, its repository at one commit, and the SHA-256 of the weights, None if it is not known.

    Raises:
        OSError, ValueError: as `hub.client.pin_weights`.
    """
    location, path = hub.pin_weights(str(cfg.hf_hub_id), cache_dir)
    return dataclasses.replace(cfg, hf_hub_id=location), hub.recorded_sha256(path) if path else None


def weights_sha256(cfg: PretrainedCfg, cache_dir: str | Path | None) -> str | None:
    """Hash the file of weights that a cfg names, on disk or in the cache of the Hub; None if there is none."""
    if cfg.file:
        path = weights_file(cfg.file)
        return None if path is None else sha256_of(path)
    if not cfg.hf_hub_id:
        return None
    repo, revision = hub.split_source(cfg.hf_hub_id)
    cached = hub.cached(repo, cfg.hf_hub_filename or WEIGHTS_NAME, revision, cache_dir)
    return None if cached is None else hub.recorded_sha256(cached)


def read_weights(
    cfg: PretrainedCfg, cache_dir: str | Path | None
) -> tuple[PretrainedCfg, dict[str, Tensor], dict[str, Tensor]]:
    """Read the weights that a cfg names, in any form that timm reads, the denoiser's apart from the backbone's.

    Args:
        cfg: names a file, a state dict, a saved model's folder or a repository.
        cache_dir: of the Hub client.

    Returns:
        The cfg, its repository at one commit; the backbone's tensors; the denoiser's under the keys of `DenoiserHead`,
        empty if there is none.

    Raises:
        OSError, RuntimeError, ValueError: if the weights are not to be had, or are damaged; the classes are timm's.
            ValueError if torch cannot read a file.
    """
    cfg, place = _at_commit(cfg, cache_dir)
    reader = _Reader()
    try:
        load_pretrained(reader, pretrained_cfg={**place, "classifier": None, "first_conv": None}, cache_dir=cache_dir)
    except (*UNREADABLE, OSError) as error:  # torch's do not name the file
        if not cfg.file or str(cfg.file) in str(error):
            raise
        raise ValueError(f"{cfg.file} cannot be read as a file of tensors: {reason_of(error)}") from error
    held = {key.removeprefix(PREFIX): value for key, value in reader.state.items() if key.startswith(PREFIX)}
    state = {key: value for key, value in reader.state.items() if not key.startswith(PREFIX)}
    return cfg, state, held


class _Reader(nn.Module):
    """A module that timm loads weights into as into a model; it only keeps the tensors."""

    state: dict[str, Tensor]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self.state = dict(state_dict)
        return super().load_state_dict({}, strict, assign)


def load_backbone(
    model: Any,
    state: dict[str, Tensor],
    cfg: PretrainedCfg,
    stride: int | None,
    img_size: tuple[int, int],
    with_classifier: bool,
) -> None:
    """Load a backbone's tensors into a plain model through timm, with timm's adaptations.

    Args:
        model: a timm `VisionTransformer` or `Eva` without a head.
        state: the backbone's tensors.
        cfg: what is known of them.
        stride: distance of two patches in pixels that the model is to get, None for its patch size. Where the tensors
            are of overlapping patches, it is set here, before their position embedding is loaded.
        img_size: (height, width) in pixels that the position embedding is for then.
        with_classifier: whether the model keeps its classifier, if it has one.

    Raises:
        RuntimeError: if the tensors do not fit the model.
        ValueError: if nothing tells the grid of a saved model's position embedding, or values are not finite.
    """
    if stride is not None and _is_strided(state, model, stride, img_size, cfg.source in SAVED):
        set_stride(model, stride, img_size)
    state = (eva_filter if isinstance(model, Eva) else vit_filter)(dict(state), model)
    if STEM in state:  # timm 1.0.21 would adapt a stem of the right width too
        state[STEM] = _adapt_stem(state[STEM], model.patch_embed.proj.in_channels)
    place = str(cfg.hf_hub_id or cfg.file or "the file of weights")
    _check_complete(state, model, place, cfg.classifier)
    check_finite(state, place)
    given = {**cfg.to_dict(), **NOWHERE, "source": None, "state_dict": state, "input_size": (3, *cfg.input_size[1:])}
    load_pretrained(model, pretrained_cfg=given, num_classes=model.num_classes if with_classifier else 0)


def _rebuild_args(model: Any) -> dict[str, Any]:
    """Collect the `create_model` arguments that rebuild a model, JSON-friendly, without classes and dropout rates."""
    embed = model.patch_embed
    passed = getattr(model, "_model_args", {})
    args = {key: value for key, value in passed.items() if key != "num_classes" and not key.endswith("_rate")}
    args["patch_size"] = list(embed.patch_size)
    args.update(in_chans=embed.proj.in_channels, global_pool=model.global_pool, img_size=list(embed.img_size))
    if isinstance(embed, OverlapPatchEmbed):
        args["stride"] = embed.stride[0]
    return args


def _at_commit(cfg: PretrainedCfg, cache_dir: str | Path | None) -> tuple[PretrainedCfg, dict[str, Any]]:
    """Give a cfg, and the same for timm, at one commit if it names a Hub repository: that of the config.json read."""
    by_source = cfg.source == "hf-hub"
    named_otherwise = not by_source and bool(cfg.file or cfg.state_dict or cfg.hf_hub_filename)
    if not cfg.hf_hub_id or cfg.source == "local-dir" or named_otherwise:
        return cfg, cfg.to_dict()
    location = cfg.hf_hub_id
    repo, revision = hub.split_source(location)
    if by_source and (config := hub.cached(repo, CONFIG_NAME, revision, cache_dir)):
        location = f"{repo}@{hub.commit_of(config)}"
    location, path = hub.pin_weights(location, cache_dir)
    if path is None:
        return cfg, cfg.to_dict()
    return dataclasses.replace(cfg, hf_hub_id=location), {**cfg.to_dict(), **NOWHERE, "hf_hub_id": location}


def _check_complete(
    state: Mapping[str, Tensor], model: Any, place: str, classifier: str | tuple[str, ...] | None
) -> None:
    """Raise RuntimeError if tensors of a model are missing: timm lets that pass where the number of classes differs."""
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    own = tuple(f"{name}." for name in names)
    missing = [key for key in model.state_dict() if key not in state and not key.startswith(own)]
    if missing:
        raise RuntimeError(f"{place} does not fit the model: Missing key(s) in state_dict: {', '.join(missing)}")


def _is_strided(state: Mapping[str, Tensor], model: Any, stride: int, img_size: tuple[int, int], saved: bool) -> bool:
    """Say whether a position embedding is on the denser grid of overlapping patches already.

    Raises:
        ValueError: if that of a saved model is on neither grid: nothing says how its tokens lie.
    """
    if "pos_embed" not in state:
        return False
    tokens = state["pos_embed"].shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    height, width = overlapping_grid(img_size, model.patch_embed.patch_size, (stride, stride))
    if saved and tokens not in (model.patch_embed.num_patches, height * width):
        raise ValueError(
            f"the weights have {tokens} positions, which are not the {height} x {width} patches of stride {stride} "
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
