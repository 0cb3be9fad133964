"""The folder of a saved head or model: config.json and model.safetensors, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from .._util.files import CONFIG_NAME, WEIGHTS_NAME, replacing, write_json
from .._util.modules import COMPILED


def write_folder(folder: Path, module: nn.Module, config: Mapping[str, Any], metadata: dict[str, str]) -> Path:
    """Write a module, then its configuration, and give the folder; raise OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key.replace(COMPILED, ""): value.contiguous() for key, value in module.state_dict().items()}
    save_tensors(state, folder / WEIGHTS_NAME, metadata)
    write_json(folder / CONFIG_NAME, config)
    return folder


def save_tensors(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; raise OSError if it cannot be written."""
    with replacing(target) as path:
        try:
            save_file(tensors, path, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"cannot write {target}: {error}") from error
