"""Finds out what a file is, reads it and checks it; no other module opens pickles of others.

The authors' denoiser file is `{"denoiser": state_dict, "optimizer": ..., "step": int}`, their distilled one `{"model":
state_dict, ...}` with timm's own keys behind the prefix `model.`. The optimizer's state holds a numpy float64 learning
rate, the only thing that is admitted besides tensors and plain Python values.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .._util.files import CONFIG_NAME, PICKLED_WEIGHTS, WEIGHTS_NAME, read_json
from ..hub import client as hub

try:
    from numpy._core.multiarray import scalar
except ImportError:  # numpy 1
    from numpy.core.multiarray import scalar  # type: ignore[no-redef]

Kind: TypeAlias = Literal["head", "model", "denoised", "unknown"]

DAMAGED = "{path} is damaged or no safetensors file ({error}); save it again, or take another copy"
SCHEMA = 1  # of the config.json that this version writes
# what torch.load raises on files that it cannot read
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, struct.error)
_FLOAT64_SCALAR: list[Any] = [
    (scalar, "numpy._core.multiarray.scalar"),
    (scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


def kind_of(source: str | Path | Iterable[str], cache_dir: str | Path | None = None) -> Kind:
    """Say what a source holds: a head, a plain model, or a model with its head ("denoised").

    Args:
        source: a folder of `save_head`, of `save_model` or of timm, a file of weights, the keys of a state dict, or
            `hf-hub:user/repo[@revision]`.
        cache_dir: of the Hub client.

    Returns:
        The kind; "unknown" for what is none of these or cannot be read here: timm knows more formats, and says what is
        wrong.

    Raises:
        OSError: if a repository is not to be had.
        ValueError: if its configuration, or a folder's, is no JSON object.
    """
    if not isinstance(source, str | Path):
        return _kind_of_keys(source)
    config = read_config(source, cache_dir)
    if config is not None and is_head_config(config):
        return "head"
    kind: Kind = "unknown" if hub.is_source(source) else _kind_of_keys(_keys(Path(source)))
    if kind != "unknown" or config is None:
        return kind
    return "denoised" if "denoiser" in config.get("model_args", {}) else "model"


def read_config(source: str | Path, cache_dir: str | Path | None = None) -> dict[str, Any] | None:
    """Read the configuration in a folder or `hf-hub:user/repo`, None if there is none.

    Raises:
        OSError: if a repository is not to be had.
        ValueError: if it is no JSON object.
    """
    if hub.is_source(source):
        repo, revision = hub.split_source(str(source))
        path = hub.fetch(repo, CONFIG_NAME, revision=revision, cache_dir=cache_dir)
    else:
        path = Path(source, CONFIG_NAME)
    return read_json(path) if path.is_file() else None


def is_head_config(config: Mapping[str, Any]) -> bool:
    """Say whether a `config.json` is a head's; timm's own, of models, name the architecture and no kind."""
    return "architecture" not in config or config.get("kind") == "head"


def check_schema(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError if a newer version of this package wrote a configuration."""
    schema = config.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        by = f" (dvt-timm {config['version']})" if "version" in config else ""
        raise ValueError(f"{path} has schema {schema!r}{by}, this version reads {SCHEMA}; update dvt-timm")


def check_finite(state: dict[str, Tensor], source: object) -> dict[str, Tensor]:
    """Give the tensors back; raise ValueError if a value of theirs is not finite."""
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"{source}: values of {', '.join(bad)} are not finite; the file is damaged or badly trained")
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file; raise ValueError if it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(DAMAGED.format(path=path, error=error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a safetensors file says of itself; raise ValueError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(DAMAGED.format(path=path, error=error)) from error


def read_pickle(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of one of the authors' files, on the CPU, under the keys of `DenoiserHead` or of timm.

    Args:
        path: a `.pth` file of a denoiser or of a distilled model.

    Raises:
        ValueError: if the file is none of theirs, is damaged, or would run code.
        OSError: if it cannot be opened.
    """
    try:
        with torch.serialization.safe_globals(_FLOAT64_SCALAR):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, OSError) as error:
        if getattr(error, "filename", None) is not None:
            raise
        raise ValueError(f"{path} cannot be read as a file of tensors: {reason_of(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name")
    for kind, prefix in (("denoiser", ""), ("model", "model.")):
        state = content.get(kind)
        if isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    raise ValueError(f"{path} holds neither 'denoiser' nor 'model' tensors, only {sorted(map(str, content))}")


def _kind_of_keys(keys: Iterable[str]) -> Kind:
    names = set(keys)
    if any(key.endswith("denoiser.pos_embed") for key in names):
        return "denoised"
    if any(key.endswith("patch_embed.proj.weight") for key in names):
        return "model"
    return "head" if any(key.startswith("denoiser.") for key in names) else "unknown"


def _keys(path: Path) -> set[str]:
    """Read the names of the tensors in a file, or in a folder's; none if it cannot be read."""
    if path.is_dir():
        candidates = [path / name for name in (WEIGHTS_NAME, PICKLED_WEIGHTS)]
        path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    if not path.is_file():
        return set()
    if path.suffix != ".safetensors":
        return _pickled_keys(path)
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()


def _pickled_keys(path: Path) -> set[str]:
    """Read the names in a pickle of PyTorch, also those within `{"state_dict": ...}`; none if it cannot be read."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # in what timm's train.py writes
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (*UNREADABLE, OSError):
        return set()
    states = [content, *content.values()] if isinstance(content, dict) else []
    return {str(key) for state in states if isinstance(state, dict) for key in state}


def reason_of(error: Exception) -> str:
    """Say why torch cannot read a file, without its advice to read it unsafely."""
    if isinstance(error, OSError | EOFError):
        return f"it is cut off or damaged ({str(error) or type(error).__name__}); take another copy"
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds a {foreign[1]}, and nothing but tensors, plain values and numpy's float64 is read"
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
