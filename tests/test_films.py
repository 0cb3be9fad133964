"""Films: a planted artifact stands still and is found again, colors are one film's, and what cannot be is refused."""

from __future__ import annotations

import sys
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import DEMO, TINY, create, photo, random_head
from PIL import Image
from torch import Tensor, nn

import dvt_timm
from dvt_timm import evaluate, films, viz
from dvt_timm._util.images import preprocessing_of
from dvt_timm._util.video import Frames, film_writer
from dvt_timm.head import Head

GRID, DIM = (4, 5), 64
PLANTED = 0.5 * torch.randn(*GRID, DIM, generator=torch.Generator().manual_seed(0))


class Planted(nn.Module):
    """The final norm of a backbone, and an artifact behind it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens).clone()
        tokens[:, -GRID[0] * GRID[1] :] += PLANTED.flatten(0, 1)
        return tokens


class Exact(Head):
    """A head that takes out the planted artifact and nothing else."""

    def forward(self, fmap: Tensor) -> Tensor:
        return fmap - PLANTED


def model_with_an_artifact() -> Any:
    model = create(TINY, embed_dim=DIM, img_size=64)
    model = dvt_timm.denoise(model, random_head(DIM))
    model.norm, model.denoiser = Planted(model.norm), Exact(DIM)
    return model.eval()


@pytest.fixture(scope="module")
def pan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crop of noise, blurred, that pans over it."""
    folder = tmp_path_factory.mktemp("pan")
    noise = np.random.default_rng(0).integers(0, 255, size=(12, 60, 3), dtype=np.uint8)
    scene = Image.fromarray(noise).resize((600, 120), Image.Resampling.BICUBIC)
    for i in range(8):
        scene.crop((60 * i, 20, 60 * i + 80, 84)).save(folder / f"{i}.png")
    return folder


def test_a_planted_artifact_is_locked_to_the_frame_until_it_is_denoised(pan: Path, tmp_path: Path) -> None:
    model = model_with_an_artifact()
    done = dvt_timm.film(model, pan, tmp_path / "film", size=64)
    assert done.frames == 8
    clean = viz.LockedShare(8)
    for frame in Frames(pan):
        image = dvt_timm.preprocess(model, frame, size=64)
        with torch.inference_mode():
            maps = dvt_timm.feature_maps(model, image)
        clean.add(maps.denoised)
    assert done.denoised_locked == pytest.approx(clean.share, abs=1e-6)
    assert done.raw_locked > done.denoised_locked + 0.1


@pytest.mark.slow
def test_an_artifact_planted_in_the_positions_shows(pan: Path, tmp_path: Path) -> None:
    model = timm.create_model(DEMO, pretrained=True, denoiser={"positions": 3}).eval()
    options = {"size": 84}
    before = dvt_timm.film(model, pan, tmp_path / "before", **options)
    with evaluate.plant(model, "plaid", 8.0):
        planted = dvt_timm.film(model, pan, tmp_path / "planted", **options)
    assert planted.raw_locked > 1.5 * before.raw_locked
    assert planted.denoised_locked < planted.raw_locked


def test_frames_show_the_picture_and_the_maps_in_the_films_colors(pan: Path, tmp_path: Path) -> None:
    model = model_with_an_artifact()
    done = dvt_timm.film(model, pan, tmp_path / "some.gif", size=64, every=4, fps=5.0)
    frames = Frames(tmp_path / "some.gif")
    assert len(list(frames)) == done.frames == 2
    assert frames.fps == 5
    dvt_timm.film(model, pan, tmp_path / "film", size=64)
    drawn = [np.asarray(frame) for frame in Frames(tmp_path / "film")]
    preprocessing = preprocessing_of(model, 64)
    sample, count = films._sample(iter(Frames(pan)), preprocessing)
    assert count == 8
    maps = [films._maps(model, preprocessing, frame) for frame in sample]
    colors = viz.FilmColors.of([raw for raw, _ in maps], [denoised for _, denoised in maps])
    last = films._maps(model, preprocessing, preprocessing.resize(list(Frames(pan))[-1]))
    for color in colors.tiles(*last).reshape(-1, 3)[:40:5]:
        assert (drawn[-1] == color).all(axis=2).sum() >= 60 * 60


