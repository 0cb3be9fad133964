"""Heads as files: in folders and in repositories of the Hub."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._util.files import CONFIG_NAME, WEIGHTS_NAME, read_json, sha256_of
from .._util.modules import uncompiled
from .._version import __version__
from ..head import DenoiserHead, Head, HeadSource, as_grid
from ..homes import Resident
from ..hub import client as hub
from ..manifest import weights_path
from ..names import backbone_of, base_cfg, find_variant, full_name, name_of, plain_model
from ..projection import PositionProjection
from ..stride import OverlapPatchEmbed
from .folder import write_folder
from .tensors import SCHEMA, check_finite, check_schema, is_head_config, read_metadata, read_tensors

PROJECTION = {"mean", "basis"}  # keys of a projection's state
WRITTEN = {"schema": SCHEMA, "library": "dvt-timm", "version": __version__}  # what every config.json begins with


def load_head(source: str | Path, *, cache_dir: str | Path | None = None) -> Head:
    """Load a denoiser head, or a projection that takes its place.

    Args:
        source: a folder that `save_head` wrote, a `.safetensors` file, or `hf-hub:user/repo[@revision]`.
        cache_dir: where the Hub client keeps its files, its own default if None.

    Returns:
        The head, a `DenoiserHead` or `PositionProjection`, in evaluation mode, float32 on the CPU; its `source` says
        where its weights come from.

    Raises:
        FileNotFoundError: if there is no head at `source`, or it is neither cached nor to be had from the Hub.
        OSError: if the Hub refuses or fails; the class is the Hub client's.
        ValueError: if the file is damaged, its keys or shapes are not a head's, or its values are not finite.
    """
    if hub.is_source(source):
        return _pull_head(str(source), cache_dir)
    path = Path(source)
    if not path.is_dir():
        return _read_head(path, {}, str(source))
    config = _read_config(path / CONFIG_NAME)
    _refuse_model(config, f"local-dir:{path}")
    return _read_head(path / WEIGHTS_NAME, config, str(source))


def _pull_head(source: str, cache_dir: str | Path | None) -> Head:
    repo, revision = hub.split_source(source)
    path = hub.fetch(repo, CONFIG_NAME, revision=revision, cache_dir=cache_dir)
    commit = hub.commit_of(path)
    place = f"{hub.HUB_PREFIX}{repo}@{commit}"
    with refused(place):
        config = _read_config(path)
    _refuse_model(config, source)
    path = hub.fetch(repo, WEIGHTS_NAME, revision=commit, cache_dir=cache_dir)
    with refused(place):
        return _read_head(path, config, source, commit)


@contextmanager
def refused(source: str | Path) -> Iterator[None]:
    """Name the source in a ValueError that refuses what it holds, and the way out."""
    try:
        yield
    except ValueError as error:
        if hub.is_source(source):
            text = f"{source} is refused: {error}. Name another revision or repository, or ask its owner"
        else:
            text = f"{source} is refused: {error}. Save it again, or name another"
        raise ValueError(text) from error


def save_head(
    head: Any,
    folder: str | Path,
    *,
    base: str | None = None,
    stride: int | None = None,
    base_sha256: str | None = None,
) -> Path:
    """Write a head to a folder (`config.json`, `model.safetensors`) that `load_head` reads back bit for bit.

    The same head gives the same bytes. Each file appears whole or not at all, the configuration last.
    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the base with this head.

    Args:
        head: a `DenoiserHead` or `PositionProjection`, or a denoised model, which gives its head, its backbone's name
            and its stride.
        folder: made if it does not exist.
        base: timm name of the backbone that the head was trained on, "arch.tag"; a head alone needs it, and so does a
            model of torch.hub or transformers.
        stride: distance of two patches in pixels that the head was trained at; by default the model's, for a head
            alone what its `source` says, or the patch size.
        base_sha256: SHA-256 of the backbone's file of weights that the head was trained on; by default what the head's
            `source` says, or of the file that timm loads, if that is known; "" to record none. `create_model` warns
            where it meets another.

    Returns:
        The folder.

    Raises:
        TypeError: if `head` is neither a head nor a denoised model, or could not be read again: it has other tensors
            than a new one of its shape (LoRA that is not merged, pruned weights), or they have no values.
        ValueError: if a head alone, or a model that is not timm's, gets no `base`, timm knows no ViT `base`, or values
            of the head are not finite.
        OSError: if the folder cannot be written; what it held before stays.
    """
    module = uncompiled(head)
    is_alone = isinstance(module, Head)
    if not is_alone:
        base, stride, module = _parts_of(module, base, stride)
    if base is None:
        raise ValueError("name the backbone that the head belongs to: base='arch.tag', a name of timm")
    source = module.source
    if source is not None and source.base == full_name(backbone_of(base)):
        stride = stride or (source.stride if is_alone else None)
        base_sha256 = source.base_sha256 if base_sha256 is None else base_sha256
    with torch.device("meta"):
        twin = new_head(module.dim, module.config)
    grid = module.config.get("grid_size")
    metadata = {} if grid is None else {"grid_size": json.dumps(grid)}  # one entry: several come in any order
    return write_folder(Path(folder), module, twin, head_config(module, base, stride, base_sha256), metadata)


def _parts_of(model: Any, base: str | None, stride: int | None) -> tuple[str | None, int | None, Head]:
    """Give (base, stride, head) of a denoised model; a base and a stride that the caller names go first.

    Only models of timm know their base.
    """
    head = uncompiled(getattr(model, "denoiser", None))
    if not isinstance(head, Head):
        kind = type(model).__name__
        raise TypeError(
            f"save_head saves a DenoiserHead or a denoised model's, got {kind}; for a whole model use save_model"
        )
    if isinstance(model, Resident):
        return base, stride, head
    embed = model.patch_embed
    overlap = embed.stride[0] if isinstance(embed, OverlapPatchEmbed) else None
    return base or name_of(model), stride or overlap, head


def head_config(head: Head, base: str, stride: int | None = None, weights_sha256: str | None = None) -> dict[str, Any]:
    """Make a head's `config.json`: what it is, what it belongs to, and what timm needs to build both.

    Raises:
        ValueError: if timm knows no ViT `base`.
    """
    patch_size = plain_model(base).patch_embed.patch_size[0]
    base = full_name(backbone_of(base))
    arch, _, tag = base.partition(".")
    overlap = {} if stride in (None, patch_size) else {"stride": stride}
    return {
        **WRITTEN,
        "kind": "head",
        "base": base,
        "base_sha256": (base_sha256(base) if weights_sha256 is None else weights_sha256) or None,
        "dim": head.dim,
        **head.config,
        "patch_size": patch_size,
        "stride": stride or patch_size,
        "architecture": arch,
        "pretrained_cfg": {"tag": tag},
        "model_args": {"denoiser": head.config, **overlap},
    }


def base_sha256(base: str) -> str | None:
    """Give the SHA-256 of the weights that timm loads for a base, embedded or in the cache; None if it is not known."""
    return base_at_hand(base)[1]


def base_at_hand(base: str) -> tuple[Path | None, str | None]:
    """Give the file of weights that timm loads for a base, embedded or in the cache, and its SHA-256, if known."""
    variant = find_variant(base)
    if variant is not None and variant.backbone is not None:
        return weights_path(variant.backbone.file), variant.backbone.sha256
    repo, revision = hub.split_source(base_cfg(base).hf_hub_id or "")
    path = hub.cached(repo, WEIGHTS_NAME, revision) if repo else None
    return path, None if path is None else hub.recorded_sha256(path)


def new_head(dim: int, shape: Mapping[str, Any]) -> Head:
    """Make a head of so many channels that has a `config`; raise ValueError if there is none."""
    return PositionProjection(dim, **shape) if "rank" in shape else DenoiserHead(dim, **shape)


def head_from_state(state: dict[str, Tensor], config: Mapping[str, Any], source: str | Path) -> Head:
    """Build the head that a state dict describes.

    Args:
        state: tensors under the authors' keys, `pos_embed` and `denoiser.*`, or those of a `PositionProjection`.
        config: what else is known of the head, any of `grid_size`, `num_blocks`, `rank`, `dim`; the grid is square if
            it is not given.
        source: where the tensors came from, for error messages.

    Raises:
        ValueError: if keys, shapes or values are not a head's, or not those of `config`.
    """
    positions = state.get("pos_embed")
    if "patch_embed.proj.weight" in state:
        raise ValueError(f"{source} is no denoiser head but a whole model; name a head's file or folder")
    if state.keys() == PROJECTION and all(state[key].ndim == n for key, n in (("mean", 1), ("basis", 2))):
        check_finite(state, source)
        return _filled({"rank": state["basis"].shape[1]}, len(state["mean"]), state, config, source)
    if positions is None or positions.ndim != 3 or not any(key.startswith("denoiser.") for key in state):
        raise ValueError(f"{source} is no denoiser head: it needs 'pos_embed' (1, h * w, dim) and 'denoiser.*'")
    check_finite(state, source)
    length, dim = positions.shape[1:]
    blocks = {int(match[1]) for key in state if (match := re.match(r"denoiser\.(\d+)\.", key))}
    grid_size = as_grid(config["grid_size"]) if config.get("grid_size") else (math.isqrt(length), math.isqrt(length))
    if grid_size[0] * grid_size[1] != length:
        raise ValueError(
            f"{source}: 'pos_embed' has {length} positions, which do not fill a {grid_size[0]} x {grid_size[1]} grid; "
            "the file needs the metadata entry grid_size, or a config.json beside it (see save_head)"
        )
    return _filled({"grid_size": grid_size, "num_blocks": max(len(blocks), 1)}, dim, state, config, source)


def _filled(
    shape: Mapping[str, Any], dim: int, state: dict[str, Tensor], config: Mapping[str, Any], source: str | Path
) -> Head:
    """Make a head of a shape and fill it; raise ValueError if the tensors, or what is known of it, say otherwise."""
    try:
        with torch.device("meta"):  # a small file may describe a large head
            head = new_head(dim, shape)
        head.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{source} is no denoiser head: {error}") from error
    for key, value in {"dim": dim, **shape}.items():
        if key != "grid_size" and config.get(key, value) != value:
            raise ValueError(f"{source} holds a head of {key} {value}, its configuration says {config[key]!r}")
    return head.eval()


def _read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a head, or of a model, and check it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {path.parent} is no complete head folder (see save_head)")
    config = read_json(path)
    check_schema(path, config)
    for key, what in (("base", "the name of a timm model"), ("base_sha256", "64 hexadecimal digits, or null")):
        if not isinstance(config.get(key) or "", str):
            raise ValueError(f"{path}: {key} must be {what}, got {config[key]!r}")
    if not isinstance(config.get("stride") or 1, int):
        raise ValueError(f"{path}: stride must be a whole number of pixels, or null, got {config['stride']!r}")
    return config


def _refuse_model(config: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if a configuration is a model's; `name` is what timm calls the model."""
    if not is_head_config(config):
        raise ValueError(f"{name} is a whole model, not a head; use timm.create_model({name!r}, pretrained=True)")


def _read_head(path: Path, config: Mapping[str, Any], place: str, commit: str | None = None) -> Head:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; a head is a folder, a .safetensors file or hf-hub:user/repo")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file; convert_checkpoint makes one of an authors' .pth")
    metadata = read_metadata(path)
    if "grid_size" in metadata:
        grid_size = _parse_grid(path, metadata["grid_size"])
        if config.get("grid_size", grid_size) != grid_size:
            raise ValueError(
                f"{path} has grid_size {grid_size}, its configuration {config['grid_size']}: they do not belong "
                "together; save the head again"
            )
        config = {**config, "grid_size": grid_size}
    head = head_from_state({key: value.float() for key, value in read_tensors(path).items()}, config, path)
    known = (config.get(key) for key in ("base", "base_sha256", "stride"))
    head.source = HeadSource(place, commit, sha256_of(path), *known)
    return head


def _parse_grid(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: its metadata entry grid_size must be JSON, got {text[:40]!r}; save the head again"
        ) from error
