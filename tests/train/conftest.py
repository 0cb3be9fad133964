"""Fixtures of the tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from training import planted, store_of

from dvt_timm.offline import FeatureStore


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return store_of(tmp_path / "store", planted(12))


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one precision for the whole process: a test of another one starts and ends without."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
