"""Which images a command line names, and where their results go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import error_of, metadata_of, picture, saved, written
from helpers import fitter, without_override
from PIL import Image

from dvt_timm.cli import main as cli
from dvt_timm.cli.inputs import _listed
from dvt_timm.offline import fit_store, open_store


def test_same_stems_do_not_overwrite_each_other(run: Callable[..., int], tmp_path: Path) -> None:
    names = ["a/x.jpg", "b/x.png", "b/X.webp", "b/x-2.png"]
    for seed, name in enumerate(names):
        saved(tmp_path / name, picture(seed=seed))
    assert run(*names, "--panels") == 0
    files = [path for path in written(tmp_path / "out") if path.endswith(".safetensors")]
    assert len({file.casefold() for file in files}) == 4
    assert {metadata_of(tmp_path / "out" / file)["image"] for file in files} == {"x.jpg", "x.png", "X.webp", "x-2.png"}
    assert len([path for path in written(tmp_path / "out") if path.endswith(".png")]) == 4


def test_folders_keep_their_structure(run: Callable[..., int], tmp_path: Path) -> None:
    for name in ("in/b.PNG", "in/a.jpeg", "in/sub/a.jpg"):
        saved(tmp_path / name)
    (tmp_path / "in/notes.txt").touch()
    assert run("in", "in/sub/a.jpg") == 0  # an image named twice is taken once
    assert written(tmp_path / "out") == ["a.safetensors", "b.safetensors", "sub/a.safetensors"]


def test_panels_of_an_earlier_run_are_no_images(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    assert run(".", "--panels") == 0
    assert run(".", "--panels") == 0
    assert written(tmp_path / "out") == ["a.png", "a.safetensors"]


def test_an_input_is_never_overwritten(tmp_path: Path, capsys: Any) -> None:
    image = saved(tmp_path / "a.png")
    before = image.read_bytes()
    assert cli.main(["features", str(image), "--out", str(tmp_path), "--size", "28", "--panels"]) == 0
    assert image.read_bytes() == before
    assert written(tmp_path) == ["a-2.png", "a-2.safetensors", "a.png"]


def test_a_photo_beside_the_image_is_not_overwritten(tmp_path: Path) -> None:
    image, photo = saved(tmp_path / "a.jpg"), saved(tmp_path / "a.png", picture(seed=1))
    before = photo.read_bytes()
    for _ in range(2):  # the second run replaces the results of the first
        assert cli.main(["features", str(image), "--out", str(tmp_path), "--size", "28", "--panels"]) == 0
        assert photo.read_bytes() == before
        assert written(tmp_path) == ["a-2.png", "a-2.safetensors", "a.jpg", "a.png"]


def test_a_photo_that_came_beside_the_maps_is_not_overwritten(run: Callable[..., int], tmp_path: Path) -> None:
    """Nor deleted where the maps are made anew."""
    saved(tmp_path / "a.jpg")
    assert run("a.jpg") == 0
    photo = saved(tmp_path / "out/a.png", picture(seed=1))
    before = photo.read_bytes()
    assert run("a.jpg", size="28") == 0
    assert run("a.jpg", "--panels") == 0
    assert photo.read_bytes() == before
    assert written(tmp_path / "out") == ["a-2.png", "a-2.safetensors", "a.png", "a.safetensors"]


def test_out_that_is_the_image_folder(tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    assert "choose another --out" in error_of(capsys, "features", str(tmp_path), "--out", str(tmp_path))


def test_nothing_to_read(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert "no image in" in error_of(capsys, "features", str(tmp_path), "--out", str(out))
    assert "missing.jpg not found; give JPEG, " in error_of(
        capsys, "features", str(tmp_path / "missing.jpg"), "--out", str(out)
    )
    assert not out.exists()


def test_pictures_of_this_package_are_never_photos(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    """Those of other commands, and of the same one with another --out."""
    saved(tmp_path / "a.jpg")
    assert run(".", "--panels") == 0
    assert cli.main(["fit", "a.jpg", "--panel", "--size", "56", "--views", "3"]) == 0
    capsys.readouterr()
    assert cli.main(["features", ".", "--out", "other", "--size", "56"]) == 0
    assert written(tmp_path / "other") == ["a.safetensors"]
    assert "dvt-timm: left aside: 2 pictures drawn by dvt-timm; JPEG, PNG and WebP files are read\n" in (
        capsys.readouterr().err
    )


def test_files_that_are_not_read_are_counted_in_a_line(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "in/a.jfif", format="JPEG")
    saved(tmp_path / "in/b.JPE", format="JPEG")
    for name in ("c.bmp", "d.bmp", "e.tif"):
        saved(tmp_path / "in" / name)
    (tmp_path / "in/f.jpg").symlink_to("gone")
    assert run("in") == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["out/a.safetensors", "out/b.safetensors"]
    line = "dvt-timm: left aside: 2 .bmp files, 1 .tif files, 1 broken links; JPEG, PNG and WebP files are read\n"
    assert line in captured.err


def test_links_to_folders_are_followed(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "far/a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/class").symlink_to(tmp_path / "far")
    (tmp_path / "far/loop").symlink_to(tmp_path / "in")
    assert run("in") == 0
    assert written(tmp_path / "out") == ["class/a.safetensors"]


def test_a_folder_that_cannot_be_searched_costs_no_other(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    for name in ("in/good/a.png", "in/closed/b.png", "listed/c.png", "in/good/d.png"):
        saved(tmp_path / name)
    with (
        without_override(tmp_path / "in/closed", 0),
        without_override(tmp_path / "listed", 0o400),
        without_override(tmp_path / "in/good/d.png", 0),
    ):
        for command in (["features", "--size", "56"], ["fit", "--size", "56", "--views", "3"]):
            assert cli.main([*command, "in", "listed", "--out", command[0]]) == 1
            errors = capsys.readouterr().err
            for path in ("in/closed", "listed", "in/good/d.png"):
                assert errors.count(f"dvt-timm: skipped {path}: Permission denied\n") == 1
            assert "dvt-timm: 3 of 4 inputs skipped\n" in errors
    assert written(tmp_path / "features") == ["good/a.safetensors"]
    assert len(open_store("fit")) == 1


def names_of(tmp_path: Path, data: bytes) -> list[str]:
    (tmp_path / "list.txt").write_bytes(data)
    return [str(path.relative_to(tmp_path)) for path in _listed(tmp_path / "list.txt")]


@pytest.mark.parametrize(
    "data",
    [
        b"a b.png\n\xc3\xa4/c.png\n",
        b"a b.png\r\n\r\n  \xc3\xa4/c.png\r\n",
        b"\xef\xbb\xbfa b.png\r\xc3\xa4/c.png",
        b"a b.png\0\xc3\xa4/c.png\0",  # of find -print0
        "a b.png\r\nä/c.png\r\n".encode("utf-16"),  # of PowerShell
        "a b.png\nä/c.png".encode("utf-16-be").join((b"\xfe\xff", b"")),
    ],
)
def test_ways_to_write_a_list(tmp_path: Path, data: bytes) -> None:
    assert names_of(tmp_path, data) == ["a b.png", "ä/c.png"]


def test_names_that_are_odd(tmp_path: Path) -> None:
    names = ["next\x85line.png", "line\u2028separator.png", "form\x0cfeed.png", os.fsdecode(b"caf\xe9.png")]
    assert names_of(tmp_path, os.fsencode("\n".join(names))) == names
    assert names_of(tmp_path, b"two\nlines.png\0 b.png\0") == ["two\nlines.png", " b.png"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "photos/a.jpg\nphotos/b.jpg\n".encode("utf-16-le"),
            "cannot read the list lists/l.txt: it looks like UTF-16; save",
        ),
        (
            b"photos/a.jpg\nb.jpg\n",
            "no image in lists/l.txt: lists/photos/a.jpg not found; a list is in UTF-8, its paths are relative to its "
            "folder",
        ),
        (b"# photos\n", "no image in lists/l.txt: lists/# photos not found; a list is in UTF-8"),
        (b"\n", "no image in lists/l.txt; give JPEG, PNG or WebP files"),
    ],
)
def test_lists_of_nothing(tmp_path: Path, monkeypatch: Any, capsys: Any, data: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "photos/a.jpg")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/l.txt").write_bytes(data)
    assert message in error_of(capsys, "fit", "lists/l.txt", "--out", "s")


def test_a_name_with_nul_is_not_found(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    good = saved(tmp_path / "good.png")
    assert fit_store(fitter(), ["a\0b.png", good], "s").keys() == {"a\0b.png"}
    assert len(open_store("s")) == 1


def test_large_images_have_an_option(run: Callable[..., int], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2600)
    assert run("a.png") == 1
    assert "(--large-images)" in capsys.readouterr().err
    assert run("a.png", "--large-images") == 0
    assert cli.main(["fit", "a.png", "--size", "56", "--views", "3"]) == 1
    assert cli.main(["fit", "a.png", "--size", "56", "--views", "3", "--large-images"]) == 0
    assert run("a.png", size="28") == 1  # nothing is left changed


def test_odd_inputs_do_not_end_the_run(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "long.png", picture(3, 200))
    saved(tmp_path / f"{'n' * 245}.png")
    latin = os.fsdecode(b"caf\xe9.png")
    saved(tmp_path / "b.png").rename(tmp_path / latin)
    saved(tmp_path / "c.png").rename(tmp_path / "..png")
    status = run("long.png", f"{'n' * 245}.png", "x" * 300, latin, "..png")
    errors = capsys.readouterr().err
    assert status == 1
    assert "skipped long.png: 3 x 200 pixels, one side over 20 times the other; crop it" in errors
    assert "its name is too long" in errors
    assert f"skipped {'x' * 300}: not found" in errors
    assert metadata_of(tmp_path / "out/caf\ufffd.safetensors")["image"] == "caf\ufffd.png"
    assert (tmp_path / "out/image.safetensors").is_file()
