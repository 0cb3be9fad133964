"""Heads on disk: round trips, and files that are damaged, foreign or hostile."""

import copy
import hashlib
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import DEMO, full_disk, random_head
from safetensors.torch import load_file, save_file

import dvt_timm
from dvt_timm.head import HeadSource
from dvt_timm.names import find_variant

BASE = "vit_small_patch14_dinov2.lvd142m"


@pytest.mark.parametrize(("grid_size", "num_blocks"), [((5, 4), 1), ((4, 4), 2)])
def test_round_trip(tmp_path: Path, grid_size: tuple[int, int], num_blocks: int) -> None:
    head = dvt_timm.DenoiserHead(128, grid_size, num_blocks)
    assert dvt_timm.save_head(head, tmp_path / "a" / "head", base=BASE) == tmp_path / "a" / "head"
    config = json.loads((tmp_path / "a/head/config.json").read_text())
    assert config["base"] == BASE
    assert config["version"] == dvt_timm.__version__
    for source in (tmp_path / "a/head", tmp_path / "a/head/model.safetensors"):
        loaded = dvt_timm.load_head(source)
        assert loaded.config == head.config
        assert not loaded.training
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), head.state_dict().values(), strict=True)
        )
    files = sorted((tmp_path / "a/head").iterdir())
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in files}) == 1


def test_the_same_head_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [dvt_timm.save_head(random_head(), tmp_path / str(i), base=BASE) for i in range(8)]
    for name in ("config.json", "model.safetensors"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_many_writers_at_once(tmp_path: Path) -> None:
    head = random_head()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: dvt_timm.save_head(head, tmp_path, base=BASE), range(16)))
    assert torch.equal(dvt_timm.load_head(tmp_path).pos_embed, head.pos_embed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    dvt_timm.save_head(random_head().half(), tmp_path, base=BASE)
    assert dvt_timm.load_head(tmp_path).pos_embed.dtype == torch.float32


def test_a_full_disk_leaves_the_old_head(tmp_path: Path) -> None:
    """The kernel refuses to write beyond a size, as it does on a full disk."""
    old = random_head(seed=1)
    dvt_timm.save_head(old, tmp_path, base=BASE)
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*model\.safetensors: .*too large"):
        dvt_timm.save_head(random_head(seed=2), tmp_path, base=BASE)
    assert torch.equal(dvt_timm.load_head(tmp_path).pos_embed, old.pos_embed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def random_head_of_two_blocks() -> dvt_timm.DenoiserHead:
    return dvt_timm.DenoiserHead(128, (5, 4), 2)


def damage(folder: Path, kind: str) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif kind == "garbage":
        file.write_bytes(b"\xff" * 64)
    elif kind == "nan":
        state["denoiser.mlp.fc1.weight"][0, 0] = float("nan")
    elif kind == "inf":
        state["pos_embed"][0, 0, 0] = float("inf")
    elif kind == "missing":
        del state["denoiser.norm2.bias"]
    elif kind == "extra":
        state["denoiser.extra"] = torch.zeros(1)
    elif kind == "shape":
        state["denoiser.attn.proj.weight"] = torch.zeros(128, 64)
    elif kind == "narrow":
        state["pos_embed"] = torch.zeros(1, 20, 100)
    elif kind == "blocks":
        state = random_head_of_two_blocks().state_dict()
    elif kind == "grid":
        state["pos_embed"] = torch.zeros(1, 21, 128)
    if kind not in ("truncated", "garbage"):
        save_file(state, file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged"),
        ("garbage", "damaged"),
        ("nan", r"mlp\.fc1\.weight are not finite"),
        ("inf", "pos_embed are not finite"),
        ("missing", r"no denoiser head.*norm2\.bias"),
        ("extra", r"no denoiser head.*denoiser\.extra"),
        ("shape", r"no denoiser head.*attn\.proj"),
        ("narrow", "no denoiser head.*multiple of 64"),
        ("blocks", "num_blocks 2, its configuration says 1"),
        ("grid", "21 positions.*5 x 4"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    dvt_timm.save_head(random_head(), tmp_path, base=BASE)
    damage(tmp_path, kind)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        dvt_timm.load_head(tmp_path)


def test_incomplete_folders_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="hf-hub:user/repo"):
        dvt_timm.load_head(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        dvt_timm.load_head(tmp_path)
    (tmp_path / "head.pth").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"not a \.safetensors file"):
        dvt_timm.load_head(tmp_path / "head.pth")
    dvt_timm.save_head(random_head(), tmp_path, base=BASE)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "schema": 99}))
    with pytest.raises(ValueError, match=r"schema 99.*update dvt-timm"):
        dvt_timm.load_head(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1, 2]", "JSON object, got list"),
        ("{", "no JSON"),
        ('{"schema": "new"}', "schema 'new'.*update dvt-timm"),
        ('{"grid_size": [4, 5]}', r"\[5, 4\], its configuration \[4, 5\].*do not belong together"),
        ('{"dim": 192}', "dim 128, its configuration says 192"),
        ('{"stride": "7"}', "stride must be a whole number of pixels, or null, got '7'"),
        ('{"architecture": "vit_small_patch14_dinov2"}', "whole model.*local-dir:"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, config: str, message: str) -> None:
    dvt_timm.save_head(random_head(), tmp_path, base=BASE)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        dvt_timm.load_head(tmp_path)


@pytest.mark.parametrize("grid_size", ["44", [4.5, 5], [0, 20], [20]])
def test_a_grid_of_the_configuration_that_is_none(tmp_path: Path, grid_size: Any) -> None:
    save_file(random_head().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"grid_size": grid_size}))
    with pytest.raises(ValueError, match="grid_size must be"):
        dvt_timm.load_head(tmp_path)


