"""`dvt-timm explore`: the page it writes, what it says, and what stops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import error_of, picture, saved
from exploring import data_of
from helpers import DEMO, TINY, random_head

import dvt_timm

SMALL = ["--model", TINY, "--denoiser", "head", "--size", "48"]


@pytest.fixture
def explore(command: Callable[..., int]) -> Callable[..., int]:
    """`dvt-timm explore` of eight photos, with the tiny model and a head."""
    dvt_timm.save_head(random_head(64), "head", base=TINY)
    return lambda *arguments: command("explore", *map(str, arguments))


def names_in(page: str = "explore.html") -> list[str]:
    return [photo["name"] for photo in data_of(Path(page).read_text())["about"]["photos"]]


def test_the_page(explore: Callable[..., int], capsys: Any) -> None:
    assert explore("photos", *SMALL, "--out", "new/page.html") == 0
    assert capsys.readouterr().out == "new/page.html\n"
    assert names_in("new/page.html") == [f"{i}.png" for i in range(8)]
    facts = dict(data_of(Path("new/page.html").read_text())["about"]["facts"])
    assert facts["head"] == "head"
    assert facts["position leakage"].startswith("R²")
    assert "(999 of 1,000 are below; at worst 0." in facts["error of similarities"]
    assert facts["components"] == "64 a map"
    assert explore("photos/0.png", *SMALL, "--components", "32", "--out", "new/page.html") == 0
    assert names_in("new/page.html") == ["0.png"]


def test_by_default_the_embedded_model_says_it_all(command: Callable[..., int]) -> None:
    assert command("explore", "photos/0.png", "--size", "28") == 0
    facts = dict(data_of(Path("explore.html").read_text())["about"]["facts"])
    assert facts["model"] == DEMO
    assert facts["head"] == "demo/head.safetensors"


def test_of_many_photos_some_are_taken(explore: Callable[..., int], capsys: Any) -> None:
    assert explore("photos", *SMALL, "--limit", "4") == 0
    assert names_in() == ["0.png", "2.png", "4.png", "6.png"]
    assert "dvt-timm: 4 of 8 photos are taken, spread evenly; --limit says how many\n" in capsys.readouterr().err


def test_pages_beside_the_photos_and_lists(explore: Callable[..., int]) -> None:
    Path("list.txt").write_text("photos/1.png\nphotos/3.png\n")
    assert explore("list.txt", *SMALL, "--out", "photos/page.html") == 0
    assert names_in("photos/page.html") == ["1.png", "3.png"]


def test_what_cannot_be_read_is_named(explore: Callable[..., int], capsys: Any) -> None:
    Path("photos/bad.jpg").write_text("no image")
    saved(Path("photos/thin.png"), picture(10, 300))
    assert explore("photos", "gone.jpg", *SMALL) == 1
    err = capsys.readouterr().err
    assert "skipped photos/bad.jpg: not a JPEG, PNG or WebP image" in err
    assert "skipped photos/thin.png: " in err
    assert "skipped gone.jpg: not found" in err
    assert len(names_in()) == 8


def test_what_stops_it_is_one_line(explore: Callable[..., int], capsys: Any) -> None:
    for arguments, message in (
        (["nothing", *SMALL], "no image in nothing"),
        (["photos", "--model", TINY], "the model has no denoiser"),
        (["photos", *SMALL, "--out", "photos"], "photos is a folder, and a page is a file; choose another --out"),
        (["photos", *SMALL, "--out", "photos/0.png"], "photos/0.png: a page is an .html file; choose another --out"),
        (["photos", *SMALL, "--limit", "201"], "a page takes at most 200 photos, got --limit 201; make several pages"),
        (["photos", *SMALL, "--components", "31"], "components must be 32..64, got 31"),
        (["photos", "--model", TINY, "--denoiser", "gone"], "cannot load --denoiser gone: "),
        (["photos", "--model", "no_such_model"], "timm has no model no_such_model"),
    ):
        assert message in error_of(capsys, "explore", *arguments)
    assert not Path("explore.html").exists()


def test_a_head_of_another_model(explore: Callable[..., int], capsys: Any) -> None:
    dvt_timm.save_head(random_head(128), "wide", base="vit_small_patch14_dinov2.lvd142m")
    assert explore("photos", "--model", TINY, "--denoiser", "wide") == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("dvt-timm: error: cannot load --denoiser wide: the head is 128 channels wide, the model 64")
