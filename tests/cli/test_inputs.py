"""Which images a command line names, and where their results go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import error_of, metadata_of, picture, saved, written

from dvt_timm.cli import main as cli


def test_same_stems_do_not_overwrite_each_other(run: Callable[..., int], tmp_path: Path) -> None:
    names = ["a/x.jpg", "b/x.png", "b/X.webp", "b/x-2.png"]
    for seed, name in enumerate(names):
        saved(tmp_path / name, picture(seed=seed))
    assert run(*names) == 0
    files = [path for path in written(tmp_path / "out") if path.endswith(".safetensors")]
    assert len({file.casefold() for file in files}) == 4
    assert {metadata_of(tmp_path / "out" / file)["image"] for file in files} == {"x.jpg", "x.png", "X.webp", "x-2.png"}
    assert len([path for path in written(tmp_path / "out") if path.endswith(".png")]) == 4


def test_folders_keep_their_structure(run: Callable[..., int], tmp_path: Path) -> None:
    for name in ("in/b.PNG", "in/a.jpeg", "in/sub/a.jpg"):
        saved(tmp_path / name)
    (tmp_path / "in/notes.txt").touch()
    assert run("in", "in/sub/a.jpg") == 0  # an image named twice is taken once
    expected = ["a", "b", "sub/a"]
    assert written(tmp_path / "out") == sorted(f"{name}.{kind}" for name in expected for kind in ("png", "safetensors"))


def test_panels_of_an_earlier_run_are_no_images(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    assert run(".") == 0
    assert run(".") == 0
    assert written(tmp_path / "out") == ["a.png", "a.safetensors"]


def test_an_input_is_never_overwritten(tmp_path: Path, capsys: Any) -> None:
    image = saved(tmp_path / "a.png")
    before = image.read_bytes()
    assert cli.main(["features", str(image), "--out", str(tmp_path), "--size", "28"]) == 0
    assert image.read_bytes() == before
    assert written(tmp_path) == ["a-2.png", "a-2.safetensors", "a.png"]


def test_a_photo_beside_the_image_is_not_overwritten(tmp_path: Path) -> None:
    image, photo = saved(tmp_path / "a.jpg"), saved(tmp_path / "a.png", picture(seed=1))
    before = photo.read_bytes()
    for _ in range(2):  # the second run replaces the results of the first
        assert cli.main(["features", str(image), "--out", str(tmp_path), "--size", "28"]) == 0
        assert photo.read_bytes() == before
        assert written(tmp_path) == ["a-2.png", "a-2.safetensors", "a.jpg", "a.png"]


def test_out_that_is_the_image_folder(tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    assert "choose another --out" in error_of(capsys, "features", str(tmp_path), "--out", str(tmp_path))


def test_nothing_to_read(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert "no image in" in error_of(capsys, "features", str(tmp_path), "--out", str(out))
    assert "no image in" in error_of(capsys, "features", str(tmp_path / "missing.jpg"), "--out", str(out))
    assert not out.exists()


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
    assert (tmp_path / "out/image.png").is_file()
