"""What artifacts share: found on some images, kept in the folder of a run, pulled to by all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fitter, photo, photos
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dvt_timm._util.files import sha256_of
from dvt_timm.offline import (
    ImageFitter,
    LeastSquaresSolver,
    MeanSolver,
    NeuralFieldSolver,
    RunError,
    Team,
    calibration,
    fit_store,
    open_store,
    shared_artifact,
)
from dvt_timm.offline.calibration import images_to_calibrate_on
from dvt_timm.offline.run import unique
from dvt_timm.offline.store import ARTIFACT
from dvt_timm.train import OnlinePairs


def test_the_shared_artifact_is_the_mean_of_some() -> None:
    fit = fitter()
    pictures = [photo(seed) for seed in range(3)]
    shared = shared_artifact(fit, pictures)
    torch.testing.assert_close(shared, torch.stack([fit(picture).artifact for picture in pictures]).mean(dim=0))
    pulled = ImageFitter(fit.model, LeastSquaresSolver(prior_views=1e6, prior_artifact=shared), **fit.views)
    torch.testing.assert_close(pulled(pictures[0]).artifact, shared, atol=1e-3, rtol=0)  # views do not count any more
    torch.testing.assert_close(shared_artifact(pulled, pictures), shared)  # found without a prior
    with pytest.raises(TypeError, match="that of LeastSquaresSolver, got MeanSolver"):
        shared_artifact(ImageFitter(fit.model, kind="positions", num_views=2, size=96), pictures)
    with pytest.raises(ValueError, match=r"of 0 images have the shapes \[\]"):
        shared_artifact(fit, [])
    wide = ImageFitter(fit.model, **{**fit.views, "keep_aspect": True})
    with pytest.raises(ValueError, match="of 2 images have the shapes"):
        shared_artifact(wide, [pictures[0], pictures[0].resize((160, 80))])


def test_every_image_of_a_store_is_pulled_to_what_some_share(tmp_path: Path) -> None:
    paths, fit = photos(tmp_path / "photos"), fitter(view_pairs=2)
    assert fit_store(fit, paths, tmp_path / "store", calibrate=3) == {}
    shared = kept_in(tmp_path / "store")
    torch.testing.assert_close(shared, shared_artifact(fit, by_hash(paths)[:3]))
    pulled = fit.with_solver(LeastSquaresSolver(prior_views=8, prior_artifact=shared))
    store = open_store(tmp_path / "store")
    for i, path in enumerate(paths):
        solution, pairs = pulled.with_pairs(path, seed=int(sha256_of(path)[:16], 16))
        assert torch.equal(store.clean(i), solution.semantics)
        assert torch.equal(store.pair(i, 2)[1], pairs.clean[2])
        assert not torch.allclose(store.clean(i), fit(path).semantics, atol=1e-3)
    assert store.settings["calibrated_on"] == 3
    assert store.settings["solver"] == "LeastSquaresSolver(density=2.0, smoothness=1.0, prior_views=8.0)"
    assert not (tmp_path / "store/calibration").exists()


def test_a_store_goes_on_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images as it takes calibrate a new store by default; those that come later are pulled to the same."""
    monkeypatch.setattr(calibration, "NUM_IMAGES", 4)
    paths = photos(tmp_path / "photos", 6)
    fit_store(fitter(), paths[:4], tmp_path / "many")
    shared = kept_in(tmp_path / "many")
    fit_store(fitter(), paths, tmp_path / "many")
    assert torch.equal(kept_in(tmp_path / "many"), shared)
    assert len(open_store(tmp_path / "many")) == 6
    fit_store(fitter(), paths[:3], tmp_path / "few")
    fit_store(fitter(), paths, tmp_path / "few")
    assert "calibrated_on" not in open_store(tmp_path / "few").settings
    with pytest.raises(RunError, match="calibrated_on is None, not 2"):
        fit_store(fitter(), paths, tmp_path / "few", calibrate=2)
    with pytest.raises(RunError, match="calibrated_on is 4, not None"):
        fit_store(fitter(), paths, tmp_path / "many", calibrate=0)
    (tmp_path / "many/artifact.safetensors").unlink()
    with pytest.raises(RunError, match=r"artifact\.safetensors, which the images of this store share, is gone"):
        fit_store(fitter(), [*paths, *photos(tmp_path / "photos", 1, 9)], tmp_path / "many")


def test_by_default() -> None:
    fit = fitter()
    assert images_to_calibrate_on(fit, 39) == 0
    assert images_to_calibrate_on(fit, 40) == 40
    assert images_to_calibrate_on(fitter(kind="jitter+positions"), 400) == 40
    assert images_to_calibrate_on(fit.with_solver(LeastSquaresSolver(smoothness=3)), 40) == 40
    for other in (
        fitter(keep_aspect=True),
        fitter(kind="crops"),
        fit.with_solver(LeastSquaresSolver(prior_views=8)),
        fit.with_solver(NeuralFieldSolver()),
        ImageFitter(fit.model, kind="positions", num_views=2, size=96),
    ):
        assert images_to_calibrate_on(other, 400) == 0


