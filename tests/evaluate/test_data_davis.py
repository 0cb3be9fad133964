"""Videos of DAVIS are read from folders of both years."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt_timm.evaluate.data.davis import DavisVideos

IDS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)


def write_video(folder: Path, name: str, frames: int = 3, ids: np.ndarray = IDS, mode: str = "P") -> None:
    """Write gray frames of 3 x 2 pixels, each a little brighter, and the same mask for all."""
    for part in ("JPEGImages", "Annotations"):
        (folder / part / "480p" / name).mkdir(parents=True)
    for index in range(frames):
        Image.new("L", (3, 2), 50 * index).save(folder / "JPEGImages/480p" / name / f"{index:05}.jpg")
        mask = Image.fromarray(ids)
        if mode == "P":
            mask.putpalette([7 * value % 256 for value in range(768)])
        mask.convert(mode).save(folder / "Annotations/480p" / name / f"{index:05}.png")


def write_list(folder: Path, year: str, lines: list[str], split: str = "val") -> Path:
    path = folder / "ImageSets" / ("480p" if year == "2016" else year) / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n\n")
    return path


def lines_of(name: str, frames: int = 3) -> list[str]:
    return [f"/JPEGImages/480p/{name}/{i:05}.jpg /Annotations/480p/{name}/{i:05}.png" for i in range(frames)]


def test_videos_of_2017(tmp_path: Path) -> None:
    for name in ("bear", "ant"):
        write_video(tmp_path, name)
    write_list(tmp_path, "2017", ["bear", "ant"])
    videos = DavisVideos(tmp_path)
    assert (len(videos), videos.year, [videos[0].name, videos[1].name]) == (2, "2017", ["bear", "ant"])
    video = videos[0]
    assert [frame.name for frame in video.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert [mask.name for mask in video.masks] == ["00000.png", "00001.png", "00002.png"]
    frame = video.frame(2)
    assert (frame.mode, frame.size) == ("RGB", (3, 2))
    assert abs(frame.getpixel((0, 0))[0] - 100) < 3
    mask = video.mask(2)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1, 2], [0, 1, 0]]  # 255 is no object
    with pytest.raises(dataclasses.FrozenInstanceError):
        video.name = "cat"  # type: ignore[misc]
    assert [video.name for video in videos] == ["bear", "ant"]  # it ends


def test_videos_of_2016(tmp_path: Path) -> None:
    for name in ("bear", "ant"):
        write_video(tmp_path, name, ids=np.where(IDS == 1, 255, 0).astype(np.uint8), mode="L")
    write_list(tmp_path, "2016", lines_of("bear", frames=2) + lines_of("ant"))  # the list says which frames
    videos = DavisVideos(str(tmp_path))
    assert (videos.year, [(video.name, len(video.frames)) for video in videos]) == ("2016", [("bear", 2), ("ant", 3)])
    assert videos[1].frames[0] == tmp_path / "JPEGImages/480p/ant/00000.jpg"
    assert videos[1].mask(0).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_the_year_can_be_chosen(tmp_path: Path) -> None:
    write_video(tmp_path, "bear")
    write_list(tmp_path, "2017", ["bear"])
    write_list(tmp_path, "2016", lines_of("bear"))
    assert DavisVideos(tmp_path).year == "2017"
    assert DavisVideos(tmp_path, year="2016")[0].mask(0).tolist() == [[0, 1, 1], [1, 1, 0]]  # all objects are one
    write_list(tmp_path, "2016", lines_of("bear"), split="train")
    assert DavisVideos(tmp_path, split="train").year == "2016"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no list of the videos of DAVIS 2016 at .*480p/val.txt; expected DAVIS/"):
        DavisVideos(tmp_path)
    with pytest.raises(ValueError, match=r"no list of the videos of DAVIS 2017 at .*ImageSets/2017/test.txt; expected"):
        DavisVideos(tmp_path, year="2017", split="test")
    write_list(tmp_path, "2017", ["bear"])
    with pytest.raises(ValueError, match=r"no frames \*.jpg in .*JPEGImages/480p/bear; expected DAVIS/"):
        DavisVideos(tmp_path)
    write_list(tmp_path, "2016", lines_of("bear"))
    with pytest.raises(ValueError, match=r"no frame .*JPEGImages/480p/bear/00000.jpg; expected DAVIS/"):
        DavisVideos(tmp_path, year="2016")
    write_list(tmp_path, "2017", [""])
    with pytest.raises(ValueError, match=r"val.txt names no video"):
        DavisVideos(tmp_path)


def test_frames_need_masks(tmp_path: Path) -> None:
    write_video(tmp_path, "bear")
    (tmp_path / "Annotations/480p/bear/00001.png").unlink()
    write_list(tmp_path, "2017", ["bear"])
    write_list(tmp_path, "2016", lines_of("bear"))
    for year in ("2016", "2017"):
        with pytest.raises(ValueError, match=r"bear/00001.jpg has no mask .*bear/00001.png; take a split with masks"):
            DavisVideos(tmp_path, year=year)  # type: ignore[arg-type]


def test_a_list_of_2017_in_place_of_2016(tmp_path: Path) -> None:
    for line in ("bear", "bear 00000.jpg"):
        write_list(tmp_path, "2016", [line])
        with pytest.raises(ValueError, match=rf"a line of .*val.txt must be .*got '{line}'"):
            DavisVideos(tmp_path)


def test_a_mask_in_color(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", mode="RGB")
    write_list(tmp_path, "2017", ["bear"])
    with pytest.raises(ValueError, match=r"bear/00000.png must be gray or have a palette, got mode RGB"):
        DavisVideos(tmp_path)[0].mask(0)
