"""`dvt-timm evaluate`: every task from the command line, its report, and what stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from evaluating import DATA
from exploring import data_of
from filelock import FileLock
from helpers import TINY, random_head

import dvt_timm
from dvt_timm.cli import evaluate as evaluate_command
from dvt_timm.evaluate.rows import Rows

SMALL = ["--model", TINY, "--size", "64"]


def report_of(folder: str = "report") -> dict[str, Any]:
    return json.loads(Path(folder, "report.json").read_text())


TRAINED = ("--steps", "2", "--train-batch", "2")


@pytest.mark.parametrize(
    ("task", "more"),
    [
        *((task, TRAINED if task == "depth" else ()) for task in evaluate_command.TASKS),
        ("segmentation", ("--protocol", "patch", "--seeds", "2")),
        ("segmentation", ("--protocol", "paper", *TRAINED)),
        pytest.param("depth", ("--as-released", *TRAINED), marks=pytest.mark.slow),
    ],
)
def test_every_task(
    command: Callable[..., int], task: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert DATA.keys() == evaluate_command.TASKS.keys()
    Path("data").mkdir()
    DATA[task](Path("data"))
    dvt_timm.save_head(random_head(64), "head", base=TINY)
    dvt_timm.save_model(timm.create_model(TINY, pretrained=True), "saved")
    data = "photos" if task == "artifacts" else "data"
    options = ["--denoiser", "head", "--denoiser", "second=head", "--positions", "2"]
    options += ["--other", f"again={TINY}", "--other", "saved"]
    assert command("evaluate", task, data, *SMALL, *options, "--projection", "5", *more) == 0
    captured = capsys.readouterr()
    found = report_of()
    rows = {"plain", "head", "second", "again", "saved", "positions", "projection"}
    assert found["figures"].keys() == rows
    assert found["verdicts"].keys() == rows - {"plain"}
    first = found["measures"][0]["name"]
    assert found["figures"]["again"][first] == found["figures"]["plain"][first]
    assert found["figures"]["saved"][first] == found["figures"]["plain"][first]
    assert found["figures"]["second"][first] == found["figures"]["head"][first]
    assert found["settings"]["source of head"] == "head"
    assert all(sentence in captured.out for sentence in found["verdicts"].values())
    assert captured.out.endswith("report/report.html\n")
    assert {"report.html", "report.md", "figures.png"} <= {path.name for path in Path("report").iterdir()}


def test_it_goes_on_where_it_was(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = ["evaluate", "artifacts", "photos", *SMALL, "--mic", "0", "--half"]
    assert command(*evaluate) == 0
    before = report_of()
    passed = Rows._pass
    seen: list[int] = []

    def counted(self: Rows, name: str, images: Any, size: Any) -> Any:
        seen.append(len(images))
        return passed(self, name, images, size)

    monkeypatch.setattr(Rows, "_pass", counted)
    assert command(*evaluate) == 0
    assert seen == []
    assert report_of() == before
    assert command(*evaluate, "--cache", "0", "--out", "other") == 0
    assert sum(seen) == 8 + 3  # photos, and those that test once more with an artifact planted
    assert not Path("other/maps").exists()


def test_several_sizes_and_a_limit(command: Callable[..., int]) -> None:
    sizes = ["--model", TINY, "--size", "48", "64"]
    assert command("evaluate", "artifacts", "photos", *sizes, "--limit", "6", "--projection", "0", "--mic", "0") == 0
    for size in (48, 64):
        found = report_of(f"report/{size}")
        assert found["settings"]["pixels"] == f"{size}, squeezed to a square"
        assert found["settings"]["photos that fit the probes"] == 4
        assert found["figures"].keys() == {"plain"}


def explored(folder: str) -> dict[str, Any]:
    return data_of(Path(folder, "explore.html").read_text())["about"]


def test_a_page_to_explore(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    dvt_timm.save_head(random_head(64), "head", base=TINY)
    evaluate = ["evaluate", "artifacts", "photos", *SMALL, "--mic", "0", "--projection", "0"]
    assert command(*evaluate, "--denoiser", "head", "--explore", "3") == 0
    assert '<a href="explore.html">' in Path("report/report.html").read_text()
    assert [photo["name"] for photo in explored("report")["photos"]] == ["0.png", "2.png", "5.png"]
    assert dict(explored("report")["facts"])["head"] == "head"
    assert command(*evaluate, "--denoiser", "head") == 0
    assert "explore.html" not in Path("report/report.html").read_text()  # it is of another command
    capsys.readouterr()
    assert command(*evaluate, "--explore", "3") == 2
    assert "--explore shows a row beside the plain one, and there is none" in capsys.readouterr().err
    assert command(*evaluate, "--explore", "201") == 2
    assert "a page takes at most 200 images, got --explore 201" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", evaluate_command.TASKS)
def test_a_page_to_explore_of_every_task(command: Callable[..., int], task: str) -> None:
    Path("data").mkdir()
    DATA[task](Path("data"))
    more = TRAINED if task == "depth" else ()
    data = "photos" if task == "artifacts" else "data"
    assert command("evaluate", task, data, *SMALL, "--projection", "5", "--explore", "2", *more) == 0
    assert len(explored("report")["photos"]) == 2
    assert dict(explored("report")["facts"])["head"] == "projection"


def test_a_broken_photo(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/bad.jpg").write_text("no image")
    assert command("evaluate", "artifacts", "photos", *SMALL, "--mic", "0") == 1
    assert "skipped photos/bad.jpg: " in capsys.readouterr().err
    assert report_of()["skipped"].keys() == {"photos/bad.jpg"}


def test_a_page_that_cannot_be_made_costs_no_report(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    dvt_timm.save_model(timm.create_model("test_vit3.r160_in1k"), "wide")
    evaluate = ["evaluate", "artifacts", "photos", *SMALL, "--mic", "0", "--projection", "0", "--other", "wide"]
    assert command(*evaluate, "--explore", "2") == 1
    assert "no explore.html: raw and denoised map must have one shape" in capsys.readouterr().err
    assert report_of()["figures"].keys() == {"plain", "wide"}
    for option in ("--explore", "--mic", "--projection"):
        assert command(*evaluate, option, "-1") == 2
        assert f"{option} must be at least 0, got -1" in capsys.readouterr().err


def test_options_of_another_protocol(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for protocol, option in (
        ("knn", "--steps"),
        ("patch", "--train-batch"),
        ("paper", "--memory"),
        ("paper", "--seeds"),
    ):
        assert command("evaluate", "segmentation", "data", "--protocol", protocol, *SMALL, option, "5") == 2
        assert f"{option} is not of --protocol {protocol}" in capsys.readouterr().err


def test_a_report_of_another_task_is_not_replaced(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    DATA["segmentation"](Path("data"))
    numbers = [*SMALL, "--projection", "0"]
    assert command("evaluate", "segmentation", "data", "--protocol", "knn", *numbers) == 0
    for others in (["artifacts", "photos"], ["segmentation", "data", "--protocol", "patch"]):
        assert command("evaluate", *others, *numbers) == 2
        message = "report holds a report of segmentation, knn; give another folder by --out, or delete it"
        assert message in capsys.readouterr().err
    assert report_of()["task"] == "segmentation, knn"


def test_what_stops_it_is_one_line(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    dvt_timm.save_head(random_head(128), "wide", base="vit_small_patch14_dinov2.lvd142m")
    Path("empty").mkdir()
    for arguments, message in (
        (["artifacts", "nothing"], "no image in nothing"),
        (["artifacts", "photos", "--denoiser", "denoised=wide"], "a row is named 'denoised' already"),
        (["artifacts", "photos", "--denoiser", "wide", "--denoiser", "a/wide"], "a row is named 'wide' already"),
        (["depth", "empty", "--size", "48", "64"], "the paper's probes have sizes of their own"),
        (["artifacts", "photos", "--denoiser", "gone"], "cannot load --denoiser gone"),
        (["artifacts", "photos", "--denoiser", "wide"], "wide is 128 channels wide, the model 64"),
        (["artifacts", "photos", "--layer", "99"], "layer must be"),
        (["artifacts", "photos", "--projection", "64"], "rank must be a whole number of dimensions"),
        (["segmentation", "empty"], "empty holds no images with masks; the layouts that are known"),
        (["correspondence", "empty"], "SPair-71k is laid out as"),
        (["propagation", "empty"], "no list of the videos of DAVIS"),
        (["depth", "empty"], "nyu_train.txt"),
        (["discovery", "empty"], "neither boxes nor masks of objects"),
    ):
        assert command("evaluate", arguments[0], "--model", TINY, *arguments[1:]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_row_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "head").mkdir()
    monkeypatch.chdir(tmp_path / "head")
    sources = [".", "hf-hub:me/other", "mine=x"]
    assert evaluate_command._named(sources) == [("head", "."), ("other", "hf-hub:me/other"), ("mine", "x")]


def test_one_run_at_a_time(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("report").mkdir()
    with FileLock("report/.lock"):
        assert command("evaluate", "artifacts", "photos", *SMALL, "--mic", "0", "--projection", "0") == 2
    assert "another run is writing to report; wait for it" in capsys.readouterr().err
