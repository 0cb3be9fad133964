"""The page: what it holds, how large it is, that nothing from outside runs in it, and what stops it."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from exploring import bytes_of, data_of, maps, page, photo
from helpers import TINY, photos, random_head
from hub_server import Hub
from PIL import Image

import dvt_timm
from dvt_timm.evaluate import Rows, position_leakage
from dvt_timm.explore import Explorer, explore_rows, explorer
from dvt_timm.explore.encoding import cosines_between, cosines_within, directions, link, principal_axes
from dvt_timm.explore.pictures import pca_colors
from dvt_timm.viz import salient_patch

HOSTILE = '<script>alert("1")</script>&\u2028<!--.jpg'


def facts_of(found: Explorer) -> dict[str, str]:
    return dict(data_of(found.html())["about"]["facts"])


def denoised_model(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(TINY, dynamic_img_size=True, denoiser=random_head(64), **options).eval()


def test_what_a_page_holds() -> None:
    found = page(2)
    data = data_of(found.html())
    assert data.keys() == {"about", "photo-0", "photo-1"}
    assert [each["name"] for each in data["about"]["photos"]] == ["0.png", "1.png"]
    raw, denoised = maps(0)
    first = data["photo-0"]
    assert (first["grid"], first["cell"]) == ([9, 12], [10, 10])
    for row, colors in zip(("raw", "denoised"), pca_colors([raw, denoised]), strict=True):
        np.testing.assert_array_equal(bytes_of(first["pca"][row], "uint8", 9, 12, 3), colors)
    norms = np.linalg.norm(raw, axis=2)
    low, high = first["ends"]["norm"]
    shown = low + bytes_of(first["norm"]["raw"], "uint8", 9, 12) / 255 * (high - low)
    np.testing.assert_allclose(shown, np.clip(norms / np.median(norms), low, high), atol=(high - low) / 255)
    taken = raw - denoised
    assert first["ends"]["taken"][0] == 0
    spread = [((fmap - fmap.mean(axis=(0, 1))) ** 2).sum() for fmap in (taken, raw)]
    assert first["removed"] == pytest.approx(spread[0] / spread[1])
    assert divmod(first["salient"], 12) == salient_patch([raw, denoised])
    assert bytes_of(first["picture"], "uint8", -1)[:3].tobytes() == b"\xff\xd8\xff"


def test_cosines_from_the_page() -> None:
    """Read as the page's script reads it, they are those of the encoding, and near the exact ones."""
    found = page(3)
    data = data_of(found.html())

    def decoded(i: int, row: str) -> tuple[Any, Any]:
        part = data[f"photo-{i}"]["maps"][row]
        codes, linked = (bytes_of(part[name], "int8", -1, len(part["steps"])) for name in ("codes", "link"))
        return codes * part["steps"], linked * part["linkSteps"]

    shared = {row: principal_axes(moment, 96) for row, moment in found._moments.items()}
    for row, k in (("raw", 0), ("denoised", 1)):
        exact = [directions(maps(i)[k]) for i in range(3)]
        components = [each.components[row] for each in found.photos]
        values, links = zip(*(decoded(i, row) for i in range(3)), strict=True)
        np.testing.assert_allclose(values[0], components[0].values)
        within = values[0] @ values[0].T
        np.fill_diagonal(within, 1)
        np.testing.assert_allclose(within, cosines_within(components[0].values, exact[0]))
        between = values[0] @ links[0].T @ links[2] @ values[2].T
        one, other = (link(components[i], shared[row]) for i in (0, 2))
        np.testing.assert_allclose(between, cosines_between(components[0], one, components[2], other))
        assert np.quantile(np.abs(within - exact[0] @ exact[0].T), 0.999) < 0.1  # C = 96 channels of noise, 64 kept
        assert np.quantile(np.abs(between - exact[0] @ exact[2].T), 0.999) < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_photo_takes_400_kilobytes_at_most(seed: int) -> None:
    """At 37 x 37 patches, features and pixels of pure noise: nothing is harder to keep."""
    random = np.random.default_rng(seed)
    pixels = Image.fromarray(random.integers(0, 255, size=(518, 518, 3), dtype=np.uint8))
    found = Explorer({}, 1)
    found.add("noise.png", pixels, *random.normal(size=(2, 37, 37, 128)))
    text = found.html()
    (kept,) = re.findall(r'<script type="application/json" id="photo-0">.*?</script>', text)
    thumbnail = data_of(text)["about"]["photos"][0]["thumbnail"]
    assert 300_000 < len(kept) + len(thumbnail) < 400_000


