"""The package as a whole: what only one of its modules may do, and where it finds its data."""

import sys
from pathlib import Path

import pytest
from helpers import ROOT

from dvt_timm.manifest import weights_path

PACKAGE = ROOT / "dvt_timm"


def mentioning(text: str) -> list[Path]:
    """The modules of the package whose code has the text."""
    found = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if text in path.read_text())
    return sorted(found)


def test_only_one_module_touches_the_registry_and_one_opens_pickles() -> None:
    assert mentioning("register_model") == [Path("registry.py")]
    assert mentioning("safe_globals") == [Path("checkpoints/tensors.py")]
    assert mentioning("weights_only=False") == []


def test_code_that_is_run_in_a_clone_finds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, the clone's own folder hides an installed package."""
    monkeypatch.setitem(sys.modules, "dvt_timm.weights", None)  # not to be imported
    assert weights_path("manifest.json").samefile(ROOT / "weights/manifest.json")
