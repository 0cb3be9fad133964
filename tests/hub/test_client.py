"""Pulling from the Hub, from a server of our own with the real client: what is asked, checked, kept and built."""

import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from helpers import DEMO, TINY, blobs, files_of, images, random_head, same_weights, serve_base, serve_head
from hub_server import Hub
from safetensors.torch import load, save, save_file
from timm.models import get_pretrained_cfg

import dvt_timm
from dvt_timm._util.files import sha256_of
from dvt_timm.hub.client import fetch

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class TestHeads:
    def test_every_way_to_one(self, hub: Hub, head: Any, base: Any) -> None:
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models = [
                timm.create_model(TINY, pretrained=True, denoiser="hf-hub:me/head"),
                timm.create_model("hf-hub:me/head", pretrained=True),
                timm.create_model("hf-hub:me/head@main", pretrained=True),
            ]
        for model in models:
            assert isinstance(model, dvt_timm.DenoisedVisionTransformer)
            assert same_weights(model.denoiser, head)
            assert same_weights(model.blocks, base.blocks)
            assert model.pretrained_cfg["hf_hub_id"] == f"timm/{TINY}"

    def test_a_registered_variant(self, hub: Hub, own_names: None, tmp_path: Path) -> None:
        name, base = "vit_small_patch16_224.dvt_mine", "vit_small_patch16_224.dino"
        plain = serve_base(hub, base, depth=1)
        head = random_head(384, (4, 4))
        hub.repo("me/head", files_of(dvt_timm.save_head(head, tmp_path, base=base)))
        dvt_timm.register_variant(name, base=base, head="hf-hub:me/head")
        model = timm.create_model(name, pretrained=True, depth=1)
        assert same_weights(model.denoiser, head)
        assert same_weights(model.blocks, plain.blocks)

    def test_one_commit_for_all_files(self, hub: Hub, head: Any, tmp_path: Path) -> None:
        dvt_timm.load_head("hf-hub:me/head")
        commit = hub.repos["me/head"].branches["main"]
        assert hub.asked("/main/") == [f"{method} /me/head/resolve/main/{CONFIG}" for method in ("HEAD", "GET")]
        assert hub.asked(WEIGHTS) == [f"HEAD /me/head/resolve/{commit}/{WEIGHTS}"]

    def test_a_commit_in_the_cache_needs_no_request(self, hub: Hub, head: Any) -> None:
        source = f"hf-hub:me/head@{hub.repos['me/head'].branches['main']}"
        dvt_timm.load_head(source)
        hub.requests.clear()
        assert same_weights(dvt_timm.load_head(source), head)
        assert hub.requests == []

    def test_revisions(self, hub: Hub, head: Any, tmp_path: Path) -> None:
        repo = hub.repos["me/head"]
        old, newer = repo.branches["main"], random_head(64, (5, 4), seed=2)
        repo.commit(files_of(dvt_timm.save_head(newer, tmp_path / "newer", base=TINY)), "main")
        repo.branches["v1"] = old
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), newer)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head@v1"), head)
        assert same_weights(dvt_timm.load_head(f"hf-hub:me/head@{old}"), head)
        assert same_weights(timm.create_model(TINY, denoiser="hf-hub:me/head@v1").denoiser, head)
        serve_base(hub)
        assert same_weights(timm.create_model("hf-hub:me/head@v1", pretrained=True).denoiser, head)

    @pytest.mark.parametrize("moment", [rf"GET .*{CONFIG}", rf"HEAD .*{WEIGHTS}"])
    def test_config_and_weights_are_never_of_two_commits(
        self, hub: Hub, head: Any, tmp_path: Path, moment: str
    ) -> None:
        """A commit lands while the files of an earlier one are fetched."""
        other = files_of(dvt_timm.save_head(random_head(64, (7, 7)), tmp_path / "other", base=TINY))
        repo = hub.repos["me/head"]
        hub.on_request = lambda request: repo.commit(other) if re.match(moment, request) else None
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        assert len(repo.commits) > 1

    @pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"in_chans": 1}, {"img_size": 96}, {"stride": 8}])
    def test_options_of_create_model(self, hub: Hub, head: Any, base: Any, options: dict[str, Any]) -> None:
        model = timm.create_model("hf-hub:me/head", pretrained=True, **options)
        assert same_weights(model.denoiser, head)
        assert same_weights(model.blocks, base.blocks)
        model.eval().forward_features(images(96, 96, channels=options.get("in_chans", 3)))

    def test_features_only(self, hub: Hub, head: Any, base: Any) -> None:
        model = timm.create_model("hf-hub:me/head", pretrained=True, features_only=True, out_indices=[-1]).eval()
        whole = timm.create_model("hf-hub:me/head", pretrained=True).eval()
        with torch.inference_mode():
            (fmap,) = model(images(64, 96))
            expected = whole.forward_intermediates(images(64, 96), indices=1, intermediates_only=True)[0]
        assert torch.equal(fmap, expected)
        assert model.pretrained_cfg["hf_hub_id"] == f"timm/{TINY}"

    def test_a_stride_that_it_was_trained_at(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        folder = dvt_timm.save_head(random_head(64, (5, 4)), tmp_path, base=TINY, stride=8)
        hub.repo("me/head", files_of(folder))
        assert timm.create_model("hf-hub:me/head", pretrained=True).patch_embed.stride == (8, 8)

    def test_without_weights(self, hub: Hub, head: Any) -> None:
        model = timm.create_model("hf-hub:me/head")
        assert model.denoiser.config == head.config
        assert not same_weights(model.denoiser, head)
        assert hub.asked("safetensors") == []

    def test_another_head_in_its_place(self, hub: Hub, head: Any, base: Any) -> None:
        mine = random_head(64, (3, 3))
        assert timm.create_model("hf-hub:me/head", pretrained=True, denoiser=mine).denoiser is mine

    def test_a_folder_like_a_repository(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        head = random_head(64, (5, 4))
        dvt_timm.save_head(head, tmp_path / "mine", base=TINY)
        model = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True)
        assert same_weights(model.denoiser, head)
        assert same_weights(model.blocks, base.blocks)
        dvt_timm.save_model(model, tmp_path / "whole")
        assert same_weights(timm.create_model(f"local-dir:{tmp_path / 'whole'}", pretrained=True), model)

    def test_a_head_of_the_embedded_backbone(self, hub: Hub, tmp_path: Path) -> None:
        head = random_head(384, (5, 4))
        config = json.loads((dvt_timm.save_head(head, tmp_path, base=DEMO) / CONFIG).read_text())
        hub.repo("me/head", files_of(tmp_path))
        model = timm.create_model("hf-hub:me/head", pretrained=True)
        assert same_weights(model.blocks, timm.create_model(DEMO, pretrained=True).blocks)
        assert config["base_sha256"] is not None
        assert hub.asked("/timm/") == []

    @pytest.mark.slow
    def test_plain_timm_refuses_it(self, hub: Hub, head: Any, base: Any) -> None:
        """Rather than a model without its head."""
        code = "import timm; timm.create_model('hf-hub:me/head', pretrained=True, num_classes=7)"
        environment = {**os.environ, "HF_HUB_CACHE": huggingface_hub.constants.HF_HUB_CACHE}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode != 0
        assert "unexpected keyword argument 'denoiser'" in done.stderr


class TestOtherBackbones:
    def test_a_head_on_another_base_warns(self, hub: Hub, head: Any) -> None:
        with pytest.warns(UserWarning, match=r"trained on test_vit\.r160_in1k, not on test_vit2\.r160_in1k"):
            timm.create_model("test_vit2.r160_in1k", denoiser="hf-hub:me/head")

    def test_other_weights_of_the_base_warn(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        dvt_timm.save_head(random_head(64, (5, 4)), tmp_path, base=TINY)
        config = json.loads((tmp_path / CONFIG).read_text())
        for sha256, warns in ((hashlib.sha256(b"other").hexdigest(), True), (None, False)):
            (tmp_path / CONFIG).write_text(json.dumps({**config, "base_sha256": sha256}))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                timm.create_model(TINY, pretrained=True, denoiser=tmp_path)
            assert any("trained on other weights" in str(warning.message) for warning in caught) == warns

    def test_weights_of_ones_own_are_told_from_the_bases(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        file, tuned = tmp_path / "tuned.safetensors", timm.create_model(TINY)
        save_file(tuned.state_dict(), file)
        hub.repo("me/tuned", {"config.json": b"{}", "model.safetensors": file.read_bytes()})
        own, official = sha256_of(file), "0" * 64
        for overlay in ({"file": str(file)}, {"hf_hub_id": "me/tuned"}):
            for sha256 in (own, official, None):
                dvt_timm.save_head(random_head(64), tmp_path / "head", base=TINY, base_sha256=sha256)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    options = {"denoiser": tmp_path / "head", "pretrained_cfg_overlay": overlay}
                    model = timm.create_model(TINY, pretrained=True, **options)
                assert same_weights(model.blocks, tuned.blocks)
                assert any("trained on other weights" in str(each.message) for each in caught) == (sha256 == official)

    def test_the_bases_hash_is_recorded_once_it_is_known(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        head = random_head(64, (5, 4))
        assert json.loads((dvt_timm.save_head(head, tmp_path, base=TINY) / CONFIG).read_text())["base_sha256"] is None
        timm.create_model(TINY, pretrained=True, denoiser=head)
        recorded = json.loads((dvt_timm.save_head(head, tmp_path, base=TINY) / CONFIG).read_text())["base_sha256"]
        weights = hub.repos[f"timm/{TINY}"].files()[WEIGHTS]
        assert recorded == hashlib.sha256(weights).hexdigest()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            timm.create_model(TINY, pretrained=True, denoiser=tmp_path)


class TestMergedModels:
    @pytest.fixture
    def merged(self, hub: Hub, base: Any, tmp_path: Path) -> Any:
        model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64, (5, 4)))
        hub.repo("me/merged", files_of(dvt_timm.save_model(model, tmp_path / "merged")))
        return model

    @pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"in_chans": 1}, {"stride": 8}])
    def test_create_model(self, hub: Hub, merged: Any, options: dict[str, Any]) -> None:
        hub.requests.clear()
        model = timm.create_model("hf-hub:me/merged", pretrained=True, **options)
        assert same_weights(model.blocks, merged.blocks)
        assert same_weights(model.denoiser, merged.denoiser)
        assert hub.asked("/timm/") == []
        assert len(hub.asked("/main/")) == 2  # HEAD and GET of the configuration; the weights are at its commit
        assert model.pretrained_cfg["hf_hub_id"] == "me/merged"

    def test_through_timms_overlay(self, hub: Hub, merged: Any) -> None:
        overlay = {"hf_hub_id": "me/merged"}
        model = timm.create_model(
            TINY, pretrained=True, denoiser=merged.denoiser.config, pretrained_cfg_overlay=overlay
        )
        assert same_weights(model.denoiser, merged.denoiser)

    @pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
    def test_never_as_a_plain_model(self, hub: Hub, merged: Any, options: dict[str, Any]) -> None:
        overlay = {"hf_hub_id": "me/merged"}
        with pytest.raises(RuntimeError, match=r"holds a denoiser, but test_vit .* is a plain model"):
            timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay=overlay, **options)

    def test_it_is_no_head(self, hub: Hub, merged: Any) -> None:
        with pytest.raises(ValueError, match=r"whole model.*create_model\('hf-hub:me/merged', pretrained=True\)$"):
            dvt_timm.load_head("hf-hub:me/merged")

    def test_without_its_denoiser(self, hub: Hub, merged: Any) -> None:
        files = hub.repos["me/merged"].files()
        state = {key: value for key, value in load(files[WEIGHTS]).items() if not key.startswith("denoiser.")}
        hub.repo("me/merged", {**files, WEIGHTS: save(state)})
        with pytest.raises(RuntimeError, match="does not hold the denoiser"):
            timm.create_model("hf-hub:me/merged", pretrained=True)

    def test_half_of_its_backbone(self, hub: Hub, merged: Any) -> None:
        files = hub.repos["me/merged"].files()
        state = {key: value for key, value in load(files[WEIGHTS]).items() if not key.startswith("blocks.5.")}
        hub.repo("me/merged", {**files, WEIGHTS: save(state)})
        for options in ({}, {"num_classes": 3}):
            with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.5"):
                timm.create_model("hf-hub:me/merged", pretrained=True, **options)

    def test_timms_own_way_of_pushing(self, hub: Hub, merged: Any, tmp_path: Path) -> None:
        timm.models.save_for_hf(merged, tmp_path / "timms", safe_serialization=False)
        hub.repo("me/timms", files_of(tmp_path / "timms"))
        if "model_args" not in json.loads((tmp_path / "timms" / CONFIG).read_text()):  # timm 1.0.21
            for options in ({}, {"num_classes": 3}):
                with pytest.raises(RuntimeError, match="holds a denoiser"):
                    timm.create_model("hf-hub:me/timms", pretrained=True, **options)
            return
        assert same_weights(timm.create_model("hf-hub:me/timms", pretrained=True), merged)


