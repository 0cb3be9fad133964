"""Whole models as files: a backbone and its head in one folder, checkpoint or repository."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from timm.layers import PatchEmbed

from .._util.files import read_json
from ..head import DenoiserHead
from ..hub import client as hub
from ..hub.client import CONFIG_NAME, HUB_PREFIX, PICKLED_WEIGHTS, WEIGHTS_NAME
from ..stride import OverlapPatchEmbed
from .heads import WRITTEN, check_schema, is_head_config, uncompiled, write_folder
from .tensors import checkpoint_keys


def save_model(model: Any, folder: str | Path, *, base: str | None = None) -> Path:
    """Write a denoised (or distilled) model, base and head in one file, for `create_model("local-dir:FOLDER")`.

    `transformers.TimmWrapperModel.from_pretrained(FOLDER)` reads it too.

    Args:
        model: from `timm.create_model` or `denoise`.
        folder: made if it does not exist.
        base: timm name of the backbone that it comes from, for `dvt-timm push`; needed where the model's own tag is
            none of timm's.

    Returns:
        The folder.

    Raises:
        TypeError: for a `features_only` model, which has lost its classifier and its name; for a head; for a model
            that `create_model` did not build; for one whose patches come from a convolutional network.
    """
    from timm.models._hub import save_config_for_hf

    model = uncompiled(model)
    if isinstance(model, DenoiserHead):
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
        config = read_json(path)
    origin = {} if base is None else {"base": base}
    config = {**WRITTEN, "kind": "model", **origin, **config, "model_args": args}
    return write_folder(Path(folder), model, config, {"format": "pt"})


def _rebuild_args(model: Any) -> dict[str, Any]:
    """The `create_model` arguments that rebuild a model of this package, JSON-friendly; classes and weights aside."""
    embed = model.patch_embed
    passed = getattr(model, "_model_args", {})
    args = {key: value for key, value in passed.items() if key != "num_classes" and not key.endswith("_rate")}
    args["patch_size"] = list(embed.patch_size)
    args.update(in_chans=embed.proj.in_channels, global_pool=model.global_pool, img_size=list(embed.img_size))
    if isinstance(embed, OverlapPatchEmbed):
        args["stride"] = embed.stride[0]
    return args


def is_saved_model(source: str | Path, cache_dir: str | Path | None = None) -> bool:
    """Whether a folder or `hf-hub:user/repo` is a whole model as timm or `save_model` writes it, not a head.

    Raises:
        OSError: if a repository is not to be had.
        ValueError: if its configuration is no JSON object.
    """
    config = config_of(source, cache_dir)
    return config is not None and not is_head_config(config)


def config_of(source: str | Path, cache_dir: str | Path | None = None) -> dict[str, Any] | None:
    """The configuration in a folder or `hf-hub:user/repo`, None if there is none; raises as `is_saved_model`."""
    if str(source).startswith(HUB_PREFIX):
        repo, revision = hub.split_source(str(source))
        path = hub.fetch(repo, CONFIG_NAME, revision=revision, cache_dir=cache_dir)
    else:
        path = Path(source, CONFIG_NAME)
    return read_json(path) if path.is_file() else None


def saved_config(source: str | None, location: str, cache_dir: str | Path | None) -> tuple[str, dict[str, Any]] | None:
    """The configuration where timm has found a model, or a head of ours in the place of one.

    Args:
        source: timm's word for the kind of place, "hf-hub" or "local-dir".
        location: "user/repo[@revision]", whose `config.json` timm has fetched, or a folder.
        cache_dir: of the Hub client.

    Returns:
        The place as `load_head` names it, a repository at the commit that was fetched, and its configuration; None for
        another kind of place.

    Raises:
        ValueError: if a newer version wrote it, or the repository names a head elsewhere.
    """
    if source == "hf-hub":
        repo, revision = hub.split_source(location)
        path = hub.cached(repo, CONFIG_NAME, revision, cache_dir)
        location = f"{HUB_PREFIX}{repo}@{hub.commit_of(path)}" if path is not None else location
    else:
        path = Path(location, CONFIG_NAME) if source == "local-dir" else None
    if path is None or not path.is_file():
        return None
    config = read_json(path)
    if config.get("library") == WRITTEN["library"]:
        check_schema(path, config)
    if source == "hf-hub" and isinstance(denoiser := config.get("model_args", {}).get("denoiser"), str):
        raise ValueError(f"{location} is refused: its configuration names a head elsewhere, {denoiser!r}")
    return location, config


def holds_denoiser(checkpoint: str | Path) -> bool:
    """Whether a local checkpoint (a file, or a folder as timm saves it) is a model with its denoiser, not a head.

    False too for what is no file, or cannot be read here: timm knows more formats, and says what is wrong.
    """
    return name_a_denoiser(_keys(checkpoint))


def holds_backbone(checkpoint: str | Path) -> bool:
    """Whether a local checkpoint is a ViT, with its denoiser or without one; False as in `holds_denoiser`."""
    return any(key.endswith("patch_embed.proj.weight") for key in _keys(checkpoint))


def name_a_denoiser(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a model with its denoiser, not of a head alone."""
    return any(key.endswith("denoiser.pos_embed") for key in keys)


def _keys(checkpoint: str | Path) -> set[str]:
    """The names of a checkpoint's tensors; none if it cannot be read."""
    path = Path(checkpoint)
    if path.is_dir():
        candidates = [path / name for name in (WEIGHTS_NAME, PICKLED_WEIGHTS)]
        path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    if not path.is_file():
        return set()
    if path.suffix != ".safetensors":
        return checkpoint_keys(path)
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()
