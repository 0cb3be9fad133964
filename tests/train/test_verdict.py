"""The verdict on what was trained: planted cases whose answer is known, and runs that end in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import TINY, fitter, photos
from torch import Tensor
from training import planted, store_of, teacher

from dvt_timm.evaluate import PositionProjection
from dvt_timm.offline import FeatureStore
from dvt_timm.train import OnlinePairs, TrainConfig, distill, train_denoiser
from dvt_timm.train.loop import Trainer
from dvt_timm.train.verdict import judge, sentences


def parts(count: int = 12) -> tuple[list[Tensor], list[Tensor], PositionProjection]:
    """Content of random directions, the same with the patch's place in one of them, and what takes that away."""
    draw = torch.Generator().manual_seed(0)
    clean = [torch.randn(6, 6, 16, generator=draw) for _ in range(count)]
    y, x = torch.meshgrid(torch.linspace(-3, 3, 6), torch.linspace(-3, 3, 6), indexing="ij")
    raw = [each + torch.stack([x, y], dim=-1) @ torch.eye(2, 16) for each in clean]
    return raw, clean, PositionProjection.fit(raw, rank=2)


def test_a_head_that_knows_the_answer() -> None:
    raw, clean, projection = parts()
    report = judge(raw, clean, clean, projection, {"base": "x"}, [str(i) for i in range(12)])
    assert report.figures["trained"]["error to the targets"].value == 0
    assert report.figures["plain"]["position leakage"].value > 0.3
    assert report.figures["trained"]["position leakage"].value < 0.1
    assert report.figures["projection"]["position leakage"].value < 0.1
    assert not report.is_worse("trained")
    first, second = sentences(report)
    assert first.startswith("trained: better than plain by")
    assert second.startswith("trained: better than projection by")
    squares = sum(float((a - b).square().sum()) for a, b in zip(raw, clean, strict=True))
    mean = torch.cat([c.flatten(0, 1) for c in clean]).mean(dim=0)
    spread = sum(float((c - mean).square().sum()) for c in clean)
    assert report.figures["plain"]["error to the targets"].value == pytest.approx(squares / spread, rel=1e-4)


def test_a_head_that_does_harm() -> None:
    raw, clean, projection = parts()
    harmed = [each + 5 * torch.randn(each.shape, generator=torch.Generator().manual_seed(1)) for each in raw]
    report = judge(raw, harmed, clean, projection, {}, [])
    assert report.is_worse("trained")
    assert sentences(report)[0].startswith("trained: worse than plain by")
    assert sentences(judge(raw, harmed, clean, None, {}, [])) == sentences(report)[:1]


def test_three_images_have_no_leakage() -> None:
    raw, clean, projection = parts()
    figures = judge(raw[:3], clean[:3], clean[:3], projection, {}, []).figures
    assert figures["trained"].keys() == {"error to the targets"}


def test_the_best_weights_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trainer.train

    def ending_badly(trainer: Trainer) -> None:
        train(trainer)
        for parameter in trainer.module.parameters():
            parameter.data.zero_()  # the last weights are not the best

    monkeypatch.setattr(Trainer, "train", ending_badly)
    store = store_of(tmp_path / "store", planted(40))
    config = TrainConfig(steps=60, batch_size=8, lr=3e-3, workers=0, held_out=12, eval_every=20)
    report = train_denoiser(store, TINY, tmp_path / "run", config)
    assert report is not None
    (metrics,) = json.loads((tmp_path / "run/metrics.json").read_text()).values()
    for row, metric in (("trained", "error"), ("plain", "error, raw features")):
        assert report.figures[row]["error to the targets"].value == pytest.approx(metrics[metric], abs=1e-4)
    written = json.loads((tmp_path / "run/verdict.json").read_text())
    assert written["worse"] is False
    assert written["sentences"][0].startswith("trained: better than plain by")
    assert written["count"] == 12
    card = (tmp_path / "run/README.md").read_text()
    assert all(f"- {sentence}" in card for sentence in written["sentences"])


def test_images_that_are_gone_leave_the_projection_out(tmp_path: Path) -> None:
    """The run has done its work; it ends with its files whole."""
    paths = photos(tmp_path / "photos", 4)

    class Vanishing(OnlinePairs):
        def raw(self, i: int) -> Tensor:
            shutil.rmtree(tmp_path / "photos", ignore_errors=True)
            return super().raw(i)

    config = TrainConfig(steps=2, batch_size=2, workers=0, held_out=1)
    report = train_denoiser(Vanishing(paths, fitter()), TINY, tmp_path / "run", config)
    assert report is not None
    assert report.figures.keys() == {"plain", "trained"}
    assert (tmp_path / "run/README.md").is_file()


def test_raw_maps_online_are_those_of_the_pairs(tmp_path: Path) -> None:
    pairs = OnlinePairs(photos(tmp_path / "photos", 1), fitter())
    torch.testing.assert_close(pairs.raw(0), pairs[0][0], rtol=1e-4, atol=1e-4)


def test_a_student(tmp_path: Path) -> None:
    config = TrainConfig(steps=2, batch_size=2, workers=0, held_out=2)
    report = distill(teacher(), photos(tmp_path / "photos", 5), tmp_path / "run", config, base=TINY)
    assert report is not None
    assert report.figures.keys() == {"plain", "trained", "projection"}
    (metrics,) = json.loads((tmp_path / "run/metrics.json").read_text()).values()
    assert report.figures["trained"]["error to the targets"].value == pytest.approx(metrics["error"], abs=1e-4)


def test_too_many_passes_are_refused_before_anything_is_trained(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"go .* times through .* pairs"):
        train_denoiser(store, TINY, tmp_path / "run", TrainConfig())
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_a_run_says_how_long_it_will_take(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(steps=21, batch_size=4, workers=0, held_out=1)
    train_denoiser(store, TINY, tmp_path / "run", config, progress=True)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(tmp_path / "run"))]
    assert len(said) == 2
    assert f"21 steps of 4, {84 / len(store):.1f} times through {len(store)} pairs" in said[0]
    assert "to go" in said[1]
