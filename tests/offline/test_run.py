"""Stage 1 on many images: resumed after kill -9 at any point, and refused where it cannot be right."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import FAMILIES, VIT, create, fitter, full_disk, photos
from PIL import Image
from planting import contents

from dvt_timm._util.files import sha256_of
from dvt_timm.offline import ImageFitter, LeastSquaresSolver, RunError, fit_store, open_store, run, store

KILLS = 5


def test_a_second_run_adds_what_is_new(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos")
    seen: list[Path] = []
    for part in (paths[:2], paths, paths):
        fit_store(fitter(), part, tmp_path / "store", finished=lambda path, *_: seen.append(path))
    assert seen == paths
    assert len(open_store(tmp_path / "store")) == 5


def test_copies_are_taken_once_whatever_their_name(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 2)
    (tmp_path / "photos/copy.png").write_bytes(paths[0].read_bytes())
    fit_store(fitter(), [*paths, tmp_path / "photos/copy.png"], tmp_path / "store")
    assert len(open_store(tmp_path / "store")) == 2


def test_broken_images_are_skipped_and_recorded(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 3)
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    gone, long = tmp_path / "photos/gone.png", tmp_path / "photos/long.png"
    Image.new("RGB", (640, 16)).save(long)
    reasons: list[str] = []
    failures = fit_store(fitter(), [*map(str, paths), gone, long], str(tmp_path / "store"), skipped=reasons.append)
    assert failures.keys() == {str(paths[1]), str(gone), str(long)}
    assert sorted(reasons) == sorted(failures.values())
    assert failures[str(gone)] == f"{gone}: not found"
    assert json.loads((tmp_path / "store/index.json").read_text())["skipped"] == failures
    assert len(open_store(tmp_path / "store")) == 2


def test_an_image_that_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its new features are never kept under the hash of its old bytes."""
    paths, (new,) = photos(tmp_path / "photos", 3), photos(tmp_path / "new", 1, first=7)
    read = run.read_hashed

    def replacing(path: Path) -> Any:
        if path == paths[1]:
            paths[1].write_bytes(new.read_bytes())
        return read(path)

    monkeypatch.setattr(run, "read_hashed", replacing)
    failures = fit_store(fitter(), paths, tmp_path / "store")
    assert failures == {str(paths[1]): f"{paths[1]}: replaced since the run began; run the same again"}
    assert fit_store(fitter(), paths, tmp_path / "store") == {}
    stored = open_store(tmp_path / "store")
    assert [entry.sha256 for entry in stored.entries] == [sha256_of(path) for path in paths]
    torch.testing.assert_close(stored.raw(1), fitter().raw(new))


def test_one_image_at_a_time(tmp_path: Path) -> None:
    fit_store(fitter(), photos(tmp_path / "photos", 2), tmp_path / "store")
    with pytest.raises(TypeError, match=r"images are read one at a time, got slice\(0, 2, None\); give a whole number"):
        open_store(tmp_path / "store")[0:2]
    assert open_store(tmp_path / "store")[np.int64(1)][0].shape == (4, 4, 64)


