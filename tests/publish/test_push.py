"""Pushing to a Hub of our own with the real client: the commit, the card, repeated and failed attempts."""

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
from helpers import DEMO, TINY, Hurried, full_disk, random_head, same_weights, serve_base
from hub_server import Hub
from huggingface_hub.errors import HfHubHTTPError
from pushing import METRICS, card_of
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer

import dvt_timm
from dvt_timm import names
from dvt_timm.publish.push import load_folder

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.fixture(params=[False, True], ids=["xet", "lfs"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the client sends large files, if `hf_xet` is installed."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", request.param)


@pytest.fixture
def plain_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


@register_model
def vit_of_ones_own(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Without a pretrained cfg."""
    sizes: dict[str, Any] = {"img_size": 28, "patch_size": 14, "embed_dim": 64, "depth": 1, "num_heads": 2}
    return build_model_with_cfg(VisionTransformer, "vit_of_ones_own", pretrained, **sizes, **kwargs)


class TestHeads:
    def test_of_a_vit_that_timm_has_no_weights_of(self, hub: Hub, tmp_path: Path) -> None:
        model = dvt_timm.denoise(timm.create_model("vit_of_ones_own").eval(), random_head(64, (2, 2)))
        for pushed, repo in ((model.denoiser, "me/head"), (model, "me/of-a-model")):
            dvt_timm.push_to_hub(pushed, repo, base="vit_of_ones_own")
            config = json.loads(hub.repos[repo].files()[CONFIG])
            assert (config["base"], config["base_sha256"]) == ("vit_of_ones_own", None)
            card = card_of(hub, repo)
            assert "base_model" not in card.data.to_dict()
            assert "create_model" not in card.text
            (example,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
            names = {"model": timm.create_model("vit_of_ones_own").eval()}
            exec(example, names)
            assert same_weights(names["model"].denoiser, model.denoiser)

    def test_round_trip(self, hub: Hub, base: Any, head: Any, storage: None) -> None:
        commit = dvt_timm.push_to_hub(head, "me/head", base=TINY)
        repo = hub.repos["me/head"]
        assert commit.oid == repo.branches["main"]
        assert repo.messages == ["", f"Add Denoiser head for {TINY}"]
        assert repo.files().keys() == {".gitattributes", CONFIG, WEIGHTS, CARD}
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        model = timm.create_model("hf-hub:me/head", pretrained=True)
        assert same_weights(model.denoiser, head)
        assert same_weights(model.blocks, base.blocks)

    def test_what_the_repository_says(self, hub: Hub, base: Any, head: Any) -> None:
        dvt_timm.push_to_hub(head, "me/head", base=TINY)
        config = json.loads(hub.repos["me/head"].files()[CONFIG])
        weights = hub.repos[f"timm/{TINY}"].files()[WEIGHTS]
        expected = {
            "schema": 1,
            "library": "dvt-timm",
            "version": dvt_timm.__version__,
            "base": TINY,
            "base_sha256": hashlib.sha256(weights).hexdigest(),
            "dim": 64,
            "grid_size": [5, 4],
            "num_blocks": 1,
            "patch_size": 16,
            "stride": 16,
        }
        assert {key: config[key] for key in expected} == expected

    def test_a_models_head_alone(self, hub: Hub, model: Any, head: Any) -> None:
        dvt_timm.push_to_hub(model, "me/head")
        assert json.loads(hub.repos["me/head"].files()[CONFIG])["base"] == TINY
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_a_models_stride(self, hub: Hub, base: Any) -> None:
        model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64, (19, 19)), stride=8)
        dvt_timm.push_to_hub(model, "me/head")
        pulled = timm.create_model("hf-hub:me/head", pretrained=True)
        assert pulled.patch_embed.stride == (8, 8)
        assert pulled.patch_embed.grid_size == (19, 19)
        assert pulled.pretrained_cfg["input_size"] == (3, 160, 160)

    def test_a_heads_stride_and_the_weights_it_was_trained_on(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        head = dvt_timm.save_head(
            random_head(64, (19, 19)), tmp_path / "head", base=TINY, stride=8, base_sha256="0" * 64
        )
        for merged in (False, True):
            model_or_head, name = load_folder(head, merged=merged)
            dvt_timm.push_to_hub(model_or_head, f"me/{merged}", base=name, merged=merged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pulled = timm.create_model(f"hf-hub:me/{merged}", pretrained=True)
            assert pulled.patch_embed.stride == (8, 8)
        config = json.loads(hub.repos["me/False"].files()[CONFIG])
        assert (config["stride"], config["base_sha256"]) == (8, "0" * 64)

    def test_a_base_that_nobody_published(self, hub: Hub) -> None:
        base = "vit_giant_patch14_224"
        dvt_timm.push_to_hub(random_head(1408), "me/head", base=base)
        assert card_of(hub, "me/head").data.base_model is None

    def test_compiled(self, hub: Hub, model: Any, head: Any) -> None:
        dvt_timm.push_to_hub(torch.compile(head), "me/head", base=TINY)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        dvt_timm.push_to_hub(torch.compile(model), "me/merged", merged=True)
        model.denoiser = torch.compile(model.denoiser)
        dvt_timm.push_to_hub(model, "me/part", merged=True)
        for name in ("me/merged", "me/part"):
            assert same_weights(timm.create_model(f"hf-hub:{name}", pretrained=True).denoiser, head)

    def test_the_embedded_base_keeps_its_name(self, hub: Hub) -> None:
        dvt_timm.push_to_hub(timm.create_model(DEMO, pretrained=True), "me/demo")
        config = json.loads(hub.repos["me/demo"].files()[CONFIG])
        assert config["base"] == DEMO
        assert card_of(hub, "me/demo").data.base_model is None  # it is no DINOv2, and on no Hub
        assert "a stand-in" in card_of(hub, "me/demo").content
        model = timm.create_model("hf-hub:me/demo", pretrained=True)
        assert same_weights(model, timm.create_model(DEMO, pretrained=True))

    def test_ones_own_name_becomes_the_backbones(self, hub: Hub, own_names: None) -> None:
        name, base = "vit_small_patch16_224.pushed", "vit_small_patch16_224.dino"
        dvt_timm.register_variant(name, base=base)
        serve_base(hub, base, depth=1)
        dvt_timm.push_to_hub(timm.create_model(name, depth=1), "me/mine")
        assert json.loads(hub.repos["me/mine"].files()[CONFIG])["base"] == base

    def test_a_base_without_a_repository(self, hub: Hub, head: Any) -> None:
        dvt_timm.push_to_hub(head, "me/head", base=TINY)
        assert json.loads(hub.repos["me/head"].files()[CONFIG])["base_sha256"] is None
        assert "not known" in card_of(hub, "me/head").content


class TestModels:
    def test_merged(self, hub: Hub, model: Any, storage: None) -> None:
        dvt_timm.push_to_hub(model, "me/merged", merged=True)
        hub.repos.pop(f"timm/{TINY}")
        assert same_weights(timm.create_model("hf-hub:me/merged", pretrained=True), model)

    def test_one_of_a_name_that_only_its_owner_has(self, hub: Hub, tmp_path: Path) -> None:
        """As README's example registers: the name is not known where the model is pulled."""
        base = "vit_small_patch16_224.dino"
        before = dict(names._own)
        dvt_timm.register_variant("vit_small_patch16_224.dvt_owners", base=base)
        model = timm.create_model("vit_small_patch16_224.dvt_owners", depth=1)
        dvt_timm.push_to_hub(model, "me/mine", merged=True)
        dvt_timm.save_model(model, tmp_path / "mine")
        names._own.clear()
        names._own.update(before)
        for name in ("hf-hub:me/mine", f"local-dir:{tmp_path / 'mine'}"):
            assert same_weights(timm.create_model(name, pretrained=True), model)

    def test_one_without_a_head(self, hub: Hub, base: Any) -> None:
        dvt_timm.push_to_hub(base, "me/plain")
        assert card_of(hub, "me/plain").data.library_name == "timm"
        assert same_weights(timm.create_model("hf-hub:me/plain", pretrained=True), base)

    def test_one_that_averages_over_positions(self, hub: Hub, base: Any) -> None:
        model = timm.create_model(TINY, pretrained=True, denoiser={"positions": 2})
        dvt_timm.push_to_hub(model, "me/averaged")
        card = card_of(hub, "me/averaged")
        assert "means over 2 views that move its positions" in card.content
        assert "head of" not in card.content
        assert card.data.library_name == "dvt-timm"
        pulled = timm.create_model("hf-hub:me/averaged", pretrained=True)
        assert type(pulled) is dvt_timm.AveragedVisionTransformer
        assert pulled.denoiser.config == {"positions": 2}
        assert same_weights(pulled, model)

    def test_plain_timm_is_not_promised_what_it_cannot_build(self, hub: Hub, base: Any) -> None:
        dvt_timm.push_to_hub(timm.create_model(TINY, pretrained=True, stride=8), "me/strided")
        assert card_of(hub, "me/strided").data.library_name == "dvt-timm"
        assert timm.create_model("hf-hub:me/strided", pretrained=True).patch_embed.stride == (8, 8)

    def test_arguments_of_a_plain_model(self, hub: Hub, base: Any) -> None:
        model = timm.create_model(TINY, pretrained=True, act_layer="relu")
        dvt_timm.push_to_hub(model, "me/relu")
        pulled = timm.create_model("hf-hub:me/relu", pretrained=True)
        assert isinstance(pulled.blocks[0].mlp.act, torch.nn.ReLU)

    @pytest.mark.slow
    def test_plain_timm_loads_what_the_card_says_it_loads(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        dvt_timm.push_to_hub(base, "me/plain")
        (code,) = re.findall(r"```python\n(.*?)```", card_of(hub, "me/plain").content, re.DOTALL)
        assert "dvt_timm" not in code
        environment = {**os.environ, "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr


class TestCard:
    def test_an_own_one_is_kept(self, hub: Hub, head: Any) -> None:
        hub.repo("me/head", {CARD: b"my words"})
        dvt_timm.push_to_hub(head, "me/head", base=TINY)
        assert hub.repos["me/head"].files().keys() == {CARD, CONFIG, WEIGHTS}
        assert hub.repos["me/head"].files()[CARD] == b"my words"

    def test_a_kept_one_that_is_of_another_push(self, hub: Hub, model: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for seed in (1, 2):  # new weights, the same card
                torch.manual_seed(seed)
                torch.nn.init.normal_(model.denoiser.pos_embed)
                dvt_timm.push_to_hub(model, "hf-hub:me/head")
        for options in ({"metrics": METRICS}, {"merged": True}):
            with pytest.warns(UserWarning, match=r"me/head has a README\.md, which is kept; see whether"):
                dvt_timm.push_to_hub(model, "me/head", **options)


class TestWhereItGoes:
    def test_private(self, hub: Hub, head: Any) -> None:
        dvt_timm.push_to_hub(head, "me/head", base=TINY, private=True)
        assert hub.repos["me/head"].private
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_a_public_one_does_not_become_private_in_silence(self, hub: Hub, head: Any) -> None:
        repo = hub.repo("me/head", {CARD: b""})
        with pytest.raises(ValueError, match="me/head exists and is public"):
            dvt_timm.push_to_hub(head, "me/head", base=TINY, private=True)
        assert len(repo.commits) == 1

    def test_into_an_open_pull_request(self, hub: Hub, head: Any) -> None:
        hub.repo("me/head", {CARD: b""})
        dvt_timm.push_to_hub(head, "me/head", base=TINY, create_pr=True)
        dvt_timm.push_to_hub(random_head(64, seed=4), "me/head", base=TINY, revision="refs/pr/1")
        assert hub.asked("branch") == []
        assert len(hub.repos["me/head"].commits) == 3

    def test_a_branch(self, hub: Hub, head: Any) -> None:
        for _ in range(2):
            dvt_timm.push_to_hub(head, "me/head", base=TINY, revision="v2")
        repo = hub.repos["me/head"]
        assert repo.files("v2").keys() >= {CONFIG, WEIGHTS, CARD}
        assert repo.files().keys() == {".gitattributes"}
        assert same_weights(dvt_timm.load_head("hf-hub:me/head@v2"), head)

    def test_a_pull_request_to_someone_else(self, hub: Hub, head: Any) -> None:
        hub.repo("you/head", {CARD: b"yours"})
        commit = dvt_timm.push_to_hub(head, "you/head", base=TINY, create_pr=True)
        assert commit.pr_url == f"{hub.url}/you/head/discussions/1"
        assert hub.repos["you/head"].files().keys() == {CARD}
        assert hub.repos["you/head"].files("refs/pr/1").keys() == {CARD, CONFIG, WEIGHTS}

    def test_a_token_and_a_message_of_ones_own(self, hub: Hub, head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        serve_base(hub)
        hub.repos[f"timm/{TINY}"].private = True
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
        dvt_timm.push_to_hub(head, "me/head", base=TINY, token="hf_secret", commit_message="Better")
        assert hub.repos["me/head"].messages[-1] == "Better"
        assert json.loads(hub.repos["me/head"].files()[CONFIG])["base_sha256"] is not None


class TestBadArguments:
    @pytest.mark.parametrize(
        ("pushed", "options", "error", "message"),
        [
            ("head", {}, ValueError, r"base='arch\.tag'"),
            ("head", {"base": "vit_none.x"}, ValueError, "timm knows no model 'vit_none.x'"),
            ("head", {"base": "resnet18.a1_in1k"}, ValueError, "is no ViT"),
            ("head", {"base": "vit_base_patch16_224.mae"}, ValueError, "64 channels wide, .*mae has 768"),
            ("head", {"base": TINY, "merged": True}, ValueError, "merged=True pushes a model"),
            ("linear", {"base": TINY}, TypeError, "denoiser head or a model of timm.create_model"),
            ("features", {}, TypeError, "features_only"),
            ("nan", {"base": TINY}, ValueError, "pos_embed are not finite"),
            ("model", {"base": "vit_large_patch16_224.mae"}, ValueError, "the model is a test_vit, its base cannot be"),
            ("untagged", {}, ValueError, "does not say its tag"),
        ],
    )
    def test_nothing_is_sent(
        self, hub: Hub, head: Any, pushed: str, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        things = {"head": head, "linear": torch.nn.Linear(2, 2)}
        things["model"] = timm.create_model(TINY, denoiser=head)
        things["untagged"] = timm.create_model("test_vit", pretrained_cfg={"num_classes": 0}, denoiser=head)
        things["nan"] = random_head(64)
        torch.nn.init.constant_(things["nan"].pos_embed, float("nan"))
        if pushed == "features":
            things["features"] = timm.create_model(TINY, denoiser=head, features_only=True, out_indices=[-1])
        with pytest.raises(error, match=message):
            dvt_timm.push_to_hub(things[pushed], "me/x", **options)
        assert hub.asked("POST") == []

    def test_a_name_that_is_none(self, hub: Hub, head: Any) -> None:
        for name in ("me/x/y", "x"):
            with pytest.raises(ValueError, match="repo_id must be 'user/repo'"):
                dvt_timm.push_to_hub(head, name, base=TINY)
        with pytest.raises(ValueError, match="cannot push to me/a b"):
            dvt_timm.push_to_hub(head, "me/a b", base=TINY)


class TestXetFaults:
    def test_every_refusal_says_what_to_do(self, hub: Hub, head: Any) -> None:
        if not huggingface_hub.utils.is_package_available("hf_xet"):
            pytest.skip("hf_xet is not installed")
        for step in ("xet-write-token", "POST /xet/v1/shards"):
            fault = hub.fail(step, status=403)
            unsent = random_head(64, seed=len(step))  # xet does not send again what it has sent
            with pytest.raises(OSError, match=r"cannot push to me/head: .*(HF_TOKEN|DISABLE_XET)"):
                dvt_timm.push_to_hub(unsent, "me/head", base=TINY)
            fault.times = 0
        dvt_timm.push_to_hub(head, "me/head", base=TINY)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)


@pytest.mark.usefixtures("plain_storage")
class TestFaults:
    def push(self, head: Any, **options: Any) -> Any:
        return dvt_timm.push_to_hub(head, "me/head", **{"base": TINY, **options})

    def push_fails(self, head: Any, error: type[Exception], *words: str, repo: str = "me/head") -> None:
        with pytest.raises(error) as caught:
            dvt_timm.push_to_hub(head, repo, base=TINY)
        for word in (f"cannot push to {repo}: ", *words):
            assert word in str(caught.value)
        assert "hf_" not in str(caught.value).replace("hf_xet", "")

    def test_without_a_token(self, hub: Hub, head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        hub.absent.add("me/head")
        self.push_fails(head, HfHubHTTPError, "`hf auth login`", "HF_TOKEN")

    def test_with_a_token_that_may_not(self, hub: Hub, head: Any) -> None:
        hub.repo("you/head", {CARD: b""})
        self.push_fails(
            head, HfHubHTTPError, "does not allow it (403)", "with a token that may do this", repo="you/head"
        )
        hub.absent.add("you/none")
        self.push_fails(head, HfHubHTTPError, "does not allow it (403)", repo="you/none")

    STEPS = (
        "repos/create",
        "paths-info",
        "validate-yaml",
        "preupload",
        "objects/batch",
        "PUT /upload",
        "commit/main",
    )

    @pytest.mark.parametrize("status", [500, 503])
    @pytest.mark.parametrize("step", STEPS)
    def test_5xx_at_each_step_then_again(self, hub: Hub, head: Any, step: str, status: int) -> None:
        fault = hub.fail(step, status=status)
        self.push_fails(head, OSError, "no JSON" if step == "validate-yaml" else str(status), "again")
        fault.times = 0
        self.push(head)
        repo = hub.repos["me/head"]
        assert len(repo.commits) == 2  # the first one is the Hub's own
        assert len(hub.uploads) == 1
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_the_bases_repository_fails(self, hub: Hub, head: Any) -> None:
        hub.fail("HEAD /timm", status=503)
        with pytest.warns(
            UserWarning, match=rf"SHA-256 .* not recorded: .*timm/{TINY}/{WEIGHTS}: the Hub fails \(503\)"
        ):
            self.push(head)
        assert json.loads(hub.repos["me/head"].files()[CONFIG])["base_sha256"] is None

    def test_429(self, hub: Hub, head: Any) -> None:
        Hurried.waited.clear()
        hub.fail("preupload", times=1, status=429, headers={"Retry-After": "7"})
        self.push(head)
        assert 8.0 in Hurried.waited
        hub.fail("commit/main", status=429)
        self.push_fails(random_head(64, seed=5), HfHubHTTPError, "too many requests (429)")

    @pytest.mark.parametrize("step", STEPS)
    def test_connection_reset_then_again(self, hub: Hub, head: Any, step: str) -> None:
        fault = hub.fail(step, reset="before")
        self.push_fails(head, OSError, "run it again")
        fault.times = 0
        self.push(head)
        assert len(hub.repos["me/head"].commits) == 2

    def test_interrupted_after_the_commit_landed(self, hub: Hub, head: Any, storage: None) -> None:
        hub.fail("commit/main", times=1, reset="done")
        self.push_fails(head, OSError, "the transfer failed", "run it again")
        landed = hub.repos["me/head"].branches["main"]
        assert self.push(head).oid == landed
        assert len(hub.repos["me/head"].commits) == 2
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_again_with_other_weights(self, hub: Hub, head: Any) -> None:
        self.push(head)
        better = random_head(64, (5, 4), seed=9)
        self.push(better)
        repo = hub.repos["me/head"]
        assert len(repo.commits) == 3
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), better)

    def test_a_full_disk(self, hub: Hub, head: Any) -> None:
        with full_disk(), pytest.raises(OSError, match=r"cannot write .*too large"):
            self.push(head)
        assert hub.asked("POST") == []
