"""`dvt-timm evaluate`: every task from the command line, its report, and what stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from helpers import TINY, photos, random_head
from PIL import Image

import dvt_timm
from dvt_timm.cli import evaluate as evaluate_command
from dvt_timm.evaluate.rows import Rows

SMALL = ["--model", TINY, "--size", "64"]


def report_of(folder: str = "report") -> dict[str, Any]:
    return json.loads(Path(folder, "report.json").read_text())


def masks(folder: Path, count: int = 6) -> None:
    photos(folder / "images", count)
    (folder / "masks").mkdir()
    for i in range(count):
        labels = np.random.default_rng(i).integers(0, 2, size=(4, 5)).repeat(16, 0).repeat(16, 1)
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"masks/{i}.png")
    (folder / "classes.txt").write_text("left\nright\n")


def spair(folder: Path) -> None:
    (folder / "JPEGImages/dog").mkdir(parents=True)
    (folder / "PairAnnotation/test").mkdir(parents=True)
    for i, path in enumerate(photos(folder / "JPEGImages/dog", 4)):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        pair = {
            **{"category": "dog", "src_imname": f"{i}.jpg", "trg_imname": f"{(i + 1) % 4}.jpg"},
            **{"src_kps": [[10, 10], [60, 50]], "trg_kps": [[12, 10], [60, 40]], "trg_bndbox": [0, 0, 70, 60]},
        }
        (folder / f"PairAnnotation/test/{i}_dog.json").write_text(json.dumps(pair))


def davis(folder: Path) -> None:
    frames, annotations = (folder / kind / "480p/bear" for kind in ("JPEGImages", "Annotations"))
    frames.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for t in range(4):
        pixels = np.random.default_rng(t).integers(0, 255, size=(64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(frames / f"{t:05}.jpg")
        mask = np.zeros((64, 80), dtype=np.uint8)
        mask[10:40, 10 + t : 50 + t] = 255
        Image.fromarray(mask).save(annotations / f"{t:05}.png")
    (folder / "ImageSets/480p").mkdir(parents=True)
    lines = [f"/JPEGImages/480p/bear/{t:05}.jpg /Annotations/480p/bear/{t:05}.png" for t in range(4)]
    (folder / "ImageSets/480p/val.txt").write_text("\n".join(lines) + "\n")


def voc(folder: Path) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for path in photos(folder / "JPEGImages", 4):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>70</xmax><ymax>60</ymax></bndbox>"
        size = "<size><width>80</width><height>64</height></size>"
        text = f"<annotation>{size}<object><name>dog</name>{box}</object></annotation>"
        (folder / f"Annotations/{path.stem}.xml").write_text(text)
    (folder / "ImageSets/Main/trainval.txt").write_text("0\n1\n2\n3\n")


def nyu(folder: Path) -> None:
    (folder / "kitchen").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, size=(6, 8, 3), dtype=np.uint8).repeat(80, 0).repeat(80, 1)
        Image.fromarray(pixels).save(folder / f"kitchen/rgb_{i}.jpg")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 30).save(folder / f"kitchen/sync_depth_{i}.png")
    lines = [f"/kitchen/rgb_{i}.jpg /kitchen/sync_depth_{i}.png 500.0\n" for i in range(3)]
    (folder / "nyu_train.txt").write_text("".join(lines[:2]))
    (folder / "nyu_test.txt").write_text(lines[2] + lines[0])


DATA: dict[str, Callable[[Path], None]] = {
    "artifacts": lambda folder: None,  # the photos of `command`
    "segmentation": masks,
    "depth": nyu,
    "correspondence": spair,
    "propagation": davis,
    "discovery": voc,
}


TRAINED = ("--steps", "2", "--train-batch", "2")


@pytest.mark.parametrize(
    ("task", "more"),
    [
        *((task, TRAINED if task == "depth" else ()) for task in evaluate_command.TASKS),
        ("segmentation", ("--protocol", "patch", "--seeds", "2")),
        ("segmentation", ("--protocol", "paper", *TRAINED)),
        ("depth", ("--as-released", *TRAINED)),
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


def test_a_broken_photo(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/bad.jpg").write_text("no image")
    assert command("evaluate", "artifacts", "photos", *SMALL, "--mic", "0") == 1
    assert "skipped photos/bad.jpg: " in capsys.readouterr().err
    assert report_of()["skipped"].keys() == {"photos/bad.jpg"}


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