def test_features_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    fit = fitter()
    with torch.no_grad():
        fit.model.norm.bias[3] = 1e30
    (reason,) = fit_store(fit, photos(tmp_path / "photos", 1), tmp_path / "a", half=True).values()
    assert "hold NaN or Inf" in reason
    assert "or pass half=False" in reason
    with torch.no_grad():
        fit.model.norm.bias[3] = float("nan")
    (reason,) = fit_store(fit, photos(tmp_path / "photos", 1), tmp_path / "b").values()
    assert "hold NaN or Inf" in reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_views": 4}, "views.num_views is 3, not 4;"),
        ({"seed": 1}, "views.seed is 0, not 1;"),
        ({"kind": "crops"}, "views.kind is 'jitter', not 'crops', .*;"),
    ],
)
def test_a_changed_setting_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    paths = photos(tmp_path / "photos", 2)
    fit_store(fitter(), paths[:1], tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(RunError, match=f"other settings: {message} choose another folder"):
        fit_store(fitter(**options), paths, tmp_path / "store")
    assert contents(tmp_path / "store").keys() == before.keys()


def test_other_weights_solvers_and_dtypes_are_refused(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 1)
    fit_store(fitter(), paths, tmp_path / "store")
    other = fitter()
    with torch.no_grad():
        other.model.blocks[0].attn.proj.bias.add_(1)
    with pytest.raises(RunError, match="weights_sha256 is"):
        fit_store(other, paths, tmp_path / "store")
    other = fitter()
    other.solver = LeastSquaresSolver(smoothness=2.0)
    with pytest.raises(RunError, match="solver is"):
        fit_store(other, paths, tmp_path / "store")
    for level, folder in ((1.0, "store"), (1.0, "pulled"), (2.0, "pulled")):
        prior = level * torch.arange(4.0 * 4 * 64).reshape(4, 4, 64).remainder(7)
        other.solver = LeastSquaresSolver(prior_views=2, prior_artifact=prior)
        if (level, folder) == (1.0, "pulled"):
            fit_store(other, paths, tmp_path / folder)
        else:
            with pytest.raises(RunError, match="prior_artifact_sha256 is"):
                fit_store(other, paths, tmp_path / folder)
    with pytest.raises(RunError, match="dtype is 'float32', not 'float16'"):
        fit_store(fitter(), paths, tmp_path / "store", half=True)


def test_settings_hold_what_the_defaults_stand_for(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 2)
    fit_store(fitter(size=None), paths[:1], tmp_path / "store")
    assert open_store(tmp_path / "store").settings["views"] == {
        "kind": "jitter",
        "zoom": [0.6, 1.25],
        "shift": 0.25,
        "seed": 0,
        "layer": -1,
        "keep_aspect": False,
        "edge_to_edge": False,
        "num_views": 3,
        "size": 160,
        "autocast": "float32",
    }
    fit_store(fitter(size=np.int64(160), num_views=np.int64(3)), paths, tmp_path / "store")
    assert len(open_store(tmp_path / "store")) == 2
    with pytest.raises(RunError, match=r"views\.autocast is 'float32', not 'bfloat16'"):
        fit_store(fitter(size=160, autocast=torch.bfloat16), paths, tmp_path / "store")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 1)
    fit_store(fitter(), paths, tmp_path / "store")
    with (
        FileLock(tmp_path / "store/.lock"),
        pytest.raises(BlockingIOError, match=r"another run is writing to .*wait for it, or choose another folder"),
    ):
        fit_store(fitter(), paths, tmp_path / "store")


def test_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos")
    fit_store(fitter(), paths[:2], tmp_path / "store", shard_bytes=1)
    with full_disk(4_000), pytest.raises(OSError, match=r"cannot write .*call it again .*finished images are kept"):
        fit_store(fitter(), paths, tmp_path / "store", shard_bytes=1)
    assert len(open_store(tmp_path / "store")) == 2
    fit_store(fitter(), paths, tmp_path / "store")
    assert len(open_store(tmp_path / "store")) == 5
    assert not list((tmp_path / "store").rglob(".*.safetensors"))


def test_folders_that_cannot_be_a_store(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"cannot write .*file: .*File exists") as caught:
        fit_store(fitter(), paths, tmp_path / "file")
    assert caught.value.errno == errno.EEXIST
    fit_store(fitter(), paths, tmp_path / "store")
    (tmp_path / "store/store.json").write_text("{")
    with pytest.raises(RunError, match=r"store.json is no JSON.*choose another folder"):
        fit_store(fitter(), paths, tmp_path / "store")
    (tmp_path / "store/store.json").unlink()
    with pytest.raises(RunError, match=r"is not empty and holds no run of dvt-timm \(no store.json\); choose"):
        fit_store(fitter(), paths, tmp_path / "store")
    with pytest.raises(ValueError, match=r"holds no feature store \(no store.json\); `fit_store` writes one"):
        open_store(tmp_path / "store")
    with pytest.raises(ValueError, match="holds no feature store"):
        open_store(tmp_path / "nowhere")


