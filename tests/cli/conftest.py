"""The commands, as several files of tests run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import TINY, photos, random_head, serve_base
from hub_server import Hub

from dvt_timm.cli import main as cli
from dvt_timm.cli import models


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`dvt-timm features` at 56 pixels, into tmp_path/out."""
    monkeypatch.chdir(tmp_path)
    return lambda *args, size="56": cli.main(["features", "--out", "out", "--size", size, *map(str, args)])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small denoised model, in the place of the one that `dvt-timm features` would load."""
    torch.manual_seed(3)
    model = timm.create_model(TINY, denoiser=random_head(64), dynamic_img_size=True).eval()
    monkeypatch.setattr(models, "load_model", lambda *args: model)
    return model


@pytest.fixture
def command(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`dvt-timm ...` in a folder of its own with some photos and the tiny model on the Hub."""
    serve_base(hub)
    photos(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda *arguments: cli.main(arguments)
