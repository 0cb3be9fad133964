"""The package as a whole: what only one of its modules may do."""

from pathlib import Path

from helpers import ROOT

PACKAGE = ROOT / "dvt_timm"


def mentioning(text: str) -> list[Path]:
    """The modules of the package whose code has the text."""
    found = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if text in path.read_text())
    return sorted(found)


def test_only_one_module_touches_the_registry_and_one_opens_pickles() -> None:
    assert mentioning("register_model") == [Path("registry.py")]
    assert mentioning("safe_globals") == [Path("checkpoints/tensors.py")]
    assert mentioning("weights_only=False") == []
