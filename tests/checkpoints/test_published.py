"""The authors' files from their repository, served as they publish them: loaded, converted once, converted by hand."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import GOLDEN_HEADS, TINY, full_disk, images, random_head, same_weights, serve_base
from hub_server import Hub
from safetensors.torch import load_file, save

import dvt_timm
from dvt_timm.checkpoints import published
from dvt_timm.manifest import Published
from dvt_timm.names import find_variant

SMALL, SMALL_BASE = "vit_small_patch14_dinov2.dvt_voc", "vit_small_patch14_dinov2.lvd142m"
DISTILLED, DISTILLED_BASE = "deit3_base_patch16_224.dvt_voc_distilled", "deit3_base_patch16_224.fb_in1k"


def as_published(path: Path, kind: str, state: dict[str, torch.Tensor]) -> bytes:
    """A file as the authors' training writes it, with the numpy scalar in its optimizer's state."""
    optimizer = {"param_groups": [{"lr": np.float64(1e-4)}]}
    torch.save({kind: state, "optimizer": optimizer, "step": 7}, path)
    return path.read_bytes()


@pytest.fixture
def head(hub: Hub, tmp_path: Path) -> dvt_timm.DenoiserHead:
    """Published for the small DINOv2."""
    head = random_head(384, (6, 6))
    data = as_published(tmp_path / "a.pth", "denoiser", head.state_dict())
    hub.repo("jjiaweiyang/DVT", {f"voc_denoised/{SMALL_BASE}.pth": data})
    return head


@pytest.fixture
def distilled(hub: Hub, tmp_path: Path) -> Any:
    """Weights published for DeiT-III, of one block; without a classifier."""
    torch.manual_seed(0)
    plain = timm.create_model(DISTILLED_BASE, num_classes=0, depth=1)
    state = {f"model.{key}": value for key, value in plain.state_dict().items()}
    hub.repo(
        "jjiaweiyang/DVT", {f"voc_distilled/{DISTILLED_BASE}.pth": as_published(tmp_path / "a.pth", "model", state)}
    )
    return plain


class TestCreateModel:
    def test_base_and_head_from_their_repositories(self, hub: Hub, head: Any) -> None:
        base = serve_base(hub, SMALL_BASE, depth=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = timm.create_model(SMALL, pretrained=True, depth=1)
        assert same_weights(model.denoiser, head)
        assert same_weights(model.blocks, base.blocks)

    @pytest.mark.parametrize(
        "options", [{"num_classes": 3}, {"in_chans": 1}, {"img_size": 112}, {"features_only": True}]
    )
    def test_options(self, hub: Hub, head: Any, options: dict[str, Any]) -> None:
        base = serve_base(hub, SMALL_BASE, depth=1)
        if "features_only" in options:
            options = {**options, "out_indices": [0]}
        model = timm.create_model(SMALL, pretrained=True, depth=1, **options)
        inner = model.model if "features_only" in options else model
        assert same_weights(inner.denoiser, head)
        assert torch.equal(inner.blocks[0].attn.qkv.weight, base.blocks[0].attn.qkv.weight)
        model.eval()(images(112, 112, channels=options.get("in_chans", 3)))

    def test_a_base_of_ones_own_and_the_published_head(self, hub: Hub, head: Any, tmp_path: Path) -> None:
        base = serve_base(hub, SMALL_BASE, depth=1)
        (tmp_path / "mine.safetensors").write_bytes(hub.repos.pop(f"timm/{SMALL_BASE}").files()["model.safetensors"])
        overlay = {"file": str(tmp_path / "mine.safetensors")}
        model = timm.create_model(SMALL, pretrained=True, depth=1, pretrained_cfg_overlay=overlay)
        assert same_weights(model.denoiser, head)
        assert same_weights(model.blocks, base.blocks)

    @pytest.mark.parametrize(
        "options", [{}, {"in_chans": 1}, {"img_size": 64}, {"num_classes": 3}, {"features_only": True}]
    )
    def test_distilled(self, hub: Hub, distilled: Any, options: dict[str, Any]) -> None:
        if "features_only" in options:
            options = {**options, "out_indices": [0]}
        model = timm.create_model(DISTILLED, pretrained=True, depth=1, **options)
        assert not hasattr(model, "denoiser")
        inner = model.model if "features_only" in options else model
        assert torch.equal(inner.blocks[0].attn.qkv.weight, distilled.blocks[0].attn.qkv.weight)
        assert hub.asked("/timm/") == []

    def test_a_distilled_file_with_a_classifier(self, hub: Hub, distilled: Any, tmp_path: Path) -> None:
        state = {f"model.{key}": value for key, value in distilled.state_dict().items()}
        state |= {"model.head.weight": torch.zeros(1000, 768), "model.head.bias": torch.zeros(1000)}
        data = as_published(tmp_path / "b.pth", "model", state)
        hub.repo("jjiaweiyang/DVT", {f"voc_distilled/{DISTILLED_BASE}.pth": data})
        model = timm.create_model(DISTILLED, pretrained=True, depth=1)
        assert same_weights(model, distilled)

    @pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
    def test_a_distilled_file_that_lacks_a_part(
        self, hub: Hub, distilled: Any, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        state = {f"model.{key}": value for key, value in distilled.state_dict().items() if "mlp.fc1" not in key}
        data = as_published(tmp_path / "b.pth", "model", state)
        hub.repo("jjiaweiyang/DVT", {f"voc_distilled/{DISTILLED_BASE}.pth": data})
        with pytest.raises(RuntimeError, match=r"Missing key.*mlp\.fc1"):
            timm.create_model(DISTILLED, pretrained=True, depth=1, **options)

    def test_a_file_of_another_kind(self, hub: Hub, distilled: Any) -> None:
        data = hub.repos["jjiaweiyang/DVT"].files()[f"voc_distilled/{DISTILLED_BASE}.pth"]
        hub.repo("jjiaweiyang/DVT", {f"voc_denoised/{SMALL_BASE}.pth": data})
        with pytest.raises(ValueError, match=rf"voc_denoised/{SMALL_BASE}\.pth is no denoiser head"):
            timm.create_model(SMALL, pretrained=True)


class TestConvertedOnce:
    def load(self) -> dvt_timm.DenoiserHead:
        return published.published_head(find_variant(SMALL).weights, SMALL_BASE)

    def test_the_pickle_is_read_once(self, hub: Hub, head: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert same_weights(self.load(), head)
        (kept,) = cache.glob("models--jjiaweiyang--DVT/converted/*.safetensors")
        assert load_file(kept).keys() == head.state_dict().keys()

        def read(path: Path) -> Any:
            raise AssertionError("the pickle was read again")

        monkeypatch.setattr(published, "read_pickle", read)
        assert same_weights(self.load(), head)

    def test_a_new_file_is_read_anew(self, hub: Hub, head: Any, tmp_path: Path) -> None:
        self.load()
        newer = random_head(384, (6, 6), seed=2)
        data = as_published(tmp_path / "b.pth", "denoiser", newer.state_dict())
        hub.repos["jjiaweiyang/DVT"].commit({f"voc_denoised/{SMALL_BASE}.pth": data})
        assert same_weights(self.load(), newer)

    def test_a_damaged_copy_is_made_again(self, hub: Hub, head: Any, cache: Path) -> None:
        self.load()
        (kept,) = cache.glob("models--jjiaweiyang--DVT/converted/*.safetensors")
        kept.write_bytes(kept.read_bytes()[:1000])
        assert same_weights(self.load(), head)
        assert load_file(kept).keys() == head.state_dict().keys()

    def test_a_copy_whose_numbers_are_damaged_is_made_again(self, hub: Hub, head: Any, cache: Path) -> None:
        self.load()
        (kept,) = cache.glob("models--jjiaweiyang--DVT/converted/*.safetensors")
        data = bytearray(kept.read_bytes())
        data[-10] ^= 0x10
        kept.write_bytes(data)
        assert same_weights(self.load(), head)
        kept.write_bytes(save(load_file(kept), {"format": "pt"}))  # an earlier version's, without a digest
        assert same_weights(self.load(), head)

    def test_a_full_disk_is_no_reason_not_to_load(self, hub: Hub, head: Any, cache: Path) -> None:
        published.hub.fetch("jjiaweiyang/DVT", f"voc_denoised/{SMALL_BASE}.pth")
        with full_disk():
            assert same_weights(self.load(), head)
        assert list(cache.rglob("converted/*")) == []

    def test_the_cache_stays_one_that_the_client_understands(self, hub: Hub, head: Any, cache: Path) -> None:
        from huggingface_hub import scan_cache_dir

        self.load()
        report = scan_cache_dir(cache)
        assert report.warnings == []
        assert [repo.repo_id for repo in report.repos] == ["jjiaweiyang/DVT"]


class TestPins:
    def test_another_file_than_the_pinned_one(self, hub: Hub, head: Any, cache: Path) -> None:
        pinned = Published("jjiaweiyang/DVT", f"voc_denoised/{SMALL_BASE}.pth", sha256="0" * 64)
        with pytest.raises(ValueError, match=r"DVT/voc_denoised/.*\.pth at \w+ was downloaded twice.*on record"):
            published.published_head(pinned, SMALL_BASE)
        assert list(cache.glob("models--*/snapshots/*/*/*.pth")) == []

    @pytest.mark.parametrize("change", [lambda data: data[:5000] + b"\xff" + data[5001:], lambda data: data[:5000]])
    def test_a_damaged_file_in_the_cache_is_not_converted(self, hub: Hub, head: Any, cache: Path, change: Any) -> None:
        file = f"voc_denoised/{SMALL_BASE}.pth"
        path = published.hub.fetch("jjiaweiyang/DVT", file)
        path.write_bytes(change(path.read_bytes()))
        data = hub.repos["jjiaweiyang/DVT"].files()[file]
        for pins in ({}, {"revision": path.parent.parent.name, "sha256": hashlib.sha256(data).hexdigest()}):
            pinned = Published("jjiaweiyang/DVT", file, **pins)
            assert same_weights(published.published_head(pinned, SMALL_BASE), head)

    def test_a_pinned_commit_in_the_cache_needs_no_request(self, hub: Hub, head: Any) -> None:
        repo, file = hub.repos["jjiaweiyang/DVT"], f"voc_denoised/{SMALL_BASE}.pth"
        pins = {"revision": repo.branches["main"], "sha256": hashlib.sha256(repo.files()[file]).hexdigest()}
        pinned = Published("jjiaweiyang/DVT", file, **pins)
        assert same_weights(published.published_head(pinned, SMALL_BASE), head)
        hub.requests.clear()
        assert same_weights(published.published_head(pinned, SMALL_BASE), head)
        assert hub.requests == []


class TestConvertCheckpoint:
    @pytest.mark.parametrize("name", GOLDEN_HEADS)
    def test_the_authors_files_give_their_golden_outputs(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (dim, _, _), recorded = GOLDEN_HEADS[name]
        base = {64: TINY, 128: TINY, 192: "vit_tiny_patch16_224.augreg_in21k"}[dim]
        if dim == 128:  # timm has no ViT as wide
            plain = published.plain_model
            monkeypatch.setattr(
                published, "plain_model", lambda name: plain(name).__class__(embed_dim=128, num_heads=2)
            )
        folder = dvt_timm.convert_checkpoint(recorded / f"official_denoiser_{name}.pth", tmp_path, base=base)
        head = dvt_timm.load_head(folder)
        golden = load_file(recorded / f"denoiser_io_{name}.safetensors")
        grids = [key.removeprefix("in_") for key in golden if key.startswith("in_")]
        assert len(grids) == 4
        with torch.inference_mode():
            for grid in grids:
                torch.testing.assert_close(head(golden[f"in_{grid}"]), golden[f"out_{grid}"], atol=1e-5, rtol=1e-5)

    def test_a_head(self, hub: Hub, tmp_path: Path) -> None:
        head = random_head(384, (6, 6))
        as_published(tmp_path / f"{SMALL_BASE}.pth", "denoiser", head.state_dict())
        folder = dvt_timm.convert_checkpoint(tmp_path / f"{SMALL_BASE}.pth", tmp_path / "out")
        assert same_weights(dvt_timm.load_head(folder), head)
        model = timm.create_model(SMALL_BASE, denoiser=folder)
        assert same_weights(model.denoiser, head)

    @pytest.mark.parametrize("grid", [14, 20])
    def test_distilled_weights_bit_for_bit(self, hub: Hub, tmp_path: Path, grid: int) -> None:
        """Whatever grid their position embedding is on."""
        torch.manual_seed(0)
        plain = timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=0, img_size=16 * grid)
        state = {f"model.{key}": value for key, value in plain.state_dict().items()}
        as_published(tmp_path / "vit_tiny_patch16_224.augreg_in21k.pth", "model", state)
        folder = dvt_timm.convert_checkpoint(tmp_path / "vit_tiny_patch16_224.augreg_in21k.pth", tmp_path / "out")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert same_weights(model, plain)
        assert model.num_classes == 0

    @pytest.mark.parametrize(
        ("kind", "state", "base", "message"),
        [
            ("denoiser", random_head(64, (4, 4)).state_dict(), SMALL_BASE, "64 channels wide, .*has 384"),
            ("denoiser", {"denoiser.norm1.bias": torch.ones(3)}, SMALL_BASE, "is no denoiser head"),
            ("model", {"model.norm.bias": torch.ones(3)}, SMALL_BASE, "does not fit .*: it holds no 'pos_embed'"),
            ("model", {"model.pos_embed": torch.ones(3)}, SMALL_BASE, "does not fit .*: it holds no 'pos_embed'"),
            (
                "model",
                {"model.pos_embed": torch.ones(1, 197, 192)},
                "vit_tiny_patch16_224.augreg_in21k",
                "does not fit",
            ),
            ("model", {"model.pos_embed": torch.full((1, 197, 192), float("nan"))}, SMALL_BASE, "not finite"),
            ("other", {}, SMALL_BASE, "neither 'denoiser' nor 'model'"),
            ("denoiser", {}, None, "timm knows no model 'a'"),
        ],
    )
    def test_errors(self, hub: Hub, tmp_path: Path, kind: str, state: Any, base: str | None, message: str) -> None:
        as_published(tmp_path / "a.pth", kind, state)
        with pytest.raises(ValueError, match=message):
            dvt_timm.convert_checkpoint(tmp_path / "a.pth", tmp_path / "out", base=base)
        assert not (tmp_path / "out").exists()

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.pth not found"):
            dvt_timm.convert_checkpoint(tmp_path / "none.pth", tmp_path / "out", base=SMALL_BASE)
