"""`dvt-timm weights pin` and `check`: the manifest's pins against a Hub of our own."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_head
from hub_server import Hub

from dvt_timm import manifest
from dvt_timm.cli import main as cli
from dvt_timm.manifest import Published, published_variants, weights_path
from dvt_timm.publish import pins

REPO = "jjiaweiyang/DVT"


@pytest.fixture
def published(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """Every file of the manifest in the authors' repository; the bytes are a head's."""
    torch.save({"denoiser": random_head(64, (4, 4)).state_dict(), "lr": np.float64(1)}, tmp_path / "head.pth")
    data = (tmp_path / "head.pth").read_bytes()
    files = {
        variant.weights.file: data
        for variant in published_variants().values()
        if isinstance(variant.weights, Published)
    }
    assert len(files) == 22
    hub.repo(REPO, files)
    return files


@pytest.fixture
def own_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's data in the place of the package's."""
    folder = tmp_path / "weights"
    shutil.copytree(weights_path(""), folder, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (manifest, pins):
        monkeypatch.setattr(module, "weights_path", lambda file: folder / file)
    forget()
    yield folder / "manifest.json"
    monkeypatch.undo()
    forget()


def forget() -> None:
    """Read the manifest anew."""
    manifest.read_manifest.cache_clear()
    manifest.published_variants.cache_clear()


def test_writing_the_manifest_changes_nothing_else() -> None:
    text = weights_path("manifest.json").read_text()
    assert pins.format_manifest(json.loads(text)) == text


def test_pin_then_check(hub: Hub, published: dict[str, bytes], own_manifest: Path, capsys: Any) -> None:
    before = json.loads(own_manifest.read_text())
    assert cli.main(["weights", "pin"]) == 0
    assert capsys.readouterr().out.count("  pinned\n") == 22
    forget()
    commit = hub.repos[REPO].branches["main"]
    after = json.loads(own_manifest.read_text())
    for old, new in zip(before["variants"], after["variants"], strict=True):
        if new.get("repo"):
            data = published[new["file"]]
            expected = {"revision": commit, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            assert new == {**old, **expected}
        else:
            assert new == old
    assert {key: value for key, value in after.items() if key != "variants"} == {
        key: value for key, value in before.items() if key != "variants"
    }
    assert len(hub.asked("paths-info")) == 1

    assert cli.main(["weights", "check"]) == 0
    out = capsys.readouterr().out
    assert out.count("  ok\n") == 24
    assert out.splitlines()[0].split() == ["file", "bytes", "SHA-256", "revision", "state"]
    assert hub.asked("GET /large") == []


def test_check_before_anything_is_pinned(
    hub: Hub, published: dict[str, bytes], own_manifest: Path, capsys: Any
) -> None:
    assert cli.main(["weights", "check"]) == 1
    out = capsys.readouterr().out
    assert out.count("  not pinned\n") == 22
    assert out.count("  ok\n") == 2  # the embedded ones


def test_what_check_finds(hub: Hub, published: dict[str, bytes], own_manifest: Path, capsys: Any) -> None:
    assert cli.main(["weights", "pin"]) == 0
    forget()
    changed, gone, *_ = published
    files = hub.repos[REPO].files()
    files[changed] = b"other"
    del files[gone]
    head = own_manifest.parent / "demo/head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"\0")
    (own_manifest.parent / "demo/backbone.safetensors").unlink()
    capsys.readouterr()
    assert cli.main(["weights", "check"]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert f"differs: {hashlib.sha256(b'other').hexdigest()} on the Hub" in lines[f"{REPO}:{changed}"]
    assert "not on the Hub" in lines[f"{REPO}:{gone}"]
    assert "differs; install dvt-timm again" in lines["embedded:demo/head.safetensors"]
    assert "missing; install dvt-timm again" in lines["embedded:demo/backbone.safetensors"]
    assert sum(line.endswith("  ok") for line in lines.values()) == 20


def test_check_with_download(hub: Hub, published: dict[str, bytes], own_manifest: Path, capsys: Any) -> None:
    """Heads are read; as distilled weights, a head is not usable."""
    broken = next(iter(published))
    hub.repos[REPO].commit({broken: b"no checkpoint"})
    assert cli.main(["weights", "pin"]) == 0
    forget()
    capsys.readouterr()
    assert cli.main(["weights", "check", "--download"]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "unusable: " in lines[f"{REPO}:{broken}"]
    heads = [file for file in published if "denoised" in file and file != broken]
    assert all(lines[f"{REPO}:{file}"].endswith("  ok") for file in heads)


@pytest.mark.parametrize("missing", ["a file", "its hash"])
def test_pin_is_all_or_nothing(
    hub: Hub, published: dict[str, bytes], own_manifest: Path, missing: str, capsys: Any, monkeypatch: Any
) -> None:
    before = own_manifest.read_bytes()
    file = next(iter(published))
    if missing == "a file":
        del hub.repos[REPO].files()[file]
    else:
        monkeypatch.setattr("hub_server.is_large", lambda path: path != file)
    assert cli.main(["weights", "pin"]) == 2
    assert f"has no large file {file}; nothing was written" in capsys.readouterr().err
    assert own_manifest.read_bytes() == before


@pytest.mark.parametrize("command", ["pin", "check"])
@pytest.mark.parametrize("step", ["GET /api/models", "paths-info"])
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_fails(
    hub: Hub, published: Any, own_manifest: Path, step: str, status: int, command: str, capsys: Any
) -> None:
    before = own_manifest.read_bytes()
    hub.fail(step, status=status)
    assert cli.main(["weights", command]) == 2
    assert capsys.readouterr().err.startswith(f"dvt-timm: error: cannot look up the files of {REPO} at main: the Hub")
    assert own_manifest.read_bytes() == before


def test_another_revision(hub: Hub, published: Any, own_manifest: Path, capsys: Any) -> None:
    repo = hub.repos[REPO]
    repo.branches["v1"] = repo.branches["main"]
    repo.commit({"README.md": b"later"})
    assert cli.main(["weights", "pin", "--revision", "v1"]) == 0
    rows = [row for row in json.loads(own_manifest.read_text())["variants"] if row.get("repo")]
    assert {row["revision"] for row in rows} == {repo.branches["v1"]}
    assert cli.main(["weights", "pin", "--revision", "v9"]) == 2
    assert "no such revision" in capsys.readouterr().err