def test_the_error_that_it_states() -> None:
    found = page(3)
    stated = facts_of(found)["error of similarities"]
    within, between, worst, _ = map(float, re.findall(r"0\.\d+", stated))
    exact = [directions(maps(i)[0]) for i in range(3)]
    values = [found.photos[i].components["raw"].values for i in range(3)]
    measured = [np.abs(cosines_within(values[i], exact[i]) - exact[i] @ exact[i].T) for i in range(3)]
    assert max(np.quantile(each, 0.999) for each in measured) <= within + 0.0005
    assert max(each.max() for each in measured) <= worst + 0.0005
    assert 0 < between < 0.2
    assert "between photos" not in facts_of(page(1))["error of similarities"]


def test_leakage_is_that_of_the_measure() -> None:
    found = page(9)
    text = facts_of(found)["position leakage"]
    shown = [float(number) for number in re.findall(r"\d\.\d\d", text)]
    for k, value in enumerate(shown):
        fmaps = [torch.from_numpy(maps(i)[k]) for i in range(9)]
        scores = position_leakage(fmaps[:6], fmaps[6:])
        assert value == pytest.approx(np.mean([max(score, 0) for score in scores.values()]), abs=0.006)
    assert shown[0] > 0.4 > 0.1 > shown[1]
    few = facts_of(page(3))["position leakage"]
    assert few == "not measured: it takes 8 photos or more, there are 3"


class Scripts(HTMLParser):
    """The scripts that a browser would run, and everything that could make it run or load more."""

    def __init__(self) -> None:
        super().__init__()
        self.run, self.loads, self.handlers, self.policy = [""], [], [], ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self._inside = tag == "script" and "type" not in known
        self.loads += [value for key, value in attrs if key in ("src", "href", "srcset") and value != "data:,"]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        self.policy = known.get("content") or self.policy if "http-equiv" in known else self.policy

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.run[-1] += data


def test_nothing_from_outside_runs() -> None:
    names = [HOSTILE, "<img src=x onerror=alert(2)>.png", "\udcff.png"]
    hostile = page(3, names, {"model": HOSTILE, "head": "</title><script>alert(3)</script>"})
    text = hostile.html()
    scripts = Scripts()
    scripts.feed(text)
    (script,) = scripts.run
    assert "alert" not in script
    assert scripts.loads == scripts.handlers == []
    assert "<img src=x" not in text
    assert text.count("<script") == 1 + 4
    assert data_of(text)["about"]["photos"][0]["name"] == HOSTILE
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert scripts.policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in scripts.policy


