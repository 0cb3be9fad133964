"""Heads as files: in folders and in repositories of the Hub."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._util.files import read_json, replacing
from .._version import __version__
from ..head import DenoiserHead, as_grid
from ..hub import client as hub
from ..hub.client import CONFIG_NAME, HUB_PREFIX, WEIGHTS_NAME
from ..names import base_sha256, full_name, plain_model
from .tensors import check_finite, is_head

COMPILED = "_orig_mod."  # what torch.compile puts before the names of parameters
SCHEMA = 1  # of the config.json that this version writes
WRITTEN = {"schema": SCHEMA, "library": "dvt-timm", "version": __version__}  # what every config.json begins with


def load_head(source: str | Path, *, cache_dir: str | Path | None = None) -> DenoiserHead:
    """Load a denoiser head.

    Args:
        source: a folder written by `save_head`, a `.safetensors` file, or `hf-hub:user/repo[@revision]`.
        cache_dir: where the Hub client keeps its files, its own default if None.

    Returns:
        The head in evaluation mode, float32 on the CPU.

    Raises:
        FileNotFoundError: if there is nothing at `source`, or it is neither cached nor to be had from the Hub.
        OSError: if the Hub refuses or fails; the class is the Hub client's.
        ValueError: if the file is damaged, its keys or shapes are not a head's, or its values are not finite.
    """
    return read_head(source, cache_dir)[0]


def read_head(source: str | Path, cache_dir: str | Path | None = None) -> tuple[DenoiserHead, dict[str, Any]]:
    """As `load_head`, with the head's configuration, which is empty for a lone file."""
    if str(source).startswith(HUB_PREFIX):
        return _pull_head(*hub.split_source(str(source)), cache_dir)
    path = Path(source)
    if path.is_dir():
        config = _read_config(path / CONFIG_NAME)
        _refuse_model(config, f"local-dir:{path}")
        return _read_head(path / WEIGHTS_NAME, config), config
    return _read_head(path, {}), {}


def _pull_head(repo: str, revision: str | None, cache_dir: str | Path | None) -> tuple[DenoiserHead, dict[str, Any]]:
    path = hub.fetch(repo, CONFIG_NAME, revision=revision, cache_dir=cache_dir)
    commit = hub.commit_of(path)
    with refused(f"{HUB_PREFIX}{repo}@{commit}"):
        config = _read_config(path)
    _refuse_model(config, f"{HUB_PREFIX}{repo}" + (f"@{revision}" if revision else ""))
    path = hub.fetch(repo, WEIGHTS_NAME, revision=commit, cache_dir=cache_dir)
    with refused(f"{HUB_PREFIX}{repo}@{commit}"):
        return _read_head(path, config), config


