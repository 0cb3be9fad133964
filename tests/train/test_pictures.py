"""Pictures of a run: step and loss are said, and a strip goes on where the run was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import photo
from PIL import Image
from torch import Tensor
from training import SHORT, InterruptingStore, planted, store_of

from dvt_timm.offline import FeatureStore
from dvt_timm.train import RunInterruptedError, train_denoiser
from dvt_timm.train.pictures import MOST_TILES, Pictures
from dvt_timm.train.stage import Batch


def maps(seed: int) -> Tensor:
    return torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    photo().save(tmp_path / "a.png")
    return tmp_path / "a.png"


def text_of(picture: Path) -> str:
    with Image.open(picture) as opened:
        return opened.text["Description"]  # type: ignore[attr-defined]


def test_a_strip_has_all_steps_and_goes_on(path: Path, tmp_path: Path) -> None:
    batch = Batch(maps(0), maps(0), maps(1))
    whole, first = Pictures(tmp_path / "whole", "of a ViT"), Pictures(tmp_path / "first", "of a ViT")
    for pictures, steps in ((whole, (10, 20)), (first, (10,))):
        for step in steps:
            pictures.draw(0, path, batch, maps(step)[0], step, 1 / step)
    torch.save(first.state, tmp_path / "state.pt")
    again = Pictures(tmp_path / "again", "of a ViT")
    again.state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.draw(0, path, batch, maps(20)[0], 20, 1 / 20)
    strips = [np.asarray(Image.open(tmp_path / run / "pictures/strip-0.png")) for run in ("whole", "again", "first")]
    np.testing.assert_array_equal(strips[0], strips[1])
    assert strips[2].shape[1] < strips[0].shape[1]
    assert text_of(tmp_path / "whole/pictures/000020-0.png") == "step 20 | held-out loss 0.0500 | of a ViT"


def test_a_long_strip_shows_the_first_and_the_last_step(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []

    def strip(image: object, raw: object, target: object, tiles: dict[str, object], caption: str) -> object:
        shown.append(list(tiles))
        return np.zeros((2, 2, 3), dtype=np.uint8)

    monkeypatch.setattr("dvt_timm.viz.progress_strip", strip)
    monkeypatch.setattr("dvt_timm.viz.feature_panel", lambda *_, **__: np.zeros((2, 2, 3), dtype=np.uint8))
    pictures = Pictures(tmp_path, "of a ViT")
    for step in range(1, 41):
        pictures.draw(0, path, Batch(maps(0), maps(0), maps(1)), maps(step)[0], step, 0.5)
    assert len(shown[-1]) == MOST_TILES
    assert (shown[-1][0], shown[-1][-1]) == ("step 1: 0.5000", "step 40: 0.5000")


def test_a_run_that_was_stopped_has_the_strip_of_one_that_was_not(tmp_path: Path) -> None:
    def store() -> FeatureStore:
        made = store_of(tmp_path / "store", planted(8))
        for entry in made.entries:
            photo().save(entry.image)
        return made

    with pytest.MonkeyPatch.context() as context:
        context.chdir(tmp_path)
        samples = store()
        with pytest.raises(RunInterruptedError):
            train_denoiser(InterruptingStore(samples, after=5 * 4), "test_vit.r160_in1k", tmp_path / "a", SHORT)
        train_denoiser(samples, "test_vit.r160_in1k", tmp_path / "a", SHORT)
        train_denoiser(samples, "test_vit.r160_in1k", tmp_path / "b", SHORT)
    strips = [np.asarray(Image.open(tmp_path / run / "pictures/strip-0.png")) for run in "ab"]
    np.testing.assert_array_equal(*strips)