def test_heads_and_models_are_not_mixed_up(tmp_path: Path) -> None:
    model = timm.create_model(DEMO, depth=1)
    with pytest.raises(TypeError, match="for a whole model use save_model"):
        dvt_timm.save_head(timm.create_model(BASE, depth=1), tmp_path, base=BASE)
    with pytest.raises(TypeError, match="use save_head"):
        dvt_timm.save_model(model.denoiser, tmp_path)
    with pytest.raises(TypeError, match=r"ViT that timm\.create_model built"):
        dvt_timm.save_model(timm.models.VisionTransformer(depth=1, embed_dim=64, num_heads=1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_grid_that_only_the_metadata_knows(tmp_path: Path) -> None:
    state = random_head(grid_size=(5, 4)).state_dict()
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="metadata entry grid_size"):
        dvt_timm.load_head(tmp_path / "head.safetensors")


def test_a_base_of_ones_own_name_is_written_as_its_backbone(tmp_path: Path, own_names: None) -> None:
    """No other process knows the name."""
    name = "vit_tiny_patch16_224.dvt_saved"
    dvt_timm.save_head(random_head(192), tmp_path / "first", base="vit_tiny_patch16_224.augreg_in21k")
    dvt_timm.register_variant(name, base="vit_tiny_patch16_224.augreg_in21k", head=tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dvt_timm.save_head(random_head(192), tmp_path / "head", base=name)
    config = json.loads((tmp_path / "head/config.json").read_text())
    assert config["base"] == "vit_tiny_patch16_224.augreg_in21k"
    assert config["pretrained_cfg"] == {"tag": "augreg_in21k"}


def test_the_head_of_a_model(tmp_path: Path) -> None:
    """Base and stride are the model's."""
    model = timm.create_model(BASE, depth=1, denoiser=random_head(384), stride=7)
    dvt_timm.save_head(torch.compile(model), tmp_path / "of-a-model")
    dvt_timm.save_head(model.denoiser, tmp_path / "alone", base=BASE, stride=7)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "of-a-model" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
    with pytest.raises(ValueError, match=r"base='arch\.tag'"):
        dvt_timm.save_head(model.denoiser, tmp_path / "nameless")


class TestSource:
    def test_of_a_folder_and_of_a_file(self, tmp_path: Path) -> None:
        dvt_timm.save_head(random_head(), tmp_path, base=BASE, base_sha256="0" * 64)
        file = tmp_path / "model.safetensors"
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        head = dvt_timm.load_head(tmp_path)
        assert head.source == HeadSource(str(tmp_path), None, sha256, BASE, "0" * 64, 14)
        assert dvt_timm.load_head(str(file)).source == HeadSource(str(file), None, sha256)
        assert copy.deepcopy(head).source == head.source
        assert repr(head) == f"DenoiserHead(dim=128, grid_size=(5, 4), num_blocks=1, source={str(tmp_path)!r})"

    def test_a_head_keeps_what_it_was_trained_at(self, tmp_path: Path) -> None:
        dvt_timm.save_head(random_head(384), tmp_path / "first", base=BASE, stride=7, base_sha256="0" * 64)
        head = dvt_timm.load_head(tmp_path / "first")
        dvt_timm.save_head(head, tmp_path / "again", base=BASE)
        assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "first/config.json").read_bytes()
        model = timm.create_model(BASE, depth=1, denoiser=head)  # at the patches' own distance
        config = json.loads((dvt_timm.save_head(model, tmp_path / "model") / "config.json").read_text())
        assert (config["stride"], config["base_sha256"]) == (14, "0" * 64)
        dvt_timm.save_head(head, tmp_path / "other", base="vit_small_patch16_224.dino")
        config = json.loads((tmp_path / "other/config.json").read_text())
        assert (config["stride"], config["base_sha256"]) == (16, None)

    def test_of_random_weights(self) -> None:
        assert random_head().source is None
        assert repr(random_head()) == "DenoiserHead(dim=128, grid_size=(5, 4), num_blocks=1)"

    def test_of_the_embedded_head(self) -> None:
        source = timm.create_model(DEMO, pretrained=True).denoiser.source
        assert source.base == DEMO
        assert source.sha256 == find_variant(DEMO).weights.sha256
        assert timm.create_model(DEMO).denoiser.source is None

    def test_of_a_repository(self, hub: Any, head: Any) -> None:
        pulled = dvt_timm.load_head("hf-hub:me/head")
        assert pulled.source.place == "hf-hub:me/head"
        assert pulled.source.commit == hub.repos["me/head"].branches["main"]
        assert pulled.source.base == "test_vit.r160_in1k"

    def test_of_a_head_in_a_models_file(self, tmp_path: Path) -> None:
        model = timm.create_model(BASE, depth=1, denoiser=random_head(384, (4, 4)))
        dvt_timm.save_model(model, tmp_path)
        assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).denoiser.source == HeadSource(
            str(tmp_path), base=BASE
        )
        overlay = {"file": str(tmp_path / "model.safetensors")}
        loaded = timm.create_model(f"{DEMO}", pretrained=True, depth=1, pretrained_cfg_overlay=overlay)
        assert loaded.denoiser.source.place == overlay["file"]


def test_a_small_file_takes_little_memory_before_it_is_refused(tmp_path: Path) -> None:
    dim = 256_000  # a head of 3 TB
    tensors = {"pos_embed": torch.zeros(1, 1, dim), "denoiser.0.norm1.weight": torch.zeros(dim)}
    save_file(tensors, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"is no denoiser head: (?s:.*)Missing key"):
        dvt_timm.load_head(tmp_path / "wide.safetensors")
