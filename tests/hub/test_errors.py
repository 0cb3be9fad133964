"""What goes wrong while pulling: the right outcome, an error that names repository, file and remedy, a clean cache."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from helpers import TINY, Hurried, blobs, full_disk, same_weights, serve_head
from hub_server import Hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import dvt_timm

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LARGE = r"GET /large/"


@pytest.fixture(autouse=True)
def plain_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are those of the plain protocol; a short patience makes slow servers fail soon."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)


def load_fails(error: type[Exception], *words: str, source: str = "hf-hub:me/head") -> Exception:
    """The error of loading a head, whose one sentence holds these words."""
    with pytest.raises(error) as caught:
        dvt_timm.load_head(source)
    text = str(caught.value)
    for word in ("cannot get me/", *words):
        assert word in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    return caught.value


def assert_clean(cache: Path, *complete: str) -> None:
    """Nothing in the cache but these files of the head's repository, whole."""
    assert list(cache.rglob("*.incomplete")) == []
    found = [path.name for path in cache.glob("models--me--head/snapshots/*/*")]
    assert sorted(found) == sorted(complete)
    assert len(blobs(cache)) == len(complete)


class TestNoNetwork:
    @pytest.fixture
    def unplugged(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """An endpoint where nobody listens."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{free.getsockname()[1]}"

    def unplug(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def test_nothing_cached(self, cache: Path, unplugged: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unplug(monkeypatch, unplugged)
        remedy = "check network, proxy and HF_ENDPOINT, or pass a head of your own as denoiser=..."
        load_fails(LocalEntryNotFoundError, f"me/head/{CONFIG}", f"{unplugged} cannot be reached", remedy, "dvt_demo")
        with pytest.raises(LocalEntryNotFoundError, match=r"cannot get jjiaweiyang/DVT/voc_denoised/vit_small.*\.pth"):
            timm.create_model("vit_small_patch14_dinov2.dvt", pretrained=True)
        assert_clean(cache)

    def test_head_cached_but_not_the_base(
        self, hub: Hub, head: Any, unplugged: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dvt_timm.load_head("hf-hub:me/head")
        self.unplug(monkeypatch, unplugged)
        with pytest.raises(LocalEntryNotFoundError, match=rf"cannot get timm/{TINY}/{WEIGHTS}: .*cannot be reached"):
            timm.create_model(TINY, pretrained=True, denoiser="hf-hub:me/head")

    def test_all_cached(self, hub: Hub, head: Any, base: Any, unplugged: str, monkeypatch: pytest.MonkeyPatch) -> None:
        online = timm.create_model("hf-hub:me/head", pretrained=True)
        self.unplug(monkeypatch, unplugged)
        assert same_weights(timm.create_model("hf-hub:me/head", pretrained=True), online)

    def test_offline_flag(self, hub: Hub, head: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        load_fails(LocalEntryNotFoundError, f"me/head/{CONFIG}", "HF_HUB_OFFLINE is set", "unset it")
        assert hub.requests == []
        assert_clean(cache)


class TestRefusals:
    def test_401_without_a_token(self, hub: Hub, tmp_path: Path, cache: Path) -> None:
        serve_head(hub, tmp_path, private=True)
        load_fails(RepositoryNotFoundError, f"me/head/{CONFIG}", "it is private", "`hf auth login` or set HF_TOKEN")
        assert_clean(cache)

    def test_401_with_a_wrong_token(self, hub: Hub, head: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        error = load_fails(HfHubHTTPError, f"me/head/{CONFIG}", "does not allow it (401)", "check HF_TOKEN")
        assert "hf_wrong" not in str(error)
        assert_clean(cache)

    @pytest.mark.parametrize("gated", [True, "refused"])
    def test_gated(self, hub: Hub, tmp_path: Path, cache: Path, gated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        serve_head(hub, tmp_path, gated=gated)
        if gated == "refused":  # 403: a token that nobody gave access
            monkeypatch.setenv("HF_TOKEN", "hf_secret")
        load_fails(GatedRepoError, f"me/head/{CONFIG}", f"ask for it at {hub.url}/me/head", "hf auth login")
        assert_clean(cache)

    def test_404_repository(self, hub: Hub, cache: Path) -> None:
        hub.absent.add("me/none")
        load_fails(RepositoryNotFoundError, f"me/none/{CONFIG}", "there is no repository", source="hf-hub:me/none")
        assert_clean(cache)

    @pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
    def test_404_file(self, hub: Hub, head: Any, missing: str, cache: Path) -> None:
        del hub.repos["me/head"].files()[missing]
        error = load_fails(RemoteEntryNotFoundError, f"me/head/{missing}", "no such file", f"{hub.url}/me/head/tree")
        assert error.response.status_code == 404
        assert_clean(cache, *([] if missing == CONFIG else [CONFIG]))

    def test_404_revision(self, hub: Hub, head: Any, cache: Path) -> None:
        words = (f"me/head/{CONFIG} at v9", "no such revision", f"{hub.url}/me/head/commits")
        load_fails(RevisionNotFoundError, *words, source="hf-hub:me/head@v9")
        assert_clean(cache)

    def test_the_authors_repository_without_the_file(self, hub: Hub) -> None:
        hub.repo("jjiaweiyang/DVT", {"README.md": b""})
        with pytest.raises(
            RemoteEntryNotFoundError, match=r"DVT/voc_denoised/vit_small.*\.pth at main: .*no such file"
        ):
            timm.create_model("vit_small_patch14_dinov2.dvt", pretrained=True)


class TestServerTrouble:
    @pytest.mark.parametrize("step", ["HEAD /me", "GET /large"])
    def test_429_is_waited_out(self, hub: Hub, head: Any, step: str) -> None:
        Hurried.waited.clear()
        fault = hub.fail(step, times=2, status=429, headers={"Retry-After": "7"})
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        assert fault.sent == 2
        assert 8.0 in Hurried.waited  # the client adds a second

    @pytest.mark.parametrize("step", ["HEAD /me", "GET /me", "HEAD .*safetensors", "GET /large"])
    def test_429_without_an_end(self, hub: Hub, head: Any, step: str, cache: Path) -> None:
        hub.fail(step, status=429, headers={"Retry-After": "7"})
        load_fails(OSError, "too many requests (429)", "wait some minutes")
        assert_clean(cache, *([CONFIG] if "me" not in step else []))

    @pytest.mark.parametrize("status", [500, 503])
    @pytest.mark.parametrize("step", ["HEAD /me", "GET /me", "HEAD .*safetensors", "GET /large"])
    def test_5xx_at_each_step(self, hub: Hub, head: Any, step: str, status: int, cache: Path) -> None:
        fault = hub.fail(step, status=status)
        load_fails(OSError, "me/head/", f"the Hub fails ({status})", "try again later")
        assert_clean(cache, *([CONFIG] if "me" not in step else []))
        fault.times = 0
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_5xx_of_the_base(self, hub: Hub, head: Any, base: Any, tmp_path: Path) -> None:
        """Nor is another file of the base's repository taken instead, not even from the cache."""
        torch.save(timm.create_model(TINY).state_dict(), tmp_path / "other.bin")
        hub.repos[f"timm/{TINY}"].commit({"pytorch_model.bin": (tmp_path / "other.bin").read_bytes()})
        huggingface_hub.hf_hub_download(f"timm/{TINY}", "pytorch_model.bin")
        hub.requests.clear()
        hub.fail("HEAD /timm/.*safetensors", status=503)
        with pytest.raises(OSError, match=rf"cannot get timm/{TINY}/{WEIGHTS}: the Hub fails \(503\)"):
            timm.create_model("hf-hub:me/head", pretrained=True)
        assert hub.asked("pytorch_model") == []

    @pytest.mark.parametrize("reset", ["before", "in"])
    @pytest.mark.parametrize("step", ["HEAD /me", "GET /me", "HEAD .*safetensors", "GET /large"])
    def test_connection_reset(self, hub: Hub, head: Any, step: str, reset: str, cache: Path) -> None:
        fault = hub.fail(step, reset="before" if step.startswith("HEAD") else reset)
        load_fails(OSError, "cannot get me/head/")
        assert_clean(cache, *([CONFIG] if "me" not in step else []))
        fault.times = 0
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_connection_reset_after_the_body(self, hub: Hub, head: Any) -> None:
        hub.fail("GET", reset="after")
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_truncated_body(self, hub: Hub, head: Any, cache: Path) -> None:
        fault = hub.fail(LARGE, hidden_length=True)
        load_fails(OSError, f"me/head/{WEIGHTS}", "run it again")
        assert_clean(cache, CONFIG)
        fault.times = 0
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    @pytest.mark.parametrize("step", ["GET /me", LARGE])
    def test_a_flipped_byte_is_fetched_once_more(self, hub: Hub, head: Any, step: str) -> None:
        fault = hub.fail(step, times=1, flip=True)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)
        assert fault.sent == 1
        assert len(hub.asked(step)) == 2

    def test_a_byte_flipped_twice(self, hub: Hub, head: Any, cache: Path) -> None:
        hub.fail(LARGE, flip=True)
        with pytest.raises(ValueError, match=rf"me/head/{WEIGHTS} at \w+ was downloaded twice.*another network"):
            dvt_timm.load_head("hf-hub:me/head")
        assert len(hub.asked(LARGE)) == 2
        assert_clean(cache, CONFIG)

    def test_a_flipped_byte_of_the_base(self, hub: Hub, head: Any, base: Any) -> None:
        hub.repos["me/head"].commit({WEIGHTS: hub.repos["me/head"].files()[WEIGHTS]})
        dvt_timm.load_head("hf-hub:me/head")
        hub.fail(LARGE, flip=True)
        with pytest.raises(ValueError, match=rf"timm/{TINY}/{WEIGHTS} at \w+ was downloaded twice"):
            timm.create_model("hf-hub:me/head", pretrained=True)

    def test_slow_but_steady(self, hub: Hub, head: Any) -> None:
        hub.fail(LARGE, pause=0.1)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    def test_too_slow(self, hub: Hub, head: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
        hub.fail(LARGE, pause=0.4)
        load_fails(OSError, f"me/head/{WEIGHTS}", "the transfer failed", "run it again")
        assert_clean(cache, CONFIG)


class TestXet:
    """The client's other way to large files, where `hf_xet` is installed."""

    @pytest.fixture(autouse=True)
    def pushed(self, hub: Hub, head: Any, plain_storage: None, monkeypatch: pytest.MonkeyPatch) -> None:
        if not huggingface_hub.utils.is_package_available("hf_xet"):
            pytest.skip("hf_xet is not installed")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.absent.add(f"timm/{TINY}")
        dvt_timm.push_to_hub(head, "me/xet", base=TINY)

    @pytest.mark.parametrize(
        ("step", "status"),
        [("xet-read-token", 403), ("xet-read-token", 404), ("/xet/v./reconstructions", 404), ("GET /xet/xorbs", 404)],
    )
    def test_refused(self, hub: Hub, head: Any, step: str, status: int, cache: Path) -> None:
        fault = hub.fail(step, status=status)
        load_fails(OSError, f"me/xet/{WEIGHTS}", source="hf-hub:me/xet")
        assert list(cache.rglob("*.incomplete")) == []
        assert list(cache.glob(f"models--me--xet/snapshots/*/{WEIGHTS}")) == []
        fault.times = 0
        assert same_weights(dvt_timm.load_head("hf-hub:me/xet"), head)

    def test_without_it(self, hub: Hub, head: Any) -> None:
        """The remedy that the error names."""
        hub.fail("GET /xet/", status=404)
        load_fails(OSError, "the transfer failed", "HF_HUB_DISABLE_XET=1", source="hf-hub:me/xet")

    def test_full_disk(self, hub: Hub, cache: Path) -> None:
        with full_disk():
            error = load_fails(OSError, f"me/xet/{WEIGHTS}", "the disk is full", source="hf-hub:me/xet")
        assert error.errno == errno.EFBIG
        assert list(cache.glob(f"models--me--xet/snapshots/*/{WEIGHTS}")) == []


class TestDisk:
    def test_full(self, hub: Hub, head: Any, cache: Path) -> None:
        with full_disk():
            error = load_fails(OSError, f"me/head/{WEIGHTS}", "the disk is full", "HF_HOME or cache_dir")
        assert error.errno == errno.EFBIG
        assert_clean(cache, CONFIG)
        assert same_weights(dvt_timm.load_head("hf-hub:me/head"), head)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_no_permission(self, hub: Hub, head: Any, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir(mode=0o500)
        with pytest.raises(OSError, match=r"me/head/config\.json.*check the permissions of the cache"):
            dvt_timm.load_head("hf-hub:me/head", cache_dir=tmp_path / "cache")

    def test_a_file_in_the_place_of_the_cache(self, hub: Hub, head: Any, tmp_path: Path) -> None:
        (tmp_path / "cache").touch()
        with pytest.raises(OSError, match=r"cannot get me/head/config\.json: .*HF_HOME or cache_dir"):
            dvt_timm.load_head("hf-hub:me/head", cache_dir=tmp_path / "cache")


LOAD = "import timm, dvt_timm; timm.create_model('hf-hub:me/head', pretrained=True); print('loaded')"


class TestProcesses:
    @staticmethod
    def start(tmp_path: Path) -> subprocess.Popen:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", LOAD]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @pytest.mark.slow
    def test_killed_in_mid_download_then_two_at_once(self, hub: Hub, head: Any, base: Any, tmp_path: Path) -> None:
        fault = hub.fail(LARGE, pause=30)
        process = self.start(tmp_path)
        deadline = time.monotonic() + 60
        while not hub.asked(LARGE) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        snapshots = (tmp_path / "home/hub").glob("models--*/snapshots/*/*.safetensors")
        assert list(snapshots) == []
        fault.times = 0
        hub.fail(LARGE, pause=0.2)  # so that they meet
        for again in [self.start(tmp_path) for _ in range(2)]:
            out, err = again.communicate(timeout=120)
            assert out == "loaded\n", err
