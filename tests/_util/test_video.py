"""Films on disk: what is read is what was written, whole or not at all, and an error says what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import full_disk, photo
from numpy.typing import NDArray
from PIL import Image

from dvt_timm._util.video import Frames, VideoError, film_writer


def pictures(count: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    return [np.asarray(photo(seed).resize((width, height))) for seed in range(count)]


def written(out: Path, count: int = 5, fps: int = 10, **size: int) -> Path:
    with film_writer(out, Fraction(fps)) as write:
        for each in pictures(count, **size):
            write(each)
    return out


def read(path: Path) -> list[NDArray[np.uint8]]:
    return [np.asarray(frame) for frame in Frames(path)]


def needs_av(out: str) -> str:
    if out.endswith((".mp4", ".mkv")):
        pytest.importorskip("av")
    return out


@pytest.mark.parametrize(("out", "error"), [("film", 0), ("film.gif", 12), ("film.mp4", 9), ("film.mkv", 9)])
def test_what_is_written_is_read(tmp_path: Path, out: str, error: float) -> None:
    """PNG keeps all, GIF 256 colors a frame, H.264 what eyes see."""
    path = written(tmp_path / needs_av(out), 5, 10)
    assert [each.name for each in tmp_path.iterdir()] == [out]
    frames = Frames(path)
    assert frames.fps == (None if out == "film" else 10)
    for _ in range(2):  # again and again
        got = read(path)
        assert len(got) == 5
        for one, other in zip(got, pictures(5), strict=True):
            assert np.abs(one.astype(int) - other.astype(int)).mean() <= error
            assert one.shape == other.shape


def test_odd_sizes_are_made_even_in_clips(tmp_path: Path) -> None:
    path = written(tmp_path / needs_av("film.mp4"), 3, height=47, width=63)
    assert read(path)[0].shape == (48, 64, 3)


def test_a_clip_is_shown_upright(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "phone.mp4"), "w") as clip:
        stream = clip.add_stream("libx264", rate=10)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)
        for each in pictures(2):
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        clip.mux(stream.encode())
    got, expected = read(tmp_path / "phone.mp4")[0], np.rot90(pictures(1)[0])
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected.astype(int)).mean() < 12


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for i in (10, 2, 1):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert [frame.getpixel((0, 0)) for frame in Frames(tmp_path)] == [(1, 0, 0), (2, 0, 0), (10, 0, 0)]


def test_frames_of_differing_size(tmp_path: Path) -> None:
    for i, size in enumerate([(8, 6), (8, 6), (6, 8)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    with pytest.raises(VideoError, match="frame 2 is 6 x 8 pixels, the first 8 x 6; make them one size"):
        read(tmp_path)


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def broken_frame(folder: Path) -> Path:
    (folder / "frames").mkdir()
    (folder / "frames/0.png").write_bytes(b"no image")
    return folder / "frames"


def file_of(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_folder, "no frames; a folder has JPEG"),
        (broken_frame, "0.png: not a JPEG, PNG or WebP image"),
        (lambda folder: folder / "none.mp4", "none.mp4: not found"),
        (file_of("text.gif", b"no film"), r"text.gif: \S+"),
        (file_of("text.mp4", b"no film" * 99), "text.mp4: no clip that can be read"),
        (file_of("empty.mp4", b""), "empty.mp4: no clip that can be read"),
    ],
)
def test_what_is_no_film(tmp_path: Path, make: Any, message: str) -> None:
    path = make(tmp_path)
    if path.name in ("text.mp4", "empty.mp4"):
        pytest.importorskip("av")
    with pytest.raises(VideoError, match=message):
        read(path)


def test_a_clip_that_was_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = written(tmp_path / "film.mkv", 12)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 3])
    assert len(read(path)) < 12  # as far as it goes
    gif = written(tmp_path / "film.gif", 12)
    gif.write_bytes(gif.read_bytes()[: gif.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"film\.gif: .* in frame"):
        read(gif)


def test_sound_without_pictures(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "song.mkv"), "w") as clip:
        stream = clip.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame(format="s16", layout="mono", samples=1)
        sound.sample_rate = 8000
        clip.mux(stream.encode(sound))
    with pytest.raises(VideoError, match=r"song\.mkv: holds no pictures"):
        read(tmp_path / "song.mkv")


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"film")
    for call in (lambda: Frames(tmp_path / "clip.mp4"), lambda: film_writer(tmp_path / "new.mp4", Fraction(10))):
        with pytest.raises(ImportError, match=r"video needs PyAV; pip install 'dvt-timm\[video\]', or take a GIF"):
            call()
    assert len(read(written(tmp_path / "film.gif"))) == len(read(written(tmp_path / "film"))) == 5


@pytest.mark.parametrize("out", ["film.mp4", "film.gif", "film"])
def test_a_film_is_whole_or_not_there(tmp_path: Path, out: str) -> None:
    needs_av(out)

    def write_some(pixels: NDArray[np.uint8], count: int) -> None:
        with film_writer(tmp_path / out, Fraction(10)) as write:
            for _ in range(count):
                write(pixels)
            raise KeyError

    for count in (0, 1):
        with pytest.raises(KeyError):
            write_some(pictures(1)[0], count)
    noisy = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="File too large"), full_disk():
        write_some(noisy, 90)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["film.mp4", "film.gif", "film"])
def test_what_is_there_stays(tmp_path: Path, out: str) -> None:
    (tmp_path / out).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{out} exists; remove it, or choose another name"):
        film_writer(tmp_path / out, Fraction(10))
    assert (tmp_path / out).read_text() == "mine"


def test_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.mp4, .*\.gif or, without a suffix, a folder of PNG frames; got"):
        film_writer(tmp_path / "film.avi", Fraction(10))
