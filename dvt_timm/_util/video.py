"""Films: frames read from a clip, a GIF or a folder of images, and written to one; a frame in memory at a time."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image

from .files import replacing
from .images import SUFFIXES, ImageError, read_image, reason_of

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # suffix -> ffmpeg's name
GIF = ".gif"
FPS = Fraction(10)  # of what has no rate of its own
LEAST_FPS, MOST_FPS = Fraction(100, 65535), 240  # a GIF counts hundredths of a second in 16 bits

Write: TypeAlias = Callable[[NDArray[np.uint8]], None]  # takes [H, W, 3] RGB


class VideoError(ValueError):
    """A film cannot be read; the text says why in one line."""


class Frames:
    """The frames of a film, all of one size; they can be gone through again and again.

    Args:
        path: of a clip, a GIF, or a folder of JPEG, PNG and WebP images, in the order of the numbers in their names.

    Attributes:
        fps: frames a second, None for a folder.

    Raises:
        VideoError: if it is not there, or holds no film.
        ImportError: if it is a clip and PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fps = path, None
        if path.is_dir():
            self._open: Callable[[], Iterator[Image.Image]] = self._of_folder
        elif not path.is_file():
            raise VideoError(f"{path}: not found")
        elif path.suffix.lower() == GIF:
            self._open, self.fps = self._of_gif, self._gif_rate()
        else:
            self._open, self.fps = self._of_clip, self._clip_rate()

    def __iter__(self) -> Iterator[Image.Image]:
        """Give the frames, RGB and upright.

        Raises:
            VideoError: if there is none, one cannot be decoded, or it has another size than the first.
        """
        size, count = None, 0
        with closing(self._open()) as frames:  # type: ignore[type-var]
            for frame in frames:
                size = size or frame.size
                if frame.size != size:
                    raise VideoError(
                        f"{self.path}: frame {count} is {frame.width} x {frame.height} pixels, the first {size[0]} x "
                        f"{size[1]}; make them one size"
                    )
                yield frame
                count += 1
        if not count:
            raise VideoError(f"{self.path}: no frames; a folder has JPEG, PNG or WebP images")

    def _of_folder(self) -> Iterator[Image.Image]:
        paths = [path for path in self.path.iterdir() if path.suffix.lower() in SUFFIXES]
        for path in sorted(paths, key=_by_numbers):
            try:
                yield read_image(path)
            except ImageError as error:
                raise VideoError(str(error)) from error

    def _gif_rate(self) -> Fraction:
        with self._gif() as gif:
            milliseconds = gif.info.get("duration", 0)
        return Fraction(1000, int(milliseconds)) if milliseconds else FPS

    def _of_gif(self) -> Iterator[Image.Image]:
        with self._gif() as gif:
            count = gif.n_frames
            for i in range(count):
                try:
                    gif.seek(i)
                    yield gif.convert("RGB")
                except Exception as error:  # decoders raise what they happen to meet in a damaged file
                    raise VideoError(f"{self.path}: {reason_of(error)} in frame {i}") from error

    def _gif(self) -> Any:
        try:
            return GifImagePlugin.GifImageFile(self.path)
        except Exception as error:  # as above
            raise VideoError(f"{self.path}: {reason_of(error)}") from error

    def _clip_rate(self) -> Fraction:
        with self._clip() as clip:
            rate = clip.streams.video[0].average_rate
        return Fraction(rate) if rate else Fraction(25)

    def _of_clip(self) -> Iterator[Image.Image]:
        av, count = _av(), 0
        with self._clip() as clip:
            try:
                for frame in clip.decode(video=0):
                    yield _upright(frame)
                    count += 1
            except av.error.FFmpegError as error:
                raise VideoError(
                    f"{self.path}: cannot be decoded after {count} frames: {reason_of(error)}; convert it anew"
                ) from error

    def _clip(self) -> Any:
        av = _av()
        try:
            clip = av.open(str(self.path))
        except (av.error.FFmpegError, UnicodeError) as error:
            raise VideoError(f"{self.path}: no clip that can be read: {reason_of(error)}") from error
        if not clip.streams.video:
            clip.close()
            raise VideoError(f"{self.path}: holds no pictures")
        return clip


