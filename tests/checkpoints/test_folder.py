"""The folder of a saved head or model: each file whole or not at all, the configuration last."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dvt_timm.checkpoints import folder as module
from dvt_timm.checkpoints.folder import write_folder


def test_what_it_holds(tmp_path: Path) -> None:
    linear = nn.Linear(3, 2)
    linear.weight = nn.Parameter(torch.randn(3, 2).T)  # safetensors takes no such strides
    folder = write_folder(tmp_path / "new/head", torch.compile(linear), {"a": [1, None]}, {"format": "pt"})
    assert folder == tmp_path / "new/head"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text()) == {"a": [1, None]}
    state = load_file(folder / "model.safetensors")
    assert state.keys() == {"weight", "bias"}
    assert torch.equal(state["weight"], linear.weight)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_configuration_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        assert (tmp_path / "model.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, nn.Linear(3, 2), {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
