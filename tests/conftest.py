"""A Hub of the tests' own, named in the environment before `huggingface_hub` reads it; no other is ever asked."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

HUB = Hub()
os.environ["HF_ENDPOINT"] = HUB.url
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of this process and of those that it starts
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
    os.environ.pop(name, None)

import huggingface_hub
from helpers import Hurried, serve_base, serve_head
from huggingface_hub.utils import _http

import dvt_timm
from dvt_timm import names


@pytest.fixture(autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, empty, with a cache of the test's own; a request that it does not know fails the test."""
    HUB.reset()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub-cache")))
    for module in (_http, huggingface_hub.file_download):  # the client's waits between its attempts
        monkeypatch.setattr(module, "time", Hurried)
    yield HUB
    assert HUB.wrong == []


@pytest.fixture
def own_names() -> Iterator[None]:
    """Forget the names that a test registers."""
    before = dict(names._own)
    yield
    for name in names._own.keys() - before.keys():
        del names._own[name]


@pytest.fixture
def cache(hub: Hub) -> Path:
    """The folder of the client's cache."""
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


@pytest.fixture
def head(hub: Hub, tmp_path: Path) -> dvt_timm.DenoiserHead:
    """The repository me/head holds it."""
    return serve_head(hub, tmp_path / "head")


@pytest.fixture
def base(hub: Hub) -> Any:
    """The tiny ViT's weights lie where timm looks for them."""
    return serve_base(hub)
