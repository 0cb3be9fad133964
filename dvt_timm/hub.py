"""Heads on disk and on the Hugging Face Hub: find, load, save."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ._version import __version__
from .convert import checkpoint_keys, read_checkpoint
from .head import DenoiserHead, as_grid
from .manifest import Variant, weights_path
from .stride import OverlapPatchEmbed

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
SCHEMA = 1  # of the config.json that save_head writes
HUB_PREFIX = "hf-hub:"


def load_head(source: str | Path, *, cache_dir: str | Path | None = None) -> DenoiserHead:
    """Load a denoiser head.

    Args:
        source: a folder written by `save_head`, a `.safetensors` file, or `hf-hub:user/repo[@revision]`.
        cache_dir: where the Hub client keeps its files, its own default if None.

    Returns:
        The head in evaluation mode, float32 on the CPU.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if the file is damaged, its keys or shapes are not a head's, or its values are not finite.
    """
    if str(source).startswith(HUB_PREFIX):
        repo, _, revision = str(source).removeprefix(HUB_PREFIX).partition("@")
        config = _read_config(_download(repo, CONFIG_NAME, revision or None, cache_dir))
        return _read_head(_download(repo, WEIGHTS_NAME, revision or None, cache_dir), config)
    path = Path(source)
    if path.is_dir():
        return _read_head(path / WEIGHTS_NAME, _read_config(path / CONFIG_NAME))
    return _read_head(path, {})


def save_head(head: DenoiserHead, folder: str | Path, *, base: str) -> Path:
    """Write a head to a folder (`config.json`, `model.safetensors`) that `load_head` reads back bit for bit.

    Each file appears whole or not at all, the configuration last.

    Args:
        head: the denoiser.
        folder: made if it does not exist.
        base: timm name of the backbone it was trained on, "arch.tag".

    Returns:
        The folder.

    Raises:
        TypeError: if `head` is no `DenoiserHead`.
    """
    if not isinstance(head, DenoiserHead):
        raise TypeError(f"save_head saves a DenoiserHead, got {type(head).__name__}; for a whole model use save_model")
    folder = Path(folder)
    config = {"schema": SCHEMA, "library": "dvt-timm", "version": __version__, "base": base, "dim": head.dim}
    metadata = {"format": "pt", "grid_size": json.dumps(head.config["grid_size"])}
    _write_folder(folder, head, {**config, **head.config}, metadata)
    return folder


def save_model(model: Any, folder: str | Path) -> Path:
    """Write a denoised (or distilled) model, base and head in one file, for `create_model("local-dir:FOLDER")`.

    `transformers.TimmWrapperModel.from_pretrained(FOLDER)` reads it too.

    Args:
        model: from `timm.create_model` or `denoise`.
        folder: made if it does not exist.

    Returns:
        The folder.

    Raises:
        TypeError: for a `features_only` model, which has lost its classifier and its name; for a head; for a model
            that `create_model` did not build; for one whose patches come from a convolutional network.
    """
    from timm.models._hub import save_config_for_hf

    folder = Path(folder)
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
        config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"] = args
    _write_folder(folder, model, config, {"format": "pt"})
    return folder


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


def published_head(variant: Variant, cache_dir: str | Path | None = None) -> DenoiserHead:
    """The head of a variant, from its repository, the package's own files, or a user's source.

    Raises:
        RuntimeError: if it has none.
    """
    if variant.head is not None:
        return load_head(variant.head, cache_dir=cache_dir)
    path = _published_file(variant, cache_dir)
    if path.suffix == ".safetensors":
        return _read_head(path, {"grid_size": list(variant.grid_size)})
    return head_from_state(read_checkpoint(path), {}, path)


def published_weights(variant: Variant, cache_dir: str | Path | None = None) -> dict[str, Tensor]:
    """The distilled weights of a variant, under timm's keys."""
    return read_checkpoint(_published_file(variant, cache_dir))