def test_a_folder_of_other_things_is_not_written_into(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 1)
    with pytest.raises(RunError, match=r"photos is not empty and holds no run of dvt-timm .*choose another folder"):
        fit_store(fitter(), paths, tmp_path / "photos")
    assert list((tmp_path / "photos").iterdir()) == paths


def test_pending_files_of_a_killed_run_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a shard and the removal of its pending files, and before a shard: nothing twice, nothing lost."""
    paths, unlink = photos(tmp_path / "photos", 3), Path.unlink

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_merge", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_store(fitter(), paths[:2], tmp_path / "store")
    assert len(list((tmp_path / "store/pending").iterdir())) == 2
    assert len(open_store(tmp_path / "store")) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, **options: unlink(self, **options) if options else killed())
        with pytest.raises(KeyboardInterrupt):
            fit_store(fitter(), paths[:2], tmp_path / "store")
    assert list((tmp_path / "store").glob("shard-*"))
    assert len(open_store(tmp_path / "store")) == 2
    seen: list[Path] = []
    fit_store(fitter(), paths, tmp_path / "store", finished=lambda path, *_: seen.append(path))
    assert seen == paths[2:]
    assert list((tmp_path / "store/pending").iterdir()) == []
    assert len(open_store(tmp_path / "store")) == 3


def _child(folder: Path, paths: list[Path], log: Path) -> None:
    torch.set_num_threads(1)

    def note(path: Path, *_: Any) -> None:
        with log.open("a") as file:
            file.write(f"{path.name}\n")

    fit_store(fitter(), paths, folder, shard_bytes=70_000, finished=note)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 40)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "dvt_timm.offline"])
    chance, folder, log = random.Random(0), tmp_path / "store", tmp_path / "log"
    log.touch()
    known: set[str] = set()
    at_hand: Counter[str] = Counter()  # the image noted last before a kill: perhaps not stored yet
    kills = 0
    while True:
        before = log.read_text()
        process = context.Process(target=_child, args=(folder, paths, log))
        process.start()
        if kills < KILLS:
            while process.is_alive() and log.read_text() == before:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.15))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        process.join()
        now = {entry.sha256 for entry in open_store(folder).entries}
        assert known <= now
        known = now
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        at_hand.update(log.read_text().split()[-1:])
    assert kills
    assert len(known) == 40
    noted, once = Counter(log.read_text().split()), Counter(path.name for path in paths)
    assert once <= noted <= once + at_hand  # a kill costs no other image
    assert list((folder / "pending").iterdir()) == []
    assert not list(folder.rglob(".*.safetensors"))
    fit_store(fitter(), paths, tmp_path / "undisturbed")
    expected = contents(tmp_path / "undisturbed")
    for sha256, maps in contents(folder).items():
        torch.testing.assert_close(maps, expected[sha256], atol=1e-5, rtol=1e-5)


def test_a_folder_of_images_is_one_too(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 2)
    assert fit_store(fitter(), tmp_path / "photos", tmp_path / "store") == {}
    assert [store.image for store in open_store(tmp_path / "store").entries] == [str(path) for path in paths]
    with pytest.raises(NotADirectoryError, match=r"0\.png is no folder; pass \[path\]"):
        fit_store(fitter(), str(paths[0]), tmp_path / "other")


def test_a_model_of_odd_size_has_settings_of_its_own(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 1)
    model = create(FAMILIES[VIT], dynamic_img_size=True, img_size=(56, 84))
    fit_store(ImageFitter(model, num_views=2), paths, tmp_path / "store")
    with pytest.raises(RunError, match=r"views\.size is \[56, 84\], not 56"):
        fit_store(ImageFitter(model, num_views=2, size=56), paths, tmp_path / "store")