def test_a_run_that_was_stopped_keeps_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, call = photos(tmp_path / "photos"), ImageFitter.__call__
    seen: list[Path] = []

    def stopped(self: ImageFitter, image: Any) -> Any:
        seen.append(next(path for path in paths if Image.open(path).convert("RGB") == image))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return call(self, image)

    monkeypatch.setattr(ImageFitter, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit_store(fitter(), paths, tmp_path / "store", calibrate=4)
    assert len(list((tmp_path / "store/calibration").iterdir())) == 2
    assert len(open_store(tmp_path / "store")) == 0
    (tmp_path / f"store/calibration/.0123abcd.{'0' * 64}.safetensors").touch()  # of a killed run
    fit_store(fitter(), paths, tmp_path / "store", calibrate=4)
    first = by_hash(paths)
    assert seen[:5] == [*first[:3], *first[2:4]]
    assert not (tmp_path / "store/calibration").exists()
    fit_store(fitter(), paths, tmp_path / "whole", calibrate=4)
    assert torch.equal(kept_in(tmp_path / "store"), kept_in(tmp_path / "whole"))


def test_images_that_cannot_be_fitted_are_left_out(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos")
    broken = by_hash(paths)[0]
    others = [path for path in paths if path != broken]
    broken.write_bytes(broken.read_bytes()[:60])
    failures = fit_store(fitter(), paths, tmp_path / "store", calibrate=4)
    assert list(failures) == [str(broken)]
    torch.testing.assert_close(kept_in(tmp_path / "store"), shared_artifact(fitter(), others))
    with pytest.raises(RunError, match=r"0 of 1 images can be fitted to calibrate on, 1 are needed; .*--calibrate 0"):
        fit_store(fitter(), [broken], tmp_path / "none", calibrate=1)
    with pytest.raises(RunError, match="4 of 5 images can be fitted to calibrate on, 10 are needed"):
        fit_store(fitter(), paths, tmp_path / "few", calibrate=40)
    assert list(fit_store(fitter(), paths, tmp_path / "few", calibrate=0)) == [str(broken)]  # as advised
    wide = photos(tmp_path / "wide", 2, first=20)
    for path in wide:
        with Image.open(path) as image:
            image.resize((640, 20)).save(path)
    fit_store(fitter(), [*others, *wide], tmp_path / "banners", calibrate=4)
    assert torch.equal(kept_in(tmp_path / "banners"), kept_in(tmp_path / "store"))


def test_what_another_run_left_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped, and other images at the next one."""
    mine, others = photos(tmp_path / "mine", 3), photos(tmp_path / "others", 3, first=10)
    find = calibration._keep

    def stopped(free: ImageFitter, path: Path, sha256: str, parts: Path) -> bool:
        find(free, path, sha256, parts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "_keep", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit_store(fitter(), mine, tmp_path / "store", calibrate=3)
    fit_store(fitter(), others, tmp_path / "store", calibrate=3)
    torch.testing.assert_close(kept_in(tmp_path / "store"), shared_artifact(fitter(), by_hash(others)))


def test_an_image_that_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its artifact is not kept under the hash of its old bytes."""
    paths, (new,) = photos(tmp_path / "photos", 3), photos(tmp_path / "new", 1, first=7)
    images = unique(paths, set(), skip=lambda *_: None)
    paths[1].write_bytes(new.read_bytes())
    free = calibration._without_prior(fitter())
    assert [calibration._keep(free, path, sha256, tmp_path) for path, sha256 in images] == [True, False, True]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_damaged_file(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos")
    fit_store(fitter(), paths[:3], tmp_path / "store", calibrate=2)
    (tmp_path / "store/artifact.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"artifact\.safetensors is damaged"):
        fit_store(fitter(), paths, tmp_path / "store")


def test_what_calibrate_does_not_go_with(tmp_path: Path) -> None:
    fit = fitter()
    shared = LeastSquaresSolver(prior_views=24, prior_artifact=torch.zeros(4, 4, 64))
    for other, calibrate, message in (
        (fit, -1, "calibrate must be a number of images, 0 for none, got -1"),
        (fit.with_solver(shared), 2, r"the solver has a prior_artifact, .*; pass calibrate=0"),
        (fit.with_solver(NeuralFieldSolver()), 2, r"for the closed form, LeastSquaresSolver\(\), got NeuralField"),
        (fitter(keep_aspect=True), 2, "with keep_aspect the grids of images differ"),
        (ImageFitter(fit.model, MeanSolver(), kind="positions", num_views=2, size=96), 2, "for the closed form"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_store(other, [], tmp_path / "store", calibrate=calibrate)
        with pytest.raises(ValueError, match=message):
            OnlinePairs([], other, calibrate)
    assert not (tmp_path / "store").exists()


def test_pairs_online_are_those_of_a_store(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos")
    fit_store(fitter(view_pairs=1), paths, tmp_path / "store", calibrate=3)
    store, online = open_store(tmp_path / "store"), OnlinePairs(paths, fitter(view_pairs=1), calibrate=3)
    assert store.settings == {**online.settings, "shared_artifact_sha256": sha256_of(tmp_path / "store" / ARTIFACT)}
    (tmp_path / "run").mkdir()
    online.prepare(tmp_path / "run", Team())
    for i in range(5):
        assert torch.equal(online[i][1], store.clean(i))
        assert torch.equal(online.pair(i, 1)[1], store.pair(i, 1)[1])
    again = OnlinePairs(paths, fitter(view_pairs=1), calibrate=3)
    (tmp_path / "run/artifact.safetensors").write_bytes((tmp_path / "store/artifact.safetensors").read_bytes())
    again.prepare(tmp_path / "run", Team())
    assert torch.equal(again[0][1], store.clean(0))
    assert OnlinePairs(paths, fitter()).calibrate == 0


def by_hash(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=sha256_of)


def kept_in(store: Path) -> Tensor:
    return load_file(store / "artifact.safetensors")["artifact"]
