"""The log of a run that was stopped goes on without a gap."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from helpers import TINY
from training import SHORT, InterruptingStore

from dvt_timm.offline import FeatureStore
from dvt_timm.train import RunInterruptedError, train_denoiser
from dvt_timm.train.log import RunLog, read_log


def test_the_log_goes_on_from_the_checkpoint(store: FeatureStore, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunInterruptedError):
        train_denoiser(InterruptingStore(store, after=3 * 4), TINY, run, SHORT)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "group": "train", "loss": 1.0}\n{"step": 6, "gro')
    train_denoiser(store, TINY, run, SHORT)
    assert [(line["step"], line["group"]) for line in read_log(run)] == [
        (2, "train"), (3, "train"), (4, "train"), (4, "held out"), (6, "train"), (6, "held out")
    ]  # fmt: skip


def test_a_log_is_cut_at_the_step_that_it_goes_on_from(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with closing(RunLog(tmp_path, start)) as log:
            for step in steps:
                log.write(step, "train", {"loss": start + step})
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == [(1, 1), (2, 2), (3, 5), (4, 6)]
