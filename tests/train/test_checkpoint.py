"""Checkpoints that are damaged, or would run code, are refused; a new one takes the place of the old one whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, full_disk
from training import SHORT

from dvt_timm._util.errors import RunError
from dvt_timm.offline import FeatureStore
from dvt_timm.train import train_denoiser
from dvt_timm.train.checkpoint import read_checkpoint, write_checkpoint
from dvt_timm.train.loop import CHECKPOINT


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_damaged_checkpoint(content: bytes, store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    (tmp_path / "run" / CHECKPOINT).write_bytes(content)
    with pytest.raises(RunError, match=r"checkpoint.pt is damaged .*remove it to begin anew"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT)


def test_a_checkpoint_that_would_run_code(store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    torch.save({"step": Trap()}, tmp_path / "run" / CHECKPOINT)
    with pytest.raises(RunError, match="is damaged"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT)


class Trap:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert read_checkpoint(path) is None
    write_checkpoint(path, {"step": 1})
    with full_disk(100), pytest.raises(OSError, match=r"checkpoint.pt: "):
        write_checkpoint(path, {"step": 2, "module": torch.zeros(1000)})
    assert read_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
