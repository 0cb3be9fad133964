"""Who pushes, and what."""

from typing import Any

import pytest
import timm
from helpers import TINY, random_head
from hub_server import Hub

import dvt_timm


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture
def head(hub: Hub) -> dvt_timm.DenoiserHead:
    hub.absent.add(f"timm/{TINY}")  # where no test serves it
    return random_head(64, (5, 4))


@pytest.fixture
def model(base: Any, head: Any) -> Any:
    return timm.create_model(TINY, pretrained=True, denoiser=head)
