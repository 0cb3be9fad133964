"""The videos of DAVIS, 2016 (one object) and 2017 (several), with the masks of all frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..._util.images import read_image
from .listed import read_png

VOID = 255  # id of pixels that are no object's
LAYOUT = "DAVIS/{JPEGImages,Annotations}/480p/<video>/00000.{jpg,png} with lists in DAVIS/ImageSets/{480p,2017}"
Year = Literal["2016", "2017"]


@dataclass(frozen=True)
class Video:
    """A video's files.

    Attributes:
        name: of the video.
        frames: the frames' images, in order.
        masks: their masks, as many.
        year: of the data set; the masks of 2016 are of one object.
    """

    name: str
    frames: list[Path]
    masks: list[Path]
    year: Year

    def frame(self, index: int) -> Image.Image:
        """Read a frame, RGB; raise ImageError, a ValueError, if it is none."""
        return read_image(self.frames[index])

    def mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Read a frame's mask.

        Returns:
            [H, W] ids of objects, from 1 on, and 0 for the background.

        Raises:
            ValueError: if the mask's image is in color, or none.
        """
        image = read_png(self.masks[index])
        if image.mode not in ("1", "L", "P"):
            raise ValueError(
                f"{self.masks[index]} must be gray or have a palette, got mode {image.mode}; the colors of objects "
                "are not their ids, take the data set's own file"
            )
        ids = np.array(image).astype(np.uint8)
        return (ids > 0).astype(np.uint8) if self.year == "2016" else np.where(ids == VOID, np.uint8(0), ids)


class DavisVideos:
    """The videos of a split, in the order of its list.

    Args:
        folder: DAVIS, as its archives unpack.
        year: None takes 2017 if it is there, else 2016.
        split: a name in `ImageSets/2017` or `ImageSets/480p`, without ".txt".

    Raises:
        ValueError: if a list, frames or masks are missing.
    """

    def __init__(self, folder: str | Path, *, year: Year | None = None, split: str = "val") -> None:
        folder = Path(folder)
        lists: dict[Year, Path] = {year: _list_of(folder, year, split) for year in ("2017", "2016")}
        self.year: Year = year or ("2017" if lists["2017"].is_file() else "2016")
        path = lists[self.year]
        if not path.is_file():
            raise ValueError(f"no list of the videos of DAVIS {self.year} at {path}; expected {LAYOUT}")
        lines = [line.split() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        parts = _by_folder(folder, lines) if self.year == "2017" else _by_line(folder, lines, path)
        self._videos = [Video(name, *_checked(frames, masks), self.year) for name, frames, masks in parts]
        if not self._videos:
            raise ValueError(f"{path} names no video; take the data set's own file")

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> Video:
        return self._videos[index]


def _list_of(folder: Path, year: Year, split: str) -> Path:
    return folder / "ImageSets" / ("480p" if year == "2016" else year) / f"{split}.txt"


def _by_folder(folder: Path, lines: list[list[str]]) -> Iterator[tuple[str, list[Path], list[Path]]]:
    """Find the files of the videos of 2017, whose list has a name a line."""
    for name in (line[0] for line in lines):
        source = folder / "JPEGImages" / "480p" / name
        frames = sorted(source.glob("*.jpg"))
        if not frames:
            raise ValueError(f"no frames *.jpg in {source}; expected {LAYOUT}")
        yield name, frames, [folder / "Annotations" / "480p" / name / f"{frame.stem}.png" for frame in frames]


def _by_line(folder: Path, lines: list[list[str]], path: Path) -> Iterator[tuple[str, list[Path], list[Path]]]:
    """Find the files of the videos of 2016, whose list has a frame and its mask a line."""
    videos: dict[str, list[list[str]]] = {}
    for line in lines:
        if len(line) != 2 or line[0].count("/") < 2:
            raise ValueError(
                f"a line of {path} must be '/JPEGImages/480p/<video>/00000.jpg /Annotations/480p/<video>/00000.png', "
                f"got {' '.join(line)!r}; lists with one name a line are those of 2017 and belong into ImageSets/2017"
            )
        videos.setdefault(Path(line[0]).parent.name, []).append(line)
    for name, pairs in videos.items():
        frames, masks = ([folder / file.lstrip("/") for file in files] for files in zip(*pairs, strict=True))
        yield name, frames, masks


def _checked(frames: list[Path], masks: list[Path]) -> tuple[list[Path], list[Path]]:
    """Raise ValueError if a file is missing."""
    for frame, mask in zip(frames, masks, strict=True):
        if not frame.is_file():
            raise ValueError(f"no frame {frame}; expected {LAYOUT}")
        if not mask.is_file():
            raise ValueError(
                f"frame {frame} has no mask {mask}; take a split with masks, as val; the test sets have none"
            )
    return frames, masks
