"""Folders are searched with what links lead to, once; what is left aside is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import photo, without_override

from dvt_timm._util.folders import images_in, survey
from dvt_timm._util.images import save_picture


def test_images_are_found_in_folders_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in ("c.JPG", "b/a.webp", "notes.txt", "d.jfif", "e.JPE"):
        (tmp_path / name).touch()
    assert images_in(tmp_path) == [tmp_path / name for name in ("b/a.webp", "c.JPG", "d.jfif", "e.JPE")]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in ("far/one", "photos/two"):
        (tmp_path / name).mkdir(parents=True)
        photo().save(tmp_path / name / "a.png")
    (tmp_path / "photos/a-link").symlink_to(tmp_path / "far")
    (tmp_path / "photos/another").symlink_to(tmp_path / "far/one")
    (tmp_path / "photos/again").symlink_to("two")
    (tmp_path / "photos/loop").symlink_to(".")
    (tmp_path / "far/back").symlink_to(tmp_path / "photos")
    expected = [tmp_path / "photos" / name for name in ("a-link/one/a.png", "two/a.png")]
    assert images_in(tmp_path / "photos") == expected
    (tmp_path / "entry").symlink_to(tmp_path / "photos/two")
    assert images_in(tmp_path / "entry") == [tmp_path / "entry/a.png"]


def test_what_is_left_aside_is_counted(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    for name in ("b.bmp", "c.TIF", "d.tif", "e.heic", "notes.txt", "README"):
        (tmp_path / name).touch()
    for name in ("f.jpg", "class", "notes.md"):
        (tmp_path / name).symlink_to("gone")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    save_picture(np.zeros((2, 2, 3), dtype=np.uint8), tmp_path / "panels/a.png")
    found = survey(tmp_path)
    assert found.images == [tmp_path / "a.png"]
    assert found.unreadable == {}
    assert found.aside == {
        **{".bmp files": 1, ".tif files": 2, ".heic files": 1},
        **{"broken links": 3, "pictures drawn by dvt-timm": 1},
    }


def test_folders_that_cannot_be_searched_are_named(tmp_path: Path) -> None:
    for name in ("good", "listed", "closed", "far"):
        (tmp_path / name).mkdir()
        photo().save(tmp_path / name / "a.png")
        photo().save(tmp_path / name / "b.png")
    photos = tmp_path / "good"
    (photos / "listed").symlink_to(tmp_path / "listed")
    (photos / "closed").symlink_to(tmp_path / "closed")
    (photos / "c.png").symlink_to(tmp_path / "far/a.png")
    with (
        without_override(tmp_path / "listed", 0o400),
        without_override(tmp_path / "closed", 0),
        without_override(tmp_path / "far", 0),
    ):
        found = survey(photos)
    assert found.images == [photos / "a.png", photos / "b.png"]
    assert found.unreadable == {photos / name: "Permission denied" for name in ("listed", "closed", "c.png")}
