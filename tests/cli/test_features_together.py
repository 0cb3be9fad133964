"""`dvt-timm features` on two processes (Gloo, started as accelerate does): each its share, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command import written
from helpers import TINY, photos, random_head
from safetensors.torch import load_file

import dvt_timm
from dvt_timm.cli import main as cli
from dvt_timm.cli.shards import rows_in

pytestmark = pytest.mark.slow
WORKER = """
import json, os, signal, sys, time
from dvt_timm.cli import main as cli
from dvt_timm.cli import results, shards
kind, command = sys.argv[1], json.loads(sys.argv[2])
if kind:
    where = shards.Shards if "--shards" in command else results.Files
    add = where.add
    def dying(self, features):
        if os.environ["RANK"] == "1" and features.index == 5:
            while not os.path.exists("far"):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["RANK"] == "0" and features.index == 7:
            open("far", "w").close()
            time.sleep(100)
        return add(self, features)
    where.add = dying
sys.exit(cli.main(command))
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start a command on two processes, in a folder with 20 photos, one of which is none, and a model."""
    torch.manual_seed(3)
    dvt_timm.save_model(timm.create_model(TINY, denoiser=random_head(64)), tmp_path / "saved")
    photos(tmp_path / "photos", 19)
    (tmp_path / "photos/bad.jpg").write_text("no image")
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(command: list[str], kind: str = "") -> Any:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py"]
        options: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
        return subprocess.run([*launch, kind, json.dumps(command)], timeout=300, check=False, **options)

    return run


def command(out: str, *options: str) -> list[str]:
    return ["features", "photos", "--weights", "saved", "--size", "32", "--batch-size", "2", "--out", out, *options]


def maps_in(folder: str) -> dict[str, Any]:
    """The denoised map of every image, by its name."""
    rows = rows_in(Path(folder))
    if rows:
        return {name: load_file(Path(folder, row["shard"]))[f"{row['sha256']}.denoised"] for name, row in rows.items()}
    return {path.stem: load_file(path)["denoised"] for path in Path(folder).glob("*.safetensors")}


@pytest.mark.parametrize("options", [[], ["--shards", "4"]])
def test_two_processes_are_one_and_one_may_die(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    killed = start(command("two", *options), kind="dying")
    assert killed.returncode != 0
    done = len(maps_in("two"))
    assert done == (5 + 7 if not options else 4 + 7)  # of the second one's shards, that in work is lost
    resumed = start(command("two", *options))
    assert resumed.returncode != 0  # a photo was skipped
    assert f"dvt-timm: {done} of 20 images were done before" in resumed.stderr
    assert resumed.stderr.count("skipped photos/bad.jpg: ") == 1
    assert resumed.stderr.count("dvt-timm: 1 of 20 inputs skipped") == 1
    assert cli.main(command("one", *options)) == 1
    one, two = maps_in("one"), maps_in("two")
    assert one.keys() == two.keys() == {str(i) for i in range(19)}
    for name, fmap in one.items():
        torch.testing.assert_close(two[name], fmap)
    assert [name for name in written(Path("two")) if name.startswith(".") and name != ".lock"] == []
    capsys.readouterr()
    assert cli.main(command("two", *options)) == 1  # one process goes on where two have ended
    assert "dvt-timm: 19 of 20 images were done before" in capsys.readouterr().err
