"""The folder of a saved head or model: config.json and model.safetensors, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._util.files import CONFIG_NAME, WEIGHTS_NAME, write_json
from .._util.modules import COMPILED
from .._util.tensors import save_tensors


def write_folder(folder: Path, module: nn.Module, config: Mapping[str, Any], metadata: dict[str, str]) -> Path:
    """Write a module, then its configuration, and give the folder; raise OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key.replace(COMPILED, ""): value.contiguous() for key, value in module.state_dict().items()}
    save_tensors(state, folder / WEIGHTS_NAME, metadata)
    write_json(folder / CONFIG_NAME, config)
    return folder
