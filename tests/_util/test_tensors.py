"""Tensors in a file: whole or not at all."""

from pathlib import Path

import pytest
import torch
from helpers import full_disk
from safetensors import safe_open
from safetensors.torch import load_file

from dvt_timm._util.tensors import TensorFile, save_tensors


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_tensors({"a": torch.ones(1)}, file, {})
    with full_disk(100), pytest.raises(OSError, match=r"cannot write .*a\.safetensors: "):
        save_tensors({"a": torch.zeros(1000)}, file, {})
    assert load_file(file)["a"].tolist() == [1]
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_written_tensor_by_tensor(tmp_path: Path) -> None:
    """It is read by safetensors, whatever room is left in its header."""
    tensors = {
        "a": torch.randn(3, 4, 5),
        "b": torch.randn(2, 2).half(),
        "c": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "d": torch.zeros(0, 4),
    }
    for most in (4, 1000):
        file = TensorFile(tmp_path / "some.safetensors", most, {"made": 'by "us"'})
        for name, tensor in tensors.items():
            file.add(name, tensor)
        assert "a" in file
        assert "e" not in file
        file.finish()
        read = load_file(tmp_path / "some.safetensors")
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor)
            assert read[name].dtype == tensor.dtype
        with safe_open(tmp_path / "some.safetensors", "pt") as opened:
            assert opened.metadata() == {"made": 'by "us"'}


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "some.safetensors", 1, {})
    with full_disk(10_000), pytest.raises(OSError, match="File too large"):
        file.add("a", torch.zeros(100, 100))
    file.close()
