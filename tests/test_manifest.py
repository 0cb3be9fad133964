"""The published names: every fact of the manifest is read, and true of timm."""

import hashlib
import sys
from typing import Any

import pytest
from helpers import DEMO, ROOT
from timm.models import get_pretrained_cfg

from dvt_timm import manifest
from dvt_timm.manifest import (
    Embedded,
    Published,
    Variant,
    named_patch_size,
    published_variants,
    read_manifest,
    weights_path,
)


class Watched(dict[str, Any]):
    """A row that notes which of its facts are read."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def test_a_row_says_by_type_where_its_weights_are() -> None:
    kinds = {name: type(variant.weights) for name, variant in published_variants().items()}
    assert kinds[DEMO] is Embedded
    assert kinds["vit_base_patch14_dinov2.dvt"] is Published
    assert kinds["vit_giant_patch14_dinov2.dvt"] is type(None)
    assert [name for name, variant in published_variants().items() if variant.backbone] == [DEMO]


def test_nothing_is_in_a_row_that_the_package_does_not_read() -> None:
    for row in map(Watched, read_manifest()["variants"]):
        base = Watched(read_manifest()["bases"][row["base"]])
        manifest._variant(row, base)
        assert row.keys() <= row.read


def test_licenses_are_timms() -> None:
    """The manifest names them for `dvt-timm list`, which does not import timm."""
    for base, facts in read_manifest()["bases"].items():
        assert facts["license"] == get_pretrained_cfg(base).license, base


def test_the_demo_weights_are_the_files_of_the_manifest() -> None:
    demo = published_variants()[DEMO]
    for weights in (demo.weights, demo.backbone):
        data = weights_path(weights.file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (weights.size, weights.sha256)


@pytest.mark.parametrize(
    ("arch", "patch", "side"), [("vit_base_patch16_224", 16, 512), ("vit_small_patch14_reg4_dinov2", 14, 518)]
)
def test_heads_are_as_large_as_what_they_were_trained_at(arch: str, patch: int, side: int) -> None:
    variant = Variant(f"{arch}.dvt_x", f"{arch}.x")
    assert (variant.arch, variant.tag) == (arch, "dvt_x")
    assert named_patch_size(arch) == patch
    assert variant.input_size == (3, side, side)
    assert variant.grid_size == (side // patch, side // patch)


def test_an_architecture_that_does_not_name_its_patch_size() -> None:
    assert named_patch_size("test_vit") is None
    with pytest.raises(ValueError, match="test_vit does not name its patch size"):
        Variant("test_vit.dvt", "test_vit.r160_in1k").input_size  # noqa: B018


def test_code_that_is_run_in_a_clone_finds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, the clone's own folder hides an installed package."""
    monkeypatch.setitem(sys.modules, "dvt_timm.weights", None)  # not to be imported
    assert weights_path("manifest.json").samefile(ROOT / "weights/manifest.json")