@contextmanager
def refused(source: str) -> Iterator[None]:
    """Name the repository where what it holds is refused: the paths in the cache do so badly."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{source} is refused: {error}. Name another revision or repository, or ask its owner"
        ) from error


def save_head(
    head: DenoiserHead,
    folder: str | Path,
    *,
    base: str,
    stride: int | None = None,
    base_sha256: str | None = None,
) -> Path:
    """Write a head to a folder (`config.json`, `model.safetensors`) that `load_head` reads back bit for bit.

    The same head gives the same bytes. Each file appears whole or not at all, the configuration last.
    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the base with this head.

    Args:
        head: the denoiser.
        folder: made if it does not exist.
        base: timm name of the backbone it was trained on, "arch.tag".
        stride: distance of two patches in pixels that it was trained at, None for the patch size.
        base_sha256: of the file of weights that it was trained on; those that timm loads by default. `create_model`
            warns where it meets others.

    Returns:
        The folder.

    Raises:
        TypeError: if `head` is no `DenoiserHead`.
        ValueError: if timm knows no ViT `base`, or values of the head are not finite.
        OSError: if the folder cannot be written; what it held before stays.
    """
    head = uncompiled(head)
    if not isinstance(head, DenoiserHead):
        raise TypeError(f"save_head saves a DenoiserHead, got {type(head).__name__}; for a whole model use save_model")
    check_finite(head.state_dict(), "the head")
    metadata = {"grid_size": json.dumps(head.config["grid_size"])}  # one entry: several come in any order
    return write_folder(Path(folder), head, head_config(head, base, stride, base_sha256), metadata)


def uncompiled(module: Any) -> Any:
    """The module inside what torch.compile makes of it."""
    return getattr(module, COMPILED[:-1], module)


def head_config(
    head: DenoiserHead, base: str, stride: int | None = None, weights_sha256: str | None = None
) -> dict[str, Any]:
    """What `config.json` says of a head: what it is, what it belongs to, and what timm needs to build both.

    Raises:
        ValueError: if timm knows no ViT `base`.
    """
    patch_size = plain_model(base).patch_embed.patch_size[0]
    base = full_name(base)
    arch, _, tag = base.partition(".")
    overlap = {} if stride in (None, patch_size) else {"stride": stride}
    return {
        **WRITTEN,
        "kind": "head",
        "base": base,
        "base_sha256": weights_sha256 or base_sha256(base),
        "dim": head.dim,
        **head.config,
        "patch_size": patch_size,
        "stride": stride or patch_size,
        "architecture": arch,
        "pretrained_cfg": {"tag": tag},
        "model_args": {"denoiser": head.config, **overlap},
    }


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
    if positions is None or positions.ndim != 3 or not is_head(state):
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
    try:
        head = DenoiserHead(dim, grid_size, max(len(blocks), 1))
        head.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{source} is no denoiser head: {error}") from error
    for key, value in (("dim", head.dim), ("num_blocks", head.num_blocks)):
        if config.get(key, value) != value:
            raise ValueError(f"{source} holds a head of {key} {value}, its configuration says {config[key]!r}")
    return head.eval()


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration of a head, or of a model, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {path.parent} is no complete head folder (see save_head)")
    config = read_json(path)
    check_schema(path, config)
    if not isinstance(config.get("base", ""), str):
        raise ValueError(f"{path}: base must be the name of a timm model, got {config['base']!r}")
    return config


def _refuse_model(config: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if a configuration is a model's; `name` is what timm calls it."""
    if not is_head_config(config):
        raise ValueError(f"{name} is a whole model, not a head; use timm.create_model({name!r}, pretrained=True)")


def is_head_config(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is a head's; timm's own, of models, name the architecture and no kind."""
    return "architecture" not in config or config.get("kind") == "head"


def check_schema(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError if a newer version of this package wrote a configuration."""
    schema = config.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        by = f" (dvt-timm {config['version']})" if "version" in config else ""
        raise ValueError(f"{path} has schema {schema!r}{by}, this version reads {SCHEMA}; update dvt-timm")


def _read_head(path: Path, config: Mapping[str, Any]) -> DenoiserHead:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; a head is a folder, a .safetensors file or hf-hub:user/repo")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file")
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if "grid_size" in metadata:
        grid_size = _parse_grid(path, metadata["grid_size"])
        if config.get("grid_size", grid_size) != grid_size:
            raise ValueError(
                f"{path} has grid_size {grid_size}, its configuration {config['grid_size']}: they do not belong "
                "together; save the head again"
            )
        config = {**config, "grid_size": grid_size}
    return head_from_state({key: value.float() for key, value in read_tensors(path).items()}, config, path)


def _parse_grid(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata entry grid_size is no JSON, {text[:40]!r}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; ValueError if it is damaged."""
    with _opened(path):
        return load_file(path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def write_folder(folder: Path, module: nn.Module, config: dict[str, Any], metadata: dict[str, str]) -> Path:
    """Write a module and its configuration, that last; the folder. OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key.replace(COMPILED, ""): value.contiguous() for key, value in module.state_dict().items()}
    with replacing(folder / WEIGHTS_NAME) as path:
        try:
            save_file(state, path, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"cannot write {folder / WEIGHTS_NAME}: {error}") from error
    write_config(config, folder)
    return folder


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Write `config.json`."""
    with replacing(folder / CONFIG_NAME) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
