"""The folder of a saved head or model: each file whole or not at all, the configuration last."""

import json
import math
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
    folder = write_folder(
        tmp_path / "new/head", torch.compile(linear), nn.Linear(3, 2), {"a": [1, None]}, {"format": "pt"}
    )
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
        write_folder(tmp_path, nn.Linear(3, 2), nn.Linear(3, 2), {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    message = "it has 0.weight and lacks 1.weight, 1.bias, 2.weight and 1 more; save a model as create_model builds it"
    with pytest.raises(TypeError, match=message):
        write_folder(tmp_path / "a", nn.Sequential(nn.Linear(2, 3)), deep, {}, {})
    with pytest.raises(TypeError, match=r"Linear: it is on the meta device, without values; load its weights first"):
        write_folder(tmp_path / "a", nn.Linear(3, 2, device="meta"), nn.Linear(3, 2), {}, {})
    broken = nn.Linear(3, 2)
    nn.init.constant_(broken.bias, math.inf)
    with pytest.raises(ValueError, match="the head: values of bias are not finite"):
        write_folder(tmp_path / "a", broken, nn.Linear(3, 2), {"kind": "head"}, {})
    assert list(tmp_path.iterdir()) == []


def test_weights_that_share_memory(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    flat = torch.randn(6)
    tied[0].bias, tied[1].bias = nn.Parameter(flat[:3]), nn.Parameter(flat[3:])
    write_folder(tmp_path, tied, nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), {}, {})
    state = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(state[key], value) for key, value in tied.state_dict().items())