class TestBaseWeights:
    """They go through timm's own loading."""

    def test_at_one_commit_and_checked(self, hub: Hub, base: Any) -> None:
        model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64))
        assert same_weights(model.blocks, base.blocks)
        assert hub.asked("timm/") == [f"HEAD /timm/{TINY}/resolve/main/{WEIGHTS}"]

    def test_pickled_ones_of_old_repositories(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        torch.save(base.state_dict(), tmp_path / "pytorch_model.bin")
        hub.repo(f"timm/{TINY}", files_of(tmp_path))
        for offline in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
                model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64))
            assert same_weights(model.blocks, base.blocks)

    def test_a_file_of_ones_own(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        (tmp_path / "mine.safetensors").write_bytes(save(base.state_dict()))
        hub.repos.clear()
        overlay = {"file": str(tmp_path / "mine.safetensors")}
        model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64), pretrained_cfg_overlay=overlay)
        assert same_weights(model.blocks, base.blocks)
        assert hub.requests == []


class TestEnvironment:
    def test_cache_dir(self, hub: Hub, head: Any, base: Any, cache: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        dvt_timm.load_head("hf-hub:me/head", cache_dir=elsewhere)
        timm.create_model("hf-hub:me/head", pretrained=True, cache_dir=elsewhere)
        assert {path.name for path in elsewhere.glob("models--*")} == {f"models--timm--{TINY}", "models--me--head"}
        assert blobs(cache) == []

    def test_a_cache_dir_in_the_home(
        self, hub: Hub, head: Any, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        model = timm.create_model("hf-hub:me/head", pretrained=True, cache_dir="~/mine")
        assert same_weights(model.denoiser, head)
        assert (tmp_path / "mine/models--me--head").is_dir()

    def test_offline_with_everything_cached(
        self, hub: Hub, head: Any, base: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        online = timm.create_model("hf-hub:me/head", pretrained=True)
        hub.requests.clear()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert same_weights(timm.create_model("hf-hub:me/head", pretrained=True), online)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        assert hub.requests == []

    @pytest.mark.parametrize("options", [{"private": True}, {"gated": True}])
    def test_a_token_opens_private_and_gated_repositories(
        self, hub: Hub, base: Any, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server fails the test if the token reaches the storage host."""
        head = serve_head(hub, tmp_path / "head", **options)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        assert same_weights(timm.create_model("hf-hub:me/head", pretrained=True).denoiser, head)

    @pytest.mark.slow
    def test_the_real_environment(self, hub: Hub, head: Any, base: Any, tmp_path: Path) -> None:
        """HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE as a user sets them, in a process of its own."""
        hub.repos["me/head"].private = True
        code = (
            "import timm, dvt_timm; model = timm.create_model('hf-hub:me/head', pretrained=True);"
            "print(float(model.denoiser.pos_embed.detach().double().sum()))"
        )
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
        run = {"capture_output": True, "text": True, "check": True}
        first = subprocess.run([sys.executable, "-c", code], env=environment, **run)
        assert float(first.stdout) == pytest.approx(float(head.pos_embed.detach().double().sum()))
        assert (tmp_path / "home/hub/models--me--head").is_dir()
        hub.requests.clear()
        again = subprocess.run([sys.executable, "-c", code], env={**environment, "HF_HUB_OFFLINE": "1"}, **run)
        assert again.stdout == first.stdout
        assert hub.requests == []

    def test_a_cache_without_links(self, hub: Hub, head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.file_download, "are_symlinks_supported", lambda *_: False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        fault = hub.fail("GET /large/", times=1, flip=True)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        assert fault.sent == 1
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)


class TestChecking:
    def test_a_cached_file_that_was_damaged(self, hub: Hub, head: Any, cache: Path) -> None:
        dvt_timm.load_head("hf-hub:me/head")
        (weights,) = cache.glob(f"models--me--head/snapshots/*/{WEIGHTS}")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_a_cached_base_that_was_damaged(self, hub: Hub, head: Any, base: Any, cache: Path) -> None:
        timm.create_model("hf-hub:me/head", pretrained=True)
        (weights,) = cache.glob(f"models--timm--*/snapshots/*/{WEIGHTS}")
        weights.write_bytes(weights.read_bytes()[:-100])
        assert same_weights(timm.create_model("hf-hub:me/head", pretrained=True).blocks, base.blocks)

    def test_a_damaged_one_without_a_network(
        self, hub: Hub, head: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dvt_timm.load_head("hf-hub:me/head")
        (weights,) = cache.glob(f"models--me--head/snapshots/*/{WEIGHTS}")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(OSError, match=rf"me/head/{WEIGHTS} at .* is damaged and was removed.*HF_HUB_OFFLINE"):
            dvt_timm.load_head("hf-hub:me/head")
        assert not os.path.lexists(weights)

    def test_the_pinned_hash_comes_before_the_hubs(self, hub: Hub, head: Any, cache: Path) -> None:
        pinned = hashlib.sha256(hub.repos["me/head"].files()[WEIGHTS]).hexdigest()
        assert fetch("me/head", WEIGHTS, sha256=pinned).is_file()
        with pytest.raises(ValueError, match=rf"me/head/{WEIGHTS} at \w+ was downloaded twice.*on record"):
            fetch("me/head", WEIGHTS, sha256="0" * 64)
        assert not list(cache.glob(f"models--me--head/snapshots/*/{WEIGHTS}"))
        assert not [path for path in blobs(cache) if path.name == pinned]

    def test_names_that_are_none(self) -> None:
        for name in ("me/head/more", "../head", "me/he ad", ""):
            with pytest.raises(ValueError, match="cannot get"):
                dvt_timm.load_head(f"hf-hub:{name}")


def test_xet_and_plain_storage_give_the_same(
    hub: Hub, head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_base(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for disabled in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", disabled)
        name = f"me/{'plain' if disabled else 'xet'}"
        dvt_timm.push_to_hub(head, name, base="test_vit.r160_in1k")
        assert same_weights(dvt_timm.load_head(f"hf-hub:{name}"), head)
    assert bool(hub.asked("^[A-Z]+ /xet/")) == huggingface_hub.utils.is_package_available("hf_xet")
    assert [re.sub(r"\w+$", "", request) for request in hub.asked("PUT")] == ["PUT /upload/"]


def test_every_base_of_the_manifest_is_one_that_we_fetch() -> None:
    for name in dvt_timm.list_variants():
        cfg = get_pretrained_cfg(name)
        if cfg.hf_hub_id:
            assert cfg.hf_hub_id.startswith("timm/")
            assert not cfg.hf_hub_filename
