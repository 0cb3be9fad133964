"""Tensors in a file: whole or not at all."""

from pathlib import Path

import pytest
import torch
from helpers import full_disk
from safetensors.torch import load_file

from dvt_timm._util.tensors import save_tensors


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_tensors({"a": torch.ones(1)}, file, {})
    with full_disk(100), pytest.raises(OSError, match=r"cannot write .*a\.safetensors: "):
        save_tensors({"a": torch.zeros(1000)}, file, {})
    assert load_file(file)["a"].tolist() == [1]
    assert list(tmp_path.iterdir()) == [file]
