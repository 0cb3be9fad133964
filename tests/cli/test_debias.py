"""`dvt-timm debias`: a projection from photos, in the place of a head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from helpers import TINY, random_head

import dvt_timm
from dvt_timm._util.files import sha256_of
from dvt_timm._util.images import read_image
from dvt_timm.evaluate import PositionProjection
from dvt_timm.features import feature_maps, preprocess


def test_it_is_fitted_to_the_raw_maps_of_photos(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/bad.jpg").write_text("no image")
    assert command("debias", "photos", "gone.png", "--model", TINY, "--out", "head", "--rank", "5", "--size", "64") == 1
    captured = capsys.readouterr()
    assert captured.out == "head: 5 of 64 dimensions, found on 8 photos\n"
    assert "skipped photos/bad.jpg: not a JPEG, PNG or WebP image" in captured.err
    assert "skipped gone.png: not found" in captured.err
    assert "8 photos are few" in captured.err
    assert "2 of 10 inputs skipped" in captured.err
    model = timm.create_model(TINY, pretrained=True, num_classes=0, dynamic_img_size=True).eval()
    with torch.inference_mode():
        inputs = [preprocess(model, read_image(Path(f"photos/{i}.png")), 64) for i in range(8)]
        maps = [feature_maps(model, pixels).raw[0].permute(1, 2, 0) for pixels in inputs]
    assert maps[0].shape == (4, 5, 64)
    expected = PositionProjection.fit(maps, 5)
    found = dvt_timm.load_head("head")
    torch.testing.assert_close(found.basis @ found.basis.T, expected.basis @ expected.basis.T, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mean, expected.mean)
    timm.create_model("local-dir:head", pretrained=True)


def test_of_weights_of_ones_own(command: Callable[..., int]) -> None:
    torch.manual_seed(1)
    timm.models.save_for_hf(timm.create_model(TINY), "mine", model_config={}, safe_serialization=True)
    weights = "mine/model.safetensors"
    assert command("debias", "photos", "--model", TINY, "--weights", weights, "--out", "head", "--rank", "5") == 0
    assert dvt_timm.load_head("head").source.base_sha256 == sha256_of(Path(weights))
    with pytest.warns(UserWarning, match=f"the head was trained on other weights of {TINY}"):
        timm.create_model(TINY, pretrained=True, denoiser="head")


def test_what_stops_it_is_one_line(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad").mkdir()
    Path("bad/a.jpg").write_text("no image")
    for arguments, message in (
        (["nothing"], "no image in nothing"),
        (["photos", "--rank", "64"], f"--rank must be below 64, the channels of {TINY}"),
        (["bad"], "at least one map"),
    ):
        assert command("debias", *arguments, "--model", TINY, "--out", "head") == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("head").exists()


def test_training_does_not_begin_with_a_projection(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("debias", "photos", "--model", TINY, "--out", "head", "--rank", "5") == 0
    dvt_timm.save_head(random_head(64), "other", base=TINY)
    train = ["train", "--online", "photos", "--base", TINY, "--out", "run", "--initial-head"]
    assert command(*train, "head") == 2
    assert "--initial-head head is a PositionProjection, which is not trained" in capsys.readouterr().err


def test_what_training_left_is_not_replaced(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    dvt_timm.save_head(random_head(64), "head", base=TINY)
    dvt_timm.save_model(timm.create_model(TINY, pretrained=True), "whole")
    for folder in ("head", "whole"):
        before = Path(folder, "config.json").read_bytes()
        assert command("debias", "photos", "--model", TINY, "--out", folder, "--rank", "4") == 2
        assert f"{folder} holds a head or model that is no projection; choose another folder" in capsys.readouterr().err
        assert Path(folder, "config.json").read_bytes() == before