def test_a_film_of_tall_frames_is_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """72 x 4 patches of 64 channels: more rows than channels."""
    monkeypatch.setattr(viz, "film_frame", lambda frame, tiles, *_: grids.append(tiles.shape) or frame)
    grids: list[tuple[int, ...]] = []
    (tmp_path / "frames").mkdir()
    for seed in range(2):
        photo(seed).resize((64, 1152)).save(tmp_path / f"frames/{seed}.png")
    model = create(TINY, embed_dim=DIM, denoiser=random_head(DIM), dynamic_img_size=True)
    dvt_timm.film(model, tmp_path / "frames", tmp_path / "film", size=64)
    assert grids == [(3, 72, 4, 3)] * 2


@pytest.mark.parametrize("count", [1, 2, 16, 17, 33, 100])
def test_the_sample_is_spread_over_the_film(count: int) -> None:
    preprocessing = preprocessing_of(create(TINY, embed_dim=64), 16)
    made = 0

    def frames() -> Any:
        nonlocal made
        for i in range(count):
            made += 1
            yield Image.new("RGB", (16, 16), (i, 0, 0))

    sample, found = films._sample(frames(), preprocessing)
    numbers = [frame.getpixel((8, 8))[0] for frame in sample]
    assert found == made == count
    assert min(count, films.SAMPLES / 2) <= len(numbers) <= films.SAMPLES
    steps = set(np.diff(numbers))
    assert len(steps) <= 1
    assert numbers[0] == 0
    assert numbers[-1] >= count - 1 - max(steps, default=0)


def test_memory_does_not_grow_with_the_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is, few frames are alive at once."""
    alive: set[int] = set()
    most = 0

    class Counted:
        fps = None

        def __init__(self, path: Path) -> None: ...

        def __iter__(self) -> Any:
            nonlocal most
            for i in range(40):
                frame = photo(i).resize((80, 64))
                alive.add(id(frame))
                weakref.finalize(frame, alive.discard, id(frame))
                most = max(most, len(alive))
                yield frame
                del frame

    monkeypatch.setattr(films, "Frames", Counted)
    monkeypatch.setattr(viz, "film_frame", lambda *_: np.zeros((2, 2, 3), np.uint8))
    assert dvt_timm.film(model_with_an_artifact(), "any", tmp_path / "film", size=64).frames == 40
    assert most <= films.SAMPLES + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be 1 or more, got 0"),
        ({"fps": 0.0}, "fps must be 0.00153 to 240, got 0.0"),
        ({"fps": 0.0004}, "fps must be 0.00153 to 240, got 0.0004"),
        ({"fps": float("nan")}, "fps must be"),
        ({"fps": 1e9}, "to 240"),
        ({"size": 100000}, "262,144"),
    ],
)
def test_numbers_that_are_refused(pan: Path, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dvt_timm.film(model_with_an_artifact(), pan, tmp_path / "film", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["film.gif", "film.mp4"])
def test_too_slow_a_film_is_told_before_the_work(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "clip.gif", duration=100)
    monkeypatch.setattr(films, "feature_maps", lambda *_: pytest.fail("it worked"))
    message = r"a film has 0.00153 frames a second or more, got 0.001; lower every, or set fps"
    with pytest.raises(ValueError, match=message):
        dvt_timm.film(model_with_an_artifact(), tmp_path / "clip.gif", tmp_path / out, every=10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.gif"]


def test_the_slowest_film(pan: Path, tmp_path: Path) -> None:
    model = model_with_an_artifact()
    dvt_timm.film(model, pan, tmp_path / "slow.gif", size=64, every=4, fps=0.00153)
    assert Frames(tmp_path / "slow.gif").fps == pytest.approx(0.00153, rel=0.01)
    with film_writer(tmp_path / "frames", Fraction(1, 1000)):  # which have no rate
        pass


def test_a_model_that_does_not_denoise(pan: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this model does not denoise"):
        dvt_timm.film(create(TINY, embed_dim=64), pan, tmp_path / "film")


def test_what_is_missing_is_told_before_the_work(pan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "feature_maps", lambda *_: pytest.fail("it worked"))
    model = model_with_an_artifact()
    (tmp_path / "there.gif").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        dvt_timm.film(model, pan, tmp_path / "there.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="PyAV"):
        dvt_timm.film(model, pan, tmp_path / "film.mp4")
    for out in ("film.gif", "frames"):
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*no; make it first"):
            dvt_timm.film(model, pan, tmp_path / "no" / out)
