"""The commands, as several files of tests run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import photos, serve_base
from hub_server import Hub

from dvt_timm.cli import main as cli


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`dvt-timm features` at 56 pixels, into tmp_path/out."""
    monkeypatch.chdir(tmp_path)
    return lambda *args, size="56": cli.main(["features", *map(str, args), "--out", "out", "--size", size])


@pytest.fixture
def command(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`dvt-timm ...` in a folder of its own with some photos and the tiny model on the Hub."""
    serve_base(hub)
    photos(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda *arguments: cli.main(arguments)
