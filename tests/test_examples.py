"""The examples run as they are, without a network."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart() -> None:
    output = run("examples/quickstart.py")
    assert "forward_features (1, 1370, 384)" in output
    assert "class token unchanged True" in output


def test_swap_backbone() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    assert "the mask depends on the head: True" in run("examples/swap_backbone.py")


def test_forward_benchmark() -> None:
    output = run("examples/benchmarks/forward.py", "--quick")
    assert "denoised/minimal" in output
    assert output.count("vit_small_patch14_dinov2") >= 1
