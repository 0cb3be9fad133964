"""`dvt-timm film`: from a folder of frames or a clip to a film, and errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import error_of, picture
from helpers import TINY, create, full_disk, random_head

import dvt_timm
from dvt_timm._util.video import Frames
from dvt_timm.cli import main as cli
from dvt_timm.cli import models


@pytest.fixture
def frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "frames").mkdir()
    for i in range(3):
        picture(seed=i).save(tmp_path / f"frames/{i}.png")
    return tmp_path / "frames"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in the place of the named one."""
    model = dvt_timm.denoise(create(TINY, embed_dim=64, dynamic_img_size=True), random_head(64))
    monkeypatch.setattr(models, "load_model", lambda *_: model)


@pytest.mark.parametrize("options", [[], ["--positions", "2", "--every", "2", "--fps", "5"]])
def test_a_film(frames: Path, capsys: Any, options: list[str]) -> None:
    assert cli.main(["film", "frames", "--out", "out.gif", "--size", "56", *options]) == 0
    path, line = capsys.readouterr().out.splitlines()
    count = 2 if options else 3
    assert path == "out.gif"
    assert line.startswith(f"locked to the frame, over {count} frames: ")
    assert line.endswith("% denoised")
    film = Frames(frames.parent / "out.gif")
    assert len(list(film)) == count
    assert film.fps == (5 if options else 10)


def test_a_film_of_one_frame_has_no_share(frames: Path, tiny: None, capsys: Any) -> None:
    assert cli.main(["film", "frames", "--out", "out", "--size", "28", "--every", "9"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[1]
        == "what is locked to the frame shows from two frames on, and there is one"
    )


def test_a_clip_to_a_clip(frames: Path, tiny: None) -> None:
    pytest.importorskip("av")
    assert cli.main(["film", "frames", "--out", "first.mp4", "--size", "28", "--fps", "12"]) == 0
    assert cli.main(["film", "first.mp4", "--out", "second.mp4", "--size", "28"]) == 0
    second = Frames(frames.parent / "second.mp4")
    assert len(list(second)) == 3
    assert second.fps == 12


def test_errors_are_one_line(frames: Path, tiny: None, capsys: Any) -> None:
    command = ["film", "frames", "--size", "28", "--out"]
    (frames.parent / "there.gif").write_text("mine")
    assert error_of(capsys, *command, "there.gif") == (
        "dvt-timm: error: there.gif exists; remove it, or choose another name"
    )
    assert "cannot write no/out.gif: there is no folder no; make it first" in error_of(capsys, *command, "no/out.gif")
    assert "a film is .mp4" in error_of(capsys, *command, "out.txt")
    assert "none.mp4: not found" in error_of(capsys, "film", "none.mp4", "--out", "out.gif")
    picture(30, 30).save(frames / "3.png")
    assert "frame 3 is 30 x 30 pixels, the first 90 x 60" in error_of(capsys, *command, "out.gif")
    (frames / "3.png").unlink()
    with full_disk(3000):
        assert "cannot write out.gif: " in error_of(capsys, *command, "out.gif")
    assert sorted(path.name for path in frames.parent.iterdir()) == ["frames", "there.gif"]