def film_writer(out: Path, fps: Fraction) -> AbstractContextManager[Write]:
    """Write a film, whole or not at all: a clip (.mp4, .m4v, .mov, .mkv; H.264), a .gif, or PNG frames in a new folder.

    Raises:
        ValueError: if the suffix is another one, or a clip or GIF has fewer than `LEAST_FPS` frames a second.
        FileExistsError: if there is something at `out`.
        FileNotFoundError: if the folder that it is to lie in is not there.
        ImportError: if it is a clip and PyAV is not installed.
        OSError: from the context, if it cannot be written.
    """
    suffix = out.suffix.lower()
    if suffix and suffix != GIF and suffix not in CONTAINERS:
        raise ValueError(
            f"a film is {', '.join(CONTAINERS)}, .gif or, without a suffix, a folder of PNG frames; got {out}"
        )
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists; remove it, or choose another name")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}; make it first")
    if suffix and fps < LEAST_FPS:
        raise ValueError(
            f"a film has {float(LEAST_FPS):.3g} frames a second or more, got {float(fps):.3g}; lower every, or set fps"
        )
    if suffix in CONTAINERS:
        _av()
        return _clip_writer(out, CONTAINERS[suffix], fps)
    return _gif_writer(out, fps) if suffix == GIF else _folder_writer(out)


@contextmanager
def _clip_writer(out: Path, container: str, fps: Fraction) -> Iterator[Write]:
    av = _av()
    try:
        with replacing(out) as scratch, scratch.open("wb") as file, av.open(file, "w", format=container) as clip:
            stream = clip.add_stream("libx264", rate=fps, options={"crf": "18"})
            stream.pix_fmt = "yuv420p"

            def write(pixels: NDArray[np.uint8]) -> None:
                even = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
                if not stream.codec_context.is_open:
                    stream.height, stream.width = even.shape[:2]
                clip.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

            yield write
            clip.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise OSError(f"{out}: {_first_reason(error)}") from error


def _first_reason(error: BaseException) -> str:
    """Say what an error began with: PyAV's own hides that of the file, a full disk's say."""
    while error.__context__ is not None:
        error = error.__context__
    return reason_of(error)


@contextmanager
def _gif_writer(out: Path, fps: Fraction) -> Iterator[Write]:
    """Write frame by frame; Pillow's `save_all` would hold all frames."""
    with replacing(out) as scratch, scratch.open("wb") as file:

        def write(pixels: NDArray[np.uint8]) -> None:
            frame = Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE)
            if not file.tell():
                file.writelines(GifImagePlugin.getheader(frame.copy(), info={"loop": 0})[0])
            duration = max(10, round(1000 / fps))
            file.writelines(GifImagePlugin.getdata(frame, duration=duration, include_color_table=True))

        yield write
        file.write(b";")


@contextmanager
def _folder_writer(out: Path) -> Iterator[Write]:
    scratch = out.with_name(f".{secrets.token_hex(4)}.{out.name}")
    scratch.mkdir()
    try:
        count = 0

        def write(pixels: NDArray[np.uint8]) -> None:
            nonlocal count
            Image.fromarray(pixels).save(scratch / f"{count:06d}.png")
            count += 1

        yield write
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _upright(frame: Any) -> Image.Image:
    """Turn a frame as its clip says a player is to."""
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    picture = frame.to_image()
    return picture if turn is None else picture.transpose(turn)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Sort 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _av() -> Any:
    try:
        import av
        import av.error
    except ImportError as error:
        raise ImportError(
            "video needs PyAV; pip install 'dvt-timm[video]', or take a GIF or a folder of frames"
        ) from error
    return av