def head_from_state(state: dict[str, Tensor], config: Mapping[str, Any], source: str | Path) -> DenoiserHead:
    """Build the head that a state dict describes.

    Args:
        state: keys as the authors', `pos_embed` and `denoiser.*`.
        config: what is known of it besides, any of `grid_size`, `num_blocks`, `dim`; the grid is square if not given.
        source: where it came from, for error messages.

    Raises:
        ValueError: if keys, shapes or values are not a head's, or not those of `config`.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3 or not any(key.startswith("denoiser.") for key in state):
        raise ValueError(f"{source} is no denoiser head: it needs 'pos_embed' (1, h * w, dim) and 'denoiser.*'")
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"{source}: values of {', '.join(bad)} are not finite; the file is damaged or badly trained")
    length, dim = positions.shape[1:]
    blocks = {int(match[1]) for key in state if (match := re.match(r"denoiser\.(\d+)\.", key))}
    grid_size = as_grid(config["grid_size"]) if config.get("grid_size") else (math.isqrt(length), math.isqrt(length))
    if grid_size[0] * grid_size[1] != length:
        raise ValueError(
            f"{source}: 'pos_embed' has {length} positions, which do not fill a {grid_size[0]} x {grid_size[1]} grid; "
            "the file needs the metadata entry grid_size, or a config.json beside it (see save_head)"
        )
    try:
        head = DenoiserHead(dim, grid_size, max(len(blocks), 1))
        head.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{source} is no denoiser head: {error}") from error
    for key, value in (("dim", head.dim), ("num_blocks", head.num_blocks)):
        if config.get(key, value) != value:
            raise ValueError(f"{source} holds a head of {key} {value}, its configuration says {config[key]!r}")
    return head.eval()


def name_a_denoiser(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a model with its denoiser, not of a head alone."""
    return any(key.endswith("denoiser.pos_embed") for key in keys)


def holds_denoiser(checkpoint: str | Path) -> bool:
    """Whether a local checkpoint (a file, or a folder as timm saves it) is a model with its denoiser, not a head.

    False too for what is no file, or cannot be read here: timm knows more formats, and says what is wrong.
    """
    path = Path(checkpoint)
    if path.is_dir():
        candidates = [path / name for name in (WEIGHTS_NAME, "pytorch_model.bin")]
        path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    if not path.is_file():
        return False
    return name_a_denoiser(_keys(path))


def is_saved_model(folder: str | Path) -> bool:
    """Whether a folder is a whole model as timm or `save_model` writes it, not a head."""
    path = Path(folder, CONFIG_NAME)
    return path.is_file() and "architecture" in _read_json(path)


def _keys(path: Path) -> set[str]:
    """The names of a checkpoint's tensors; none if it cannot be read."""
    if path.suffix != ".safetensors":
        return checkpoint_keys(path)
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()


def _published_file(variant: Variant, cache_dir: str | Path | None) -> Path:
    if variant.file is None:
        raise RuntimeError(
            f"{variant.name} has no published weights; train a head for {variant.base} and pass it as denoiser=..., "
            "or build with pretrained=False"
        )
    if variant.repo is None:
        return weights_path(variant.file)
    path = _download(variant.repo, variant.file, variant.revision, cache_dir)
    if variant.sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != variant.sha256:
        raise ValueError(f"{variant.repo}/{variant.file} is not the published file (sha256 differs); remove {path}")
    return path


def _download(repo: str, file: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, file, revision=revision, cache_dir=cache_dir))


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration of a head, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {path.parent} is no complete head folder (see save_head)")
    config = _read_json(path)
    if "architecture" in config:
        raise ValueError(f"{path.parent} is a whole model, not a head; load it as timm's 'local-dir:{path.parent}'")
    schema = config.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; update dvt-timm")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def _read_head(path: Path, config: Mapping[str, Any]) -> DenoiserHead:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; a head is a folder, a .safetensors file or hf-hub:user/repo")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file")
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if "grid_size" in metadata:
        grid_size = json.loads(metadata["grid_size"])
        if config.get("grid_size", grid_size) != grid_size:
            raise ValueError(
                f"{path} has grid_size {grid_size}, its configuration {config['grid_size']}: they do not belong "
                "together; save the head again"
            )
        config = {**config, "grid_size": grid_size}
    state = {key: value.float() for key, value in load_file(path).items()}
    return head_from_state(state, config, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _write_folder(folder: Path, module: nn.Module, config: dict[str, Any], metadata: dict[str, str]) -> None:
    text = json.dumps(config, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    with replacing(folder / WEIGHTS_NAME) as path:
        save_file(state, path, metadata)
    with replacing(folder / CONFIG_NAME) as path:
        path.write_text(text, encoding="utf-8")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A scratch path beside `target` that takes its place once it is written whole; else nothing changes."""
    scratch = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
