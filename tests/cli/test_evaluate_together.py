"""`dvt-timm evaluate` on two processes (Gloo, started as accelerate does): the figures are those of one."""

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
from evaluating import DATA
from helpers import TINY, photos, random_head

import dvt_timm
from dvt_timm.cli import main as cli

pytestmark = pytest.mark.slow
ROWS = ["--model", TINY, "--weights", "saved", "--denoiser", "head", "--projection", "5"]
SMALL = ["--size", "64"]
TRAINED = [*SMALL, "--steps", "4", "--train-batch", "4"]
PAPER = ["segmentation", "segmentation", *TRAINED, "--protocol", "paper"]
COMMANDS = {
    "artifacts": ["artifacts", "photos", *SMALL],
    "uncached": ["artifacts", "photos", *SMALL, "--cache", "0"],
    "knn": ["segmentation", "segmentation", *SMALL],
    "paper": PAPER,
    "depth": ["depth", "depth", *TRAINED, "--as-released"],
    "correspondence": ["correspondence", "correspondence", *SMALL],
    "propagation": ["propagation", "propagation", *SMALL],
    "discovery": ["discovery", "discovery", "--size", "48", "64"],
}
WORKER = """
import json, os, signal, sys, time
from dvt_timm.cli import main as cli
from dvt_timm.evaluate import rows
from dvt_timm.evaluate.tasks import training
kind, commands = sys.argv[1], json.loads(sys.argv[2])
features = rows.Rows.features
training.EVERY = 1
def failing(self, name, pixels):
    if self.team.rank == 0:
        time.sleep(100)
    raise ValueError("the second process fails")
def killed(self, pixels):
    self.steps = getattr(self, "steps", 0) + 1
    if self.steps == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return features(self, pixels)
if kind == "failing":
    rows.Rows._see = failing
if kind == "killed":
    rows.Rows.features = killed
sys.exit(max([cli.main(command) for command in commands]))
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start commands on two processes, in a folder with data of every task, a model and a head."""
    torch.manual_seed(3)
    dvt_timm.save_model(timm.create_model(TINY), tmp_path / "saved")
    dvt_timm.save_head(random_head(64), tmp_path / "head", base=TINY)
    photos(tmp_path / "photos", 9)
    (tmp_path / "photos/bad.jpg").write_text("no image")
    for task, make in DATA.items():
        (tmp_path / task).mkdir()
        make(tmp_path / task)
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*commands: list[str], kind: str = "") -> Any:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py"]
        options: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
        return subprocess.run([*launch, kind, json.dumps(commands)], timeout=600, check=False, **options)

    return run


def evaluate(command: list[str], out: str) -> list[str]:
    return ["evaluate", *command, *ROWS, "--out", out]


def report_of(folder: str) -> dict[str, Any]:
    """What a run found; the projection is the same up to rounding, its hash need not be."""
    found = json.loads(Path(folder, "report.json").read_text())
    found["settings"].pop("SHA-256 of projection")
    return found


def assert_same(found: Any, expected: Any) -> None:
    """Compare reports, numbers up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected)


def test_two_processes_are_one(start: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Every task; a broken photo is told of once."""
    done = start(*(evaluate(command, f"two/{name}") for name, command in COMMANDS.items()))
    assert done.returncode != 0  # a photo was skipped
    statuses = [cli.main(evaluate(command, f"one/{name}")) for name, command in COMMANDS.items()]
    assert statuses == [1, 1, 0, 0, 0, 0, 0, 0]
    printed = capsys.readouterr()
    assert done.stdout.replace("two/", "one/") == printed.out, done.stderr
    assert done.stderr.count("skipped photos/bad.jpg") == printed.err.count("skipped photos/bad.jpg") == 2
    for report in sorted(Path("one").rglob("report.json")):
        folder = report.parent.relative_to("one")
        assert_same(report_of(f"two/{folder}"), report_of(f"one/{folder}"))


def test_two_that_were_killed_go_on(start: Callable[..., Any]) -> None:
    """As two or as one: the probes are those of a run that was not stopped."""
    assert start(evaluate(PAPER, "run"), kind="killed").returncode != 0
    assert torch.load("run/probe.pt", weights_only=True)["step"] == 2
    Path("other").mkdir()
    Path("other/probe.pt").write_bytes(Path("run/probe.pt").read_bytes())
    assert start(evaluate(PAPER, "run")).returncode == 0
    assert cli.main(evaluate(PAPER, "other")) == cli.main(evaluate(PAPER, "whole")) == 0
    whole = torch.load("whole/probe.pt", weights_only=True)["heads"]
    for run in ("run", "other"):
        assert_same(report_of(run), report_of("whole"))
        torch.testing.assert_close(torch.load(f"{run}/probe.pt", weights_only=True)["heads"], whole)


@pytest.mark.parametrize(
    ("kind", "command", "message"),
    [
        ("failing", COMMANDS["knn"], "the second process fails"),
        ("", ["depth", "depth", *SMALL, "--train-batch", "3"], "batch_size 3 must be a multiple of 2, the processes"),
        ("", ["depth", "depth", "--size", "48", "64"], "the paper's probes have sizes of their own"),
    ],
)
def test_one_of_them_says_what_failed(start: Callable[..., Any], kind: str, command: list[str], message: str) -> None:
    """Where one fails, where both do, and before they have met."""
    failed = start(evaluate(command, "out"), kind=kind)
    assert failed.returncode != 0
    assert failed.stderr.count("dvt-timm: ") == 1
    assert f"dvt-timm: error: {message}" in failed.stderr
    assert failed.stdout == ""
