"""The loop: batches, pictures, signals, and a clear end where it cannot go on."""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, fitter, photos, same_weights
from torch import Tensor
from training import SHORT, InterruptingStore, equal, planted, store_of, teacher, weights

import dvt_timm
from dvt_timm._util.errors import RunError
from dvt_timm._util.images import ImageError
from dvt_timm.offline import FeatureStore, fit_store, open_store
from dvt_timm.train import (
    DenoiserStage,
    OnlinePairs,
    RunInterruptedError,
    TrainConfig,
    distill,
    make_accelerator,
    train_denoiser,
)
from dvt_timm.train.loop import CHECKPOINT, Trainer


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", planted(12, torch.float64))
    states = []
    for accumulation in (1, 2):
        config = TrainConfig(steps=4, batch_size=4, accumulation=accumulation, workers=0)
        stage = DenoiserStage(store, TINY)
        stage.module.double()
        run = tmp_path / f"run{accumulation}"
        run.mkdir()
        trainer = Trainer(stage, config, run, make_accelerator(config, "cpu"))
        trainer.train()
        states.append(trainer.module.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-9, atol=1e-12)


def test_an_accelerator_of_another_accumulation(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's own, or one that the environment has changed."""
    config = replace(SHORT, accumulation=2)
    with pytest.raises(ValueError, match=r"accelerator accumulates 1 batches a step, the config says 2; pass .*config"):
        train_denoiser(store, TINY, tmp_path / "run", config, accelerator=make_accelerator(SHORT, "cpu"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match=r"accumulates 4 batches a step, the config says 2; .* leave ACCELERATE_GRAD"):
        train_denoiser(store, TINY, tmp_path / "run", config, accelerator=make_accelerator(config, "cpu"))


def test_a_retry_with_the_accelerator_of_a_run_that_failed_within_a_step(store: FeatureStore, tmp_path: Path) -> None:
    """It has counted one of two batches of a step."""
    config = replace(SHORT, accumulation=2)
    train_denoiser(store, TINY, tmp_path / "whole", config, accelerator=make_accelerator(config, "cpu"))
    accelerator, reads = make_accelerator(config, "cpu"), iter(range(1000))

    class Failing(FeatureStore):
        def pair(self, i: int, k: int) -> tuple[Tensor, Tensor]:
            if next(reads) == 3 * 4 + 2:  # in the second half of the fourth step
                raise OSError("the disk is away")
            return super().pair(i, k)

    failing = Failing(store.folder, store.settings, store.entries)
    with pytest.raises(RunError, match="cannot read a sample: the disk is away"):
        train_denoiser(failing, TINY, tmp_path / "run", config, accelerator=accelerator)
    train_denoiser(store, TINY, tmp_path / "run", config, accelerator=accelerator)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_one_thread_reads_where_the_cpu_trains(tmp_path: Path) -> None:
    fit_store(fitter(), photos(tmp_path / "photos", 4), tmp_path / "store")
    config = replace(SHORT, workers=None)
    trainer = Trainer(
        DenoiserStage(open_store(tmp_path / "store"), TINY), config, tmp_path, make_accelerator(config, "cpu")
    )
    draw, readers = trainer.stream.draw, set()

    def noted(*arguments: Any) -> Any:
        readers.add(threading.get_ident())
        time.sleep(0.01)  # long enough for others to take part
        return draw(*arguments)

    trainer.stream.draw = noted
    trainer.train()
    assert len(readers) == 1
    assert threading.get_ident() not in readers


def test_all_samples_are_trained_on_where_others_validate(store: FeatureStore, tmp_path: Path) -> None:
    validation = store_of(tmp_path / "validation", planted(3), first=20)
    (tmp_path / "run").mkdir()
    trainer = Trainer(
        DenoiserStage(store, TINY, validation=validation), SHORT, tmp_path / "run", make_accelerator(SHORT)
    )
    assert len(trainer.stream.indices) == len(store)
    for batch, (raw, clean) in zip(trainer.unseen(), validation, strict=True):
        assert torch.equal(batch.raw[0], raw)
        assert torch.equal(batch.target[0], clean)


def test_pictures_of_the_same_images(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 6)
    run = tmp_path / "run"
    distill(teacher(), paths, run, SHORT)
    drawn = sorted(path.name for path in (run / "pictures").iterdir())
    assert drawn == ["000004-0.png", "000006-0.png", "strip-0.png"]


def test_pictures_of_images_of_one_long_name(tmp_path: Path) -> None:
    """In two folders, and with a name that leaves no room for anything before it."""
    paths = []
    for folder in ("a", "b"):
        (path,) = photos(tmp_path / folder, 1, first=len(paths))
        paths.append(path.rename(path.with_name("n" * 245 + ".png")))
    distill(teacher(), [*paths, *photos(tmp_path / "c", 4, first=2)], tmp_path / "run", replace(SHORT, held_out=5))
    assert len(list((tmp_path / "run/pictures").iterdir())) == 3 * 4


def test_a_picture_that_is_no_image_any_more(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", planted(8))
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    entries = [replace(entry, image=str(tmp_path / entry.image)) for entry in store.entries]
    train_denoiser(FeatureStore(store.folder, store.settings, entries), TINY, tmp_path / "run", SHORT)
    assert not (tmp_path / "run/pictures").exists()


def test_a_signal_writes_the_checkpoint(store: FeatureStore, tmp_path: Path) -> None:
    run, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.raises(RunInterruptedError, match="interrupted after step 3 of 6"):
        train_denoiser(InterruptingStore(store, after=3 * 4), TINY, run, SHORT)
    assert torch.load(run / CHECKPOINT, weights_only=True)["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before
    train_denoiser(store, TINY, run, SHORT)
    train_denoiser(store, TINY, tmp_path / "whole", SHORT)
    assert equal(weights(run), weights(tmp_path / "whole"))
    assert same_weights(dvt_timm.load_head(run), dvt_timm.load_head(tmp_path / "whole"))


def test_a_checkpoint_of_another_head(store: FeatureStore, tmp_path: Path) -> None:
    train_denoiser(store, TINY, tmp_path / "run", SHORT)
    train_denoiser(store, TINY, tmp_path / "two", SHORT, num_blocks=2)
    (tmp_path / "two" / CHECKPOINT).replace(tmp_path / "run" / CHECKPOINT)
    with pytest.raises(RunError, match="does not fit this run"):
        train_denoiser(store, TINY, tmp_path / "run", SHORT)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_feature_that_is_missing_is_no_other_one(workers: int, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", planted(8) + planted(1, grid=(5, 4)))
    with pytest.raises(RunError, match=r"cannot read a sample: .*must have one shape"):
        train_denoiser(store, TINY, tmp_path / "run", replace(SHORT, workers=workers, seed=3))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stage", ["train", "distill"])
def test_images_that_are_none_end_no_run(stage: str, workers: int, tmp_path: Path) -> None:
    """They are told once, others take their place; removed, the run goes on as if it had never been stopped."""
    paths, run = photos(tmp_path / "photos", 8), tmp_path / "run"
    for path in paths[::3]:
        path.write_bytes(path.read_bytes()[:100])
    config = replace(SHORT, workers=workers, steps=8, held_out=2, most_passes=100)
    told: list[str] = []

    def start(paths: list[Path], run: Path) -> Any:
        if stage == "train":
            return train_denoiser(OnlinePairs(paths, fitter()), TINY, run, config, skipped=told.append)
        return distill(teacher(), paths, run, config, skipped=told.append)

    report = start(paths, tmp_path / "whole")
    assert report.skipped.keys() == set(map(str, paths[::3]))
    assert sorted(told) == sorted(report.skipped.values())
    assert not {str(path) for path in paths[::3]} & set(report.names)
    take_step, steps = Trainer._take_step, []

    def interrupting(trainer: Trainer, *arguments: Any) -> None:
        take_step(trainer, *arguments)
        steps.append(trainer.step)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_take_step", interrupting)
        with pytest.raises(RunInterruptedError):
            start(paths, run)
        for path in paths[::3]:
            path.unlink()
        start([path for path in paths if path.exists()], run)
    assert steps == list(range(1, 9))
    assert equal(weights(run), weights(tmp_path / "whole"))


def test_a_held_out_image_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None that was trained on takes its place when the run is taken up."""
    paths, run = photos(tmp_path / "photos", 10), tmp_path / "run"
    config = replace(SHORT, held_out=3, most_passes=100)
    whole = distill(teacher(), paths, tmp_path / "whole", config)
    interrupt_after(3, monkeypatch)
    with pytest.raises(RunInterruptedError):
        distill(teacher(), paths, run, config)
    lost = Path(whole.names[1])
    content = lost.read_bytes()
    lost.unlink()
    report = distill(teacher(), [path for path in paths if path != lost], run, config)
    assert report.names == [whole.names[0], whole.names[2]]
    assert report.skipped.keys() == {str(lost)}
    assert equal(weights(run), weights(tmp_path / "whole"))
    lost.write_bytes(content)
    assert distill(teacher(), paths, run, config).names == whole.names


def test_a_run_of_a_version_that_did_not_write_down_what_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, run = photos(tmp_path / "photos", 10), tmp_path / "run"
    config = replace(SHORT, held_out=3)
    whole = distill(teacher(), paths, tmp_path / "whole", config)
    interrupt_after(3, monkeypatch)
    with pytest.raises(RunInterruptedError):
        distill(teacher(), paths, run, config)
    state = torch.load(run / CHECKPOINT, weights_only=True)
    del state["split"]
    torch.save(state, run / CHECKPOINT)
    assert distill(teacher(), paths, run, config).names == whole.names
    assert equal(weights(run), weights(tmp_path / "whole"))


@pytest.mark.parametrize("stage", ["train", "distill"])
def test_copies_of_what_is_held_out_are_not_trained_on(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after their originals have gone either; what cannot be read is told later, as ever."""
    paths, run, config = photos(tmp_path / "photos", 6), tmp_path / "run", replace(SHORT, held_out=4)
    paths += [Path(shutil.copy(path, path.with_name(f"copy-{path.name}"))) for path in paths]
    paths.append(tmp_path / "photos/none.png")
    trained: list[set[bytes]] = []
    train = Trainer.train

    def noting(trainer: Trainer) -> None:
        trained.append({content for i in trainer.trained if (content := contents.get(paths[i]))})
        train(trainer)

    def start(run: Path) -> Any:
        if stage == "train":
            return train_denoiser(OnlinePairs(paths, fitter()), TINY, run, config)
        return distill(teacher(), paths, run, config)

    contents = {path: path.read_bytes() for path in paths[:-1]}
    monkeypatch.setattr(Trainer, "train", noting)
    whole = start(tmp_path / "whole")
    held_out = {contents[Path(name)] for name in whole.names}
    assert len(whole.names) == len(held_out) == 4
    assert trained[0] == set(contents.values()) - held_out
    interrupt_after(3, monkeypatch)
    with pytest.raises(RunInterruptedError):
        start(run)
    Path(whole.names[0]).unlink()
    assert start(run).names == whole.names[1:]
    assert equal(weights(run), weights(tmp_path / "whole"))
    assert trained == trained[:1] * 3


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, once."""
    take_step, left = Trainer._take_step, [steps]

    def interrupting(trainer: Trainer, *arguments: Any) -> None:
        take_step(trainer, *arguments)
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_take_step", interrupting)


def test_no_image_at_all(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 6)
    for path in paths:
        path.write_bytes(b"no image")
    with pytest.raises(
        RunError, match=r"none of 6 images in a row can be read, the last because: .*png: not a JPEG, PNG"
    ):
        distill(teacher(), paths, tmp_path / "run", SHORT)
    with pytest.raises(ImageError, match=r"0\.png: not a JPEG"):
        train_denoiser(OnlinePairs(paths, fitter()), TINY, tmp_path / "online", SHORT)


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    pairs = planted(12)
    store, run = store_of(tmp_path / "store", pairs), tmp_path / "run"
    train_denoiser(store, TINY, run, SHORT)
    before = (run / CHECKPOINT).read_bytes()
    pairs[3][1][0, 0, 0] = math.nan
    broken = store_of(tmp_path / "broken", pairs)
    with pytest.raises(RunError, match=r"loss is not finite at step \d+ or shortly before"):
        train_denoiser(broken, TINY, tmp_path / "nan", replace(SHORT, steps=40, checkpoint_every=1))
    state = torch.load(tmp_path / "nan" / CHECKPOINT, weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state["module"].values())
    assert (run / CHECKPOINT).read_bytes() == before


def test_weights_that_are_not_finite_are_not_kept(store: FeatureStore, tmp_path: Path) -> None:
    """The loss tells of them only a step later."""
    trainer = Trainer(DenoiserStage(store, TINY), SHORT, tmp_path, make_accelerator(SHORT, "cpu"))
    with torch.no_grad():
        trainer.module.pos_embed[0, 0, 0] = math.inf
    with pytest.raises(RunError, match="weights are not finite after step 0; what was written before is intact"):
        trainer._write_checkpoint()
    assert not (tmp_path / CHECKPOINT).exists()
