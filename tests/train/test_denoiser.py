"""Stage 2: the method as written, and stores that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, fitter, photos, random_head, same_weights
from training import DIM, GRID, SHORT, equal, planted, restated, store_of

import dvt_timm
from dvt_timm._util.errors import RunError
from dvt_timm.offline import FeatureStore, fit_store, open_store
from dvt_timm.train import DenoiserStage, OnlinePairs, TrainConfig, make_accelerator, train_denoiser
from dvt_timm.train.data import collate
from dvt_timm.train.loop import Trainer


def test_stage_2_is_what_the_method_says(tmp_path: Path) -> None:
    """Five steps in float64 against the method written out."""
    pairs = planted(5, torch.float64)
    store = store_of(tmp_path / "store", pairs)
    config = TrainConfig(steps=5, batch_size=4, workers=0, held_out=1, weight_decay=0.1)
    stage = DenoiserStage(store, TINY)
    stage.module.double()
    (tmp_path / "run").mkdir()
    trainer = Trainer(stage, config, tmp_path / "run", make_accelerator(config, "cpu"))
    torch.manual_seed(0)
    head = dvt_timm.DenoiserHead(DIM, GRID).double()
    batches = [collate([trainer.stream[4 * step + i] for i in range(4)]) for step in range(5)]
    losses = restated(head, lambda batch: batch, batches, config)
    trainer.train()
    for key, value in head.state_dict().items():
        torch.testing.assert_close(trainer.module.state_dict()[key], value, rtol=1e-9, atol=1e-12)
    assert losses[-1] < losses[0]


def test_nothing_is_solved_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def solved(*_: Any) -> None:
        raise AssertionError("for a shape")

    fit = fitter(keep_aspect=True)
    monkeypatch.setattr(fit, "with_pairs", solved)
    pairs = OnlinePairs(photos(tmp_path / "photos", 3), fit)
    assert pairs.shape == (4, 5, 64)
    assert DenoiserStage(pairs, TINY).module.grid_size == (4, 5)


def test_all_pairs_of_an_image_are_drawn_and_whole_ones_held_out(tmp_path: Path) -> None:
    fit_store(fitter(view_pairs=2), photos(tmp_path / "photos", 4), tmp_path / "store")
    store = open_store(tmp_path / "store")
    trainer = Trainer(DenoiserStage(store, TINY), SHORT, tmp_path, make_accelerator(SHORT, "cpu"))
    drawn = [trainer.stream[position][0] for position in range(60)]
    assert all(torch.equal(drawn[i], trainer.stream[i][0]) for i in range(60))
    for i in trainer.stream.indices:
        for k in range(store.num_pairs):
            assert 1 <= sum(torch.equal(raw, store.pair(i, k)[0]) for raw in drawn) <= 20
    for i, unseen in zip(trainer.held_out, trainer.unseen(), strict=True):
        assert torch.equal(unseen.raw[0], store.raw(i))


def test_from_the_weights_of_a_head(store: FeatureStore, tmp_path: Path) -> None:
    initial = random_head(DIM, (5, 3))
    before = {name: value.clone() for name, value in initial.state_dict().items()}
    config = replace(SHORT, steps=1, lr=1e-9)
    train_denoiser(store, TINY, tmp_path / "run", config, initial=initial)
    trained = dvt_timm.load_head(tmp_path / "run/last")
    assert trained.grid_size == (5, 3)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-7)
    train_denoiser(store, TINY, tmp_path / "on", SHORT, initial=initial)
    assert not same_weights(dvt_timm.load_head(tmp_path / "on/last"), initial)
    assert equal(initial.state_dict(), before)
    with pytest.raises(RunError, match="initial_head_sha256"):
        train_denoiser(store, TINY, tmp_path / "on", SHORT, initial=random_head(DIM, (5, 3), seed=2))


def test_an_initial_head_in_half_precision_is_trained_in_float32(store: FeatureStore, tmp_path: Path) -> None:
    initial = random_head(DIM, GRID).to(torch.bfloat16)
    train_denoiser(store, TINY, tmp_path / "run", SHORT, initial=initial)
    assert {value.dtype for value in dvt_timm.load_head(tmp_path / "run/last").state_dict().values()} == {torch.float32}
    assert initial.pos_embed.dtype == torch.bfloat16


def test_stores_that_do_not_fit(tmp_path: Path) -> None:
    empty = store_of(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="there is no image to train on"):
        train_denoiser(empty, TINY, tmp_path / "run", SHORT)
    other = store_of(tmp_path / "other", planted(4), model="vit_small_patch14_dinov2.lvd142m")
    with pytest.raises(ValueError, match=r"features of vit_small_patch14_dinov2.lvd142m, not of test_vit"):
        train_denoiser(other, TINY, tmp_path / "run", SHORT)
    with pytest.raises(ValueError, match=r"64 channels wide, vit_small_patch14_dinov2.lvd142m has 384"):
        train_denoiser(other, "vit_small_patch14_dinov2.lvd142m", tmp_path / "run", SHORT)
    online = OnlinePairs(photos(tmp_path / "photos", 3), fitter(layer=1))
    with pytest.raises(ValueError, match="features of block 1"):
        train_denoiser(online, TINY, tmp_path / "run", SHORT)
    early = store_of(tmp_path / "early", planted(4), views={"layer": 1})
    with pytest.raises(ValueError, match="features of block 1, and a head denoises the last one's"):
        train_denoiser(early, TINY, tmp_path / "run", SHORT)
    with pytest.raises(ValueError, match="features of block 1, and a head denoises the last one's"):
        train_denoiser(store_of(tmp_path / "good", planted(4)), TINY, tmp_path / "run", SHORT, validation=early)
    with pytest.raises(ValueError, match="timm knows no model"):
        train_denoiser(early, "nothing", tmp_path / "run", SHORT)
    for key, value in (("weights_sha256", "0" * 64), ("stride", [8, 8])):
        changed = store_of(tmp_path / key, planted(4), **{key: value})
        with pytest.raises(ValueError, match=f"{key} of the validation features is"):
            train_denoiser(store_of(tmp_path / "good", []), TINY, tmp_path / "run", SHORT, validation=changed)
    assert not (tmp_path / "run").exists()


def test_images_to_measure_on_that_are_trained_on(store: FeatureStore, tmp_path: Path) -> None:
    """Some are told, all are refused."""
    some = store_of(tmp_path / "some", planted(5), first=10)
    with pytest.warns(UserWarning, match=r"2 of 5 validation images are trained on too, .*; fit the store of other"):
        DenoiserStage(store, TINY, validation=some)
    with pytest.raises(ValueError, match=r"all 12 validation images are trained on too; fit .* of other images"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT, validation=store)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("error")
def test_images_to_measure_on_that_are_trained_on_without_a_store(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 5)
    fit_store(fitter(), paths[:2], tmp_path / "store")
    fit_store(fitter(), photos(tmp_path / "others", 2, first=7), tmp_path / "others-store")
    online, same = OnlinePairs([*paths, tmp_path / "none.png"], fitter()), open_store(tmp_path / "store")
    DenoiserStage(online, TINY, validation=open_store(tmp_path / "others-store"))
    with pytest.raises(ValueError, match="all 2 validation images are trained on too"):
        DenoiserStage(online, TINY, validation=same)


def test_an_initial_head_of_another_width(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the initial head is 128 channels wide, .* has 64"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT, initial=random_head(128))


def test_a_shard_that_is_gone(store: FeatureStore, tmp_path: Path) -> None:
    stage = DenoiserStage(store, TINY)
    for shard in store.folder.glob("shard-*"):
        shard.unlink()
    assert stage.module.dim == DIM
    with pytest.raises(ValueError, match=r"is gone; `fit_store` computes its images again"):
        train_denoiser(FeatureStore(store.folder, store.settings, store.entries), TINY, tmp_path / "run", SHORT)
