"""`torch.hub.load` of this repository gives denoised models."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers import DEMO, ROOT, images, random_head, same_weights

import dvt_timm


def test_a_name() -> None:
    model = torch.hub.load(str(ROOT), "dvt", DEMO, source="local")
    assert isinstance(model, dvt_timm.DenoisedVisionTransformer)
    assert same_weights(model, timm.create_model(DEMO, pretrained=True))


def test_arguments_go_to_timm() -> None:
    options = {"pretrained": False, "depth": 1, "denoiser": random_head(384), "stride": 7}
    model = torch.hub.load(str(ROOT), "dvt", "vit_small_patch14_dinov2", source="local", **options)
    assert model.denoiser is options["denoiser"]
    assert model.eval().forward_features(images(28, 28)).shape == (2, 1 + 3 * 3, 384)


def test_its_entry() -> None:
    """torch.hub lists every public callable and shows its docstring; what it needs are names that Python can find."""
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")] == ["dvt"]
    assert "dvt_timm.list_variants()" in module.dvt.__doc__
    assert all(importlib.util.find_spec(name) for name in module.dependencies)


@pytest.mark.slow
def test_without_an_installation(tmp_path: Path) -> None:
    """The folder alone is enough, and what is imported later is found too."""
    code = f"""
import torch
model = torch.hub.load({str(ROOT)!r}, "dvt", {DEMO!r}, source="local")
import dvt_timm
print(dvt_timm.__file__, dvt_timm.viz.__file__)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / f"dvt_timm/{place}__init__.py") for place in ("", "viz/")]
