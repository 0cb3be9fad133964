"""A report says in a sentence whether there is a difference, and every number with its interval."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import photos
from PIL import Image

from dvt_timm._util.folders import images_in
from dvt_timm.evaluate.estimates import Estimate, mean_over
from dvt_timm.evaluate.report import Measure, Report

MIOU, LEAKAGE = Measure("mIoU", "higher", "%"), Measure("leakage", "lower")


def report(plain: list[float], head: list[float], measure: Measure = MIOU, **options: Any) -> Report:
    values = {"plain": plain, "head": head}
    return Report(
        task="segmentation",
        over="images",
        count=len(plain),
        measures=[measure, Measure("other", "higher")],
        figures={row: {measure.name: mean_over(torch.tensor(of))} for row, of in values.items()},
        each={measure.name: values},
        **options,
    )


def noise(count: int = 100) -> list[float]:
    return (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.1).tolist()


def test_sentences() -> None:
    plain = noise()
    better = [value + 0.014 + 0.001 * (i % 2) for i, value in enumerate(plain)]
    sentence = report(plain, better).verdict("head")
    assert sentence == "head: better than plain by 1.4 +- 0.0 points of mIoU (100 images)."
    assert report(better, plain).verdict("head").startswith("head: worse than plain by 1.4 +- 0.0 points of mIoU")
    assert report(plain, better, LEAKAGE).verdict("head").startswith("head: worse than plain by 0.014 +- 0.000 of leak")
    assert report(better, plain, LEAKAGE).verdict("head").startswith("head: better than plain by")
    assert report(plain, better).verdicts.keys() == {"head"}
    assert report(plain, better).verdict("plain", than="head").startswith("plain: worse than head by 1.4 +- 0.0")


@pytest.mark.parametrize(("measure", "sign"), [(MIOU, -1), (LEAKAGE, 1)])
def test_worse(measure: Measure, sign: int) -> None:
    plain = noise()
    worse, unsure = [value + sign * 0.01 for value in plain], [sign * 0.001 - value for value in plain]
    assert report(plain, worse, measure).is_worse("head")
    assert not report(worse, plain, measure).is_worse("head")
    assert not report(plain, unsure, measure).is_worse("head")
    for few in (1, 3):
        assert report(plain[:few], worse[:few], measure).is_worse("head")
        assert not report(worse[:few], plain[:few], measure).is_worse("head")


def test_no_difference_and_how_many_it_would_take() -> None:
    plain = [0.0] * 100
    head = [0.1 * (-1) ** i + 0.002 for i in range(100)]
    sentence = report(plain, head).verdict("head")
    assert sentence.startswith("head: no difference from plain was found in mIoU with 100 images (+0.2 +- ")
    needed = int(sentence.rpartition("some ")[2].rstrip(".").replace(",", ""))
    assert needed == pytest.approx(100 * (2.8 * 0.01 / 0.002) ** 2, rel=0.15)
    skewed = [0.0] * 9 + [1.0]
    needed = report([0.0] * 10, skewed).verdict("head").rpartition("some ")[2].rstrip(".")
    assert int(needed) > 10
    same = report(plain, plain).verdict("head")
    assert same == "head: no difference from plain was found in mIoU with 100 images (+0.0 +- 0.0 points)."


def test_few_images_say_little() -> None:
    sentence = report([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).verdict("head")
    assert sentence == "head: +10.0 points of mIoU beside plain; 3 images are too few to say more."


def test_one_image_says_nothing_of_others() -> None:
    sentence = report([0.2], [0.3]).verdict("head")
    assert sentence == "head: +10.0 points of mIoU beside plain; 1 of the images say nothing of others."
    unknown = report([math.nan, 1.0], [0.3, 0.2]).verdict("head")
    assert unknown == "head: mIoU is not known, so that nothing can be said."


def test_the_table() -> None:
    lines = report(noise(), noise(), published={"head": {"mIoU": 0.841}}).table().splitlines()
    assert lines[0] == "| measure | better | plain | head |"
    assert lines[2].startswith("| mIoU, % | higher | ")
    assert lines[2].count("[") == 2
    assert lines[3] == "| mIoU, published | higher | - | 84.1 |"
    assert lines[4] == "| other | higher | - | - |"


class Tags(HTMLParser):
    """Which tags a page has, each opened one closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href") and value and value[0] != "#"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_what_is_written(tmp_path: Path) -> None:
    names = list(map(str, photos(tmp_path / "photos", 3)))
    Image.new("RGB", (4, 4)).save(tmp_path / "photos/<b>.png")
    names += [str(tmp_path / "photos/<b>.png"), "gone.png"]
    of_class = {"plain": Estimate(0.5, torch.rand(1000)), "head": mean_over(torch.tensor([math.nan]))}
    classes = {"cat & dog": of_class, "price in $_$": of_class}  # no formula
    found = report(
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [0.2, 0.1, math.nan, 0.4, 0.6],
        names=names,
        classes=classes,
        settings={"model": "<i>"},
        skipped={"bad.jpg": "no image"},
    )
    found.save(tmp_path / "report")
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert images_in(tmp_path / "report") == []  # plots are no photos
    assert written == {"report.json", "report.md", "report.html", "figures.png", "classes.png", "scatter-miou.png"}

    def refused(value: str) -> None:
        raise ValueError(value)

    values = json.loads((tmp_path / "report/report.json").read_text(), parse_constant=refused)
    assert values["figures"]["head"]["mIoU"] == {"value": None, "low": None, "high": None}
    assert values["each"]["mIoU"]["head"][2] is None
    assert values["verdicts"]["head"].startswith("head: ")
    assert values["settings"]["model"] == "<i>"
    assert "bad.jpg: no image" in (tmp_path / "report/report.md").read_text()
    page = (tmp_path / "report/report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.seen.count("img") == 2  # one gains, one loses; another one that gains is gone
    assert all(source.startswith("data:") for source in tags.sources)
    assert "<i>" not in page
    assert "gone.png: +10.0" in page
    assert "explore.html" not in page
    (tmp_path / "report/explore.html").touch()  # an earlier command's
    found.save(tmp_path / "report")
    assert "explore.html" not in (tmp_path / "report/report.html").read_text()
    found.save(tmp_path / "report", explorer="explore.html")
    page = (tmp_path / "report/report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert [source for source in tags.sources if not source.startswith("data:")] == ["explore.html"]


def test_first_frames_of_videos_are_told_apart(tmp_path: Path) -> None:
    found = report([0.1, 0.2, 0.3], [0.2, 0.1, 0.5], names=["a/dog/0.jpg", "a/cat/0.jpg", "a/cat/1.jpg"])
    found.save(tmp_path)
    captions = re.findall("<figcaption>(.*?)</figcaption>", (tmp_path / "report.html").read_text())
    assert captions == ["1.jpg: +20.0", "dog/0.jpg: +10.0", "cat/0.jpg: -10.0"]


def test_figures_that_are_rounded_to_0_have_no_minus() -> None:
    measure = Measure("mIoU", "higher", "%")
    assert [measure.number(value) for value in (-0.0004, 0.0004, -0.001)] == ["0.0", "0.0", "-0.1"]
    assert [measure.number(value, sign=True) for value in (-0.0004, 0.001)] == ["+0.0", "+0.1"]
