"""Numbers of a run: the released ones, and those that are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dvt_timm.train import TrainConfig
from dvt_timm.train.config import DISTILL_PRESETS, TRAIN_PRESETS


def test_learning_rate() -> None:
    config = TrainConfig(steps=1000, batch_size=64)
    assert config.peak_lr == pytest.approx(1e-4)  # 2e-4 * sqrt(64 / 256)
    assert [config.rate(step) for step in (0, 75, 150)] == pytest.approx([0, 0.5e-4, 1e-4])
    assert config.rate(575) == pytest.approx((1e-4 + 1e-6) / 2)
    assert config.rate(1000) == pytest.approx(1e-6)
    assert TrainConfig(lr=3e-4).peak_lr == 3e-4


def test_presets() -> None:
    assert TRAIN_PRESETS["released"].config(10_000) == TrainConfig(steps=50_000, batch_size=128)
    assert TRAIN_PRESETS["paper"].config(10_000) == TrainConfig(steps=1562, batch_size=64)
    assert TRAIN_PRESETS["paper"].config(10_000, batch_size=100).steps == 1000
    assert TRAIN_PRESETS["paper"].config(10_000, steps=7) == TrainConfig(steps=7, batch_size=64)
    assert DISTILL_PRESETS["paper"].config(1_281_167).steps == 5 * 1_281_167 // 512


def test_presets_go_no_more_than_a_thousand_times_through_the_pairs() -> None:
    released = TRAIN_PRESETS["released"].config(6)
    assert released.steps == 6 * 1_000 // 128
    released.check_passes(6)
    assert TRAIN_PRESETS["released"].config(6, most_passes=100).steps == 6 * 100 // 128
    assert TRAIN_PRESETS["quick"].config(1, batch_size=2000).steps == 1
    assert TRAIN_PRESETS["paper"].config(6, steps=50_000).steps == 50_000  # which the run refuses


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"50,000 steps of 128 go 1,066,667 times through 6 pairs.* at most 46 steps"):
        TrainConfig().check_passes(6)
    TrainConfig(most_passes=2e6).check_passes(6)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 5, "accumulation": 2}, "must be a multiple of accumulation 2"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"warmup": 1.0}, "0 <= warmup < 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"held_out": 0}, "held_out must be at least 1"),
        ({"most_passes": 0.0}, "most_passes must be positive"),
    ],
)
def test_numbers_out_of_range(numbers: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrainConfig(**numbers)