def test_a_notebook_shows_it_in_a_frame() -> None:
    found = page(1, ['"><script>alert(1)</script>'])
    frame = found._repr_html_()
    (source,) = re.findall(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts allow-downloads"', frame)
    assert html.unescape(source) == found.html()
    assert "<script" not in frame


def test_saving(tmp_path: Path) -> None:
    found = page(1)
    found.save(tmp_path / "new/page.html")
    assert (tmp_path / "new/page.html").read_text(encoding="utf-8") == found.html()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_of_a_model_and_photos(tmp_path: Path) -> None:
    model = denoised_model()
    paths = photos(tmp_path / "photos", 2)
    (tmp_path / "bad.png").write_text("no image")
    found = explorer(model, [paths[0], Image.open(paths[1]), tmp_path / "bad.png"], size=64)
    assert [each.name for each in found.photos] == ["0.png", "photo 2"]
    assert found.skipped.keys() == {str(tmp_path / "bad.png")}
    data = data_of(found.html())
    with torch.inference_mode():
        seen = dvt_timm.feature_maps(model, dvt_timm.preprocess(model, paths[1], 64))
    both = [fmap[0].permute(1, 2, 0).double().numpy() for fmap in (seen.raw, seen.denoised)]
    assert data["photo-1"]["grid"] == list(both[0].shape[:2]) == [4, 5]
    np.testing.assert_array_equal(bytes_of(data["photo-1"]["pca"]["raw"], "uint8", 4, 5, 3), pca_colors(both)[0])
    facts = dict(data["about"]["facts"])
    assert facts["model"] == TINY
    assert facts["head"] == "of no known source"
    assert facts["size"] == "64 pixels, the shorter side; patches of 16, 64 channels"
    assert facts["dvt-timm"] == dvt_timm.__version__


def test_where_a_head_is_from(tmp_path: Path) -> None:
    dvt_timm.save_head(random_head(64), tmp_path / "heads/mine", base=TINY)
    model = timm.create_model(TINY, dynamic_img_size=True, denoiser=str(tmp_path / "heads/mine")).eval()
    found = explorer(model, [photo(0)], size=48)
    assert found.facts["head"] == "heads/mine"  # no more of the path
    dvt_timm.denoise(model, positions=2)
    assert explorer(model, [photo(0)], size=48).facts["head"] == "means over 2 views of positions"


def test_of_the_rows_of_an_evaluation(tmp_path: Path) -> None:
    model = timm.create_model(TINY, dynamic_img_size=True).eval()
    rows = Rows(model, {"mine": random_head(64), "other": random_head(64, seed=2)}, size=64)
    paths = photos(tmp_path / "photos", 2)
    found = explore_rows(rows, paths)
    assert (found.facts["model"], found.facts["head"]) == (TINY, "mine")
    assert found.facts["size"] == "64 pixels, squeezed to squares"
    data = data_of(found.html())
    assert data["photo-0"]["grid"] == [4, 4]
    fmaps = rows.maps(Image.open(paths[0]).convert("RGB")).rows
    both = [fmaps[name].double().numpy() for name in ("plain", "other")]
    second = data_of(explore_rows(rows, paths, "other").html())["photo-0"]
    np.testing.assert_array_equal(bytes_of(second["pca"]["denoised"], "uint8", 4, 4, 3), pca_colors(both)[1])
    with pytest.raises(ValueError, match="no row 'gone' among"):
        explore_rows(rows, paths, "gone")
    with pytest.raises(ValueError, match="nothing to show beside the plain row"):
        explore_rows(Rows(model, size=64), paths)


def test_what_it_refuses(hub: Hub) -> None:
    model = denoised_model()
    with pytest.raises(ValueError, match="the model has no denoiser"):
        explorer(timm.create_model(TINY), [photo(0)])
    for count in (0, 201):
        with pytest.raises(ValueError, match=f"takes 1..200 images, got {count}"):
            explorer(model, [photo(0)] * count)
    with pytest.raises(ValueError, match=r"200 images of 40 x 40 patches are too much for a page; take at most 171"):
        explorer(model, [photo(0)] * 200, size=640)
    for components in (31, 65):
        with pytest.raises(ValueError, match=f"components must be 32..64, got {components}"):
            explorer(model, [photo(0)], components=components)
    with pytest.raises(ValueError, match="at least one photo"):
        Explorer({}, 0).html()
    found = Explorer({}, 1)
    with pytest.raises(ValueError, match="must have one shape"):
        found.add("a", photo(0), np.ones((2, 3, 64)), np.ones((3, 2, 64)))
    with pytest.raises(ValueError, match="NaN or Inf"):
        found.add("a", photo(0), np.full((2, 3, 64), np.nan), np.ones((2, 3, 64)))
    with pytest.raises(ValueError, match="too much for a page"):
        explorer(model, [photo(0)], size=160_000)


def test_a_single_patch() -> None:
    found = Explorer({}, 1)
    found.add("one", photo(0, (1, 1)), np.ones((1, 1, 64)), np.ones((1, 1, 64)))
    assert data_of(found.html())["photo-0"]["grid"] == [1, 1]
