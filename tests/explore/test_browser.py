"""The page in a real browser: what is drawn is what was computed, nothing is asked of a network, nothing else runs.

Chromium (`apt-get install chromium`) is driven by playwright (the extra `browser`); `make test-browser` gets both.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exploring import data_of, maps, page, photo
from numpy.typing import NDArray
from PIL import Image

from dvt_timm.explore import Explorer
from dvt_timm.explore.encoding import cosines_between, cosines_within, directions, link, principal_axes
from dvt_timm.explore.pictures import PALETTE, matched_clusters, pca_colors
from dvt_timm.viz import colorize
from dvt_timm.viz.arrays import centered

pytestmark = pytest.mark.browser

REQUIRED = "DVT_TIMM_BROWSER"  # in the environment: a browser that is missing fails the tests, rather than skip them
RUN = 'document.title="run"'
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
HOSTILE = [f"<script>{RUN}</script>.jpg", f'"><img src=x onerror={RUN}>.png', "</script>.png"]
GRID, CELL = (9, 12), 10  # of the planted photos: patches, and pixels of each
FRAMES = """() => new Promise((done) => {
  const times = [];
  const note = (time) => (times.push(time), times.length < 60 ? requestAnimationFrame(note) : done(times));
  requestAnimationFrame(note);
})"""

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser without windows; the tests are skipped where there is none."""
    complain = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        complain("playwright is not installed: pip install '.[browser]'")
    program = shutil.which("chromium")
    if program is None:
        complain("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page from disk. Complaints of its script, and requests of anything but the file, fail the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(html: str, width: int = 1280, height: int = 900, **options: Any) -> Any:
        file = tmp_path / f"page-{len(contexts)}.html"
        file.write_text(html, encoding="utf-8", errors="backslashreplace")
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: _note_request(request.url, file, complaints))
        tab.goto(file.as_uri())
        settle(tab)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _note_request(url: str, file: Path, complaints: list[str]) -> None:
    if url != file.as_uri() and not url.startswith(("data:", "blob:")):
        complaints.append(f"asked for {url}")


def settle(tab: Any) -> None:
    """Wait until the photos are decoded and what is due is drawn."""
    tab.evaluate("() => Promise.all([...decoded.values()].map((photo) => photo.ready))")
    tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def opaque(tab: Any) -> None:
    """Let the colors cover the photo, so that they are those that were computed."""
    tab.locator("#opacity").fill("100")
    settle(tab)


def patches_of(tab: Any, canvas: str) -> NDArray[np.uint8]:
    """The color [h, w, 3] in the middle of every patch of a canvas."""
    return pixels_of(tab, canvas)[CELL // 2 :: CELL, CELL // 2 :: CELL]


def pixels_of(tab: Any, canvas: str) -> NDArray[np.uint8]:
    address = tab.evaluate("(id) => document.getElementById(id).toDataURL()", canvas)
    png = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def point_at(tab: Any, canvas: str, row: int, column: int) -> None:
    """Move the pointer to the middle of a patch."""
    box = tab.locator(f"#{canvas}").bounding_box()
    x, y = (column + 0.5) / GRID[1], (row + 0.5) / GRID[0]
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    settle(tab)


def differing(found: NDArray[np.uint8], expected: NDArray[np.uint8], most: int = 0) -> int:
    """How many patches have another color, by more than so much in a channel."""
    return int((np.abs(found.astype(int) - expected) > most).any(axis=2).sum())


MARKED = 9  # patches that the frame of the chosen one may touch


def test_the_slider_parts_raw_from_denoised(opened: Open) -> None:
    tab = opened(page(2).html())
    opaque(tab)
    raw, denoised = pca_colors(list(maps(0)))
    for share in (1.0, 0.5, 0.25, 0.0):
        tab.locator("#divider").fill(str(100 * share))
        settle(tab)
        expected = np.where((np.arange(GRID[1]) < share * GRID[1])[None, :, None], raw, denoised)
        assert differing(patches_of(tab, "main"), expected) <= MARKED
    assert differing(raw, denoised, 20) > 50  # or it would show nothing


def test_the_handle_is_dragged(opened: Open) -> None:
    tab = opened(page(1).html())
    opaque(tab)
    raw, denoised = pca_colors(list(maps(0)))
    handle, main = (tab.locator(name).bounding_box() for name in ("#handle", "#main"))
    tab.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(main["x"] + 0.75 * main["width"], main["y"] + 20, steps=5)
    tab.mouse.up()
    tab.mouse.move(5, 5)
    settle(tab)
    expected = np.where((np.arange(GRID[1]) < 9)[None, :, None], raw, denoised)
    assert differing(patches_of(tab, "main"), expected) <= MARKED
    assert float(tab.locator("#divider").input_value()) == pytest.approx(75, abs=0.5)


def test_opacity_mixes_photo_and_colors(opened: Open) -> None:
    tab = opened(page(1).html())
    tab.locator("#divider").fill("100")
    seen = {}
    for percent in (0, 40, 100):
        tab.locator("#opacity").fill(str(percent))
        settle(tab)
        seen[percent] = patches_of(tab, "main").astype(float)
    mixed = (0.6 * seen[0] + 0.4 * seen[100]).round().astype(np.uint8)
    assert differing(seen[40].astype(np.uint8), mixed, 2) == 0
    original = np.asarray(photo(0))[CELL // 2 :: CELL, CELL // 2 :: CELL]
    assert np.abs(seen[0] - original).mean() < 8  # a JPEG of it


def test_what_the_other_colors_show(opened: Open) -> None:
    found = page(1)
    tab = opened(found.html())
    opaque(tab)
    raw, denoised = maps(0)
    data = data_of(found.html())["photo-0"]
    norms = np.linalg.norm(raw, axis=2)
    removed = np.linalg.norm(centered(raw - denoised), axis=2) / np.median(norms)
    values = [found.photos[0].components[row].values.reshape(*GRID, -1) for row in ("raw", "denoised")]
    palette = np.array([list(bytes.fromhex(color)) for color in PALETTE], dtype=np.uint8)
    expected = {
        "clusters": [palette[labels] for labels in matched_clusters(values)],
        "norm": [
            colorize(np.linalg.norm(fmap, axis=2) / np.median(np.linalg.norm(fmap, axis=2)), *data["ends"]["norm"])
            for fmap in (raw, denoised)
        ],
        "taken": [pca_colors([raw - denoised])[0], colorize(removed, *data["ends"]["taken"])],
    }
    for mode, pictures in expected.items():
        tab.check(f"input[value={mode}]")
        for share, picture in zip((100, 0), pictures, strict=True):
            tab.locator("#divider").fill(str(share))
            settle(tab)
            assert differing(patches_of(tab, "main"), picture, 3) <= MARKED, mode  # a step of the scale is 1 or 2
        assert tab.locator("#scale").is_visible() == (mode != "clusters")


def test_similarity_to_the_patch_under_the_pointer(opened: Open) -> None:
    """In both maps, in this photo and in the second one, by components as computed here, and near the exact cosines."""
    found = page(3)
    tab = opened(found.html())
    opaque(tab)
    tab.select_option("#second", "2")
    patch = (3, 4)
    index = patch[0] * GRID[1] + patch[1]
    point_at(tab, "main", *patch)
    assert "row 3, column 4 of 0.png" in tab.locator("#query").inner_text()
    scale = colorize(np.linspace(0, 1, 256)[None], 0, 1)[0].astype(int)  # [256, 3]
    for k, row in enumerate(("raw", "denoised")):
        here, there = (found.photos[i].components[row] for i in (0, 2))
        exact = [directions(maps(i)[k]) for i in (0, 2)]
        shared = principal_axes(found._moments[row], 96)
        expected = {
            "same": (cosines_within(here.values, exact[0])[index], exact[0] @ exact[0][index]),
            "other": (
                cosines_between(here, link(here, shared), there, link(there, shared))[index],
                exact[1] @ exact[0][index],
            ),
        }
        for place, (cosines, true) in expected.items():
            drawn = patches_of(tab, f"{place}-{row}")
            assert differing(drawn, colorize(cosines.reshape(GRID), 0, 1), 3) <= MARKED
            read = np.abs(drawn[:, :, None].astype(int) - scale).sum(axis=3).argmin(axis=2) / 255
            assert (np.abs(read - true.clip(0, 1).reshape(GRID)) > 0.12).sum() <= MARKED  # 64 of 96 channels of noise
        best = int(expected["other"][0].argmax())
        caption = tab.locator(f"#other-{row} + figcaption").inner_text()
        assert f"row {best // GRID[1]}, column {best % GRID[1]}" in caption


def test_the_second_photo_can_be_asked_too(opened: Open) -> None:
    found = page(2)
    tab = opened(found.html())
    opaque(tab)
    point_at(tab, "other-raw", 2, 5)
    assert "row 2, column 5 of 1.png" in tab.locator("#query").inner_text()
    component = found.photos[1].components["raw"]
    expected = colorize(cosines_within(component.values, directions(maps(1)[0]))[2 * GRID[1] + 5].reshape(GRID), 0, 1)
    assert differing(patches_of(tab, "other-raw"), expected, 3) <= MARKED


def test_a_patch_is_held(opened: Open) -> None:
    tab = opened(page(1).html())
    query = tab.locator("#query")
    point_at(tab, "same-raw", 1, 1)
    tab.mouse.down()
    tab.mouse.up()
    tab.keyboard.press("ArrowDown")  # goes on from there
    settle(tab)
    assert "row 2, column 1" in query.inner_text()
    point_at(tab, "main", 2, 3)
    tab.mouse.down()
    tab.mouse.up()
    point_at(tab, "main", 5, 6)
    assert "row 2, column 3" in query.inner_text()
    tab.mouse.down()  # another patch is held instead
    tab.mouse.up()
    settle(tab)
    assert "row 5, column 6" in query.inner_text()
    tab.mouse.down()
    tab.mouse.up()
    point_at(tab, "main", 7, 8)
    assert "row 7, column 8" in query.inner_text()


def test_touch(opened: Open) -> None:
    tab = opened(page(2).html(), width=400, height=800, has_touch=True, is_mobile=True)
    box = tab.locator("#main").bounding_box()
    tab.touchscreen.tap(box["x"] + 4.5 / 12 * box["width"], box["y"] + 3.5 / 9 * box["height"])
    settle(tab)
    assert "row 3, column 4" in tab.locator("#query").inner_text()


def test_keys(opened: Open) -> None:
    tab = opened(page(3).html())
    point_at(tab, "main", 4, 4)

    def press(*keys: str) -> None:
        for key in keys:
            tab.keyboard.press(key)
        settle(tab)

    press("ArrowRight", " ")  # scroll the page, as long as the photo has no focus
    assert "row 4, column 4" in tab.locator("#query").inner_text()
    assert "held" not in tab.locator("#query").inner_text()
    tab.locator("#main").focus()
    press("ArrowRight", "ArrowDown", "Shift+ArrowLeft", "Shift+ArrowLeft")  # it stays within the photo
    assert "row 5, column 0" in tab.locator("#query").inner_text()
    assert "held" in tab.locator("#query").inner_text()
    press(" ")
    assert "held" not in tab.locator("#query").inner_text()
    press("n")
    assert tab.locator("#photo-name").inner_text() == "1.png"
    press("p", "p")
    assert tab.locator("#photo-name").inner_text() == "0.png"
    press("m")
    assert tab.locator("#second").input_value() == "1"
    for key, mode in (("2", "clusters"), ("3", "norm"), ("4", "taken"), ("1", "pca")):
        press(key)
        assert tab.locator(f"input[value={mode}]").is_checked()
    for share in (100, 0, 50):
        press("d")
        assert float(tab.locator("#divider").input_value()) == share
    without = patches_of(tab, "main")
    press("o")
    assert tab.locator("#opacity").input_value() == "0"
    assert differing(patches_of(tab, "main"), without, 20) > 50
    press("g")
    assert tab.locator("#grid").is_checked()
    tab.locator("#divider").focus()
    press("ArrowLeft")  # a slider's own key
    assert float(tab.locator("#divider").input_value()) < 50


def test_every_control_is_named_and_reached_by_the_keyboard(opened: Open) -> None:
    tab = opened(page(2).html())
    names = tab.evaluate(
        "() => [...document.querySelectorAll('button, input, select, canvas')].map((each) => each.ariaLabel ||"
        " (each.labels && each.labels[0] && each.labels[0].innerText) || each.innerText || each.title)"
    )
    assert all(name and name.strip() for name in names)
    seen = set()
    for _ in range(11):
        tab.keyboard.press("Tab")
        seen.add(tab.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
        outline = tab.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert {"BUTTON", "main", "divider", "opacity", "grid", "save", "second", "SUMMARY"} <= seen


def test_the_grid_is_drawn_on_demand(opened: Open) -> None:
    tab = opened(page(1).html())
    opaque(tab)
    tab.locator("#divider").fill("100")
    settle(tab)
    before = pixels_of(tab, "main").astype(int)
    tab.check("#grid")
    settle(tab)
    lighter = (pixels_of(tab, "main").astype(int) - before).sum(axis=2)
    on_lines = np.zeros(lighter.shape, dtype=bool)
    on_lines[CELL::CELL], on_lines[:, CELL::CELL] = True, True
    assert (lighter[on_lines] > 0).mean() > 0.95  # all but those under the frame of the patch
    assert not lighter[~on_lines].any()
    assert differing(patches_of(tab, "main"), pca_colors(list(maps(0)))[0]) <= MARKED  # lines lie between patches


def test_the_view_is_saved(opened: Open, tmp_path: Path) -> None:
    tab = opened(page(2, ["a photo: <1>.jpg", "b.png"]).html())
    with tab.expect_download() as download:
        tab.click("#save")
    assert download.value.suggested_filename == "a-photo-1--pca.png"
    download.value.save_as(tmp_path / "view.png")
    with Image.open(tmp_path / "view.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1600
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 1000


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_dark_and_light(opened: Open, scheme: str, dark: bool) -> None:
    tab = opened(page(2).html(), color_scheme=scheme)
    style = "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
    ink, ground = (np.array([int(n) for n in text[4:-1].split(",")]) for text in tab.evaluate(style))
    assert (ground.mean() < ink.mean()) == dark
    assert abs(_luminance(ink) - _luminance(ground)) > 0.6


def _luminance(color: NDArray[Any]) -> float:
    return float(((color / 255) ** 2.2) @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("width", [400, 320])
def test_a_phone(opened: Open, width: int) -> None:
    long = {"model": "vit_" + 120 * "x", "head": "hf-hub:" + 90 * "y"}
    tab = opened(page(12, [f"{i}-{80 * 'z'}.jpg" for i in range(12)], long).html(), width=width, height=800)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= width
    assert tab.locator("#main").bounding_box()["width"] > 0.85 * width


def test_hostile_names_do_not_run(opened: Open) -> None:
    tab = opened(page(3, HOSTILE, {"model": HOSTILE[0], "head": HOSTILE[1]}).html())
    for i, name in enumerate(HOSTILE):
        assert tab.locator("#photo-name").inner_text() == name
        assert tab.locator("#strip button").nth(i).get_attribute("title") == name
        tab.keyboard.press("n")
        settle(tab)
    assert tab.title() == "Raw and denoised features"
    assert tab.locator("body img").count() == 3  # the strip's


def test_in_a_notebook(opened: Open) -> None:
    """A frame without the rights of its page: its script runs all the same."""
    found = page(2)
    notebook = "<!doctype html><link rel=icon href=data:,><script>const decoded = new Map();</script>"
    tab = opened(notebook + found._repr_html_())
    frame = tab.frame_locator("iframe")
    frame.locator("#query", has_text="Patch at row").wait_for()
    assert frame.locator("#strip button").count() == 2


def test_one_photo_alone(opened: Open) -> None:
    tab = opened(page(1).html())
    assert not tab.locator("#second-part").is_visible()
    assert not tab.locator("#strip").is_visible()


def test_fifty_photos_stay_responsive(opened: Open) -> None:
    """At 37 x 37 patches: opening, the next photo, and frames while the handle is dragged and patches are hovered."""
    grid = (37, 37)
    found = Explorer({}, 5)
    for i in range(5):
        found.add(f"{i}.jpg", photo(i, grid, 14), *maps(i, grid))
    found.photos, found._samples = found.photos * 10, found._samples * 10
    started = time.perf_counter()
    tab = opened(found.html())
    assert tab.locator("#strip button").count() == 50
    opening = time.perf_counter() - started
    next_photo = tab.evaluate(
        "async () => { const start = performance.now();"
        "for (let i = 1; i <= 10; i++) { show(i); await photoAt(i).ready; }"
        "return (performance.now() - start) / 10; }"
    )
    main = tab.locator("#main").bounding_box()
    handle = tab.locator("#handle").bounding_box()
    rates = {}
    for what in ("hover", "drag"):
        if what == "drag":
            tab.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
            tab.mouse.down()
        tab.evaluate(f"() => {{ window.counted = ({FRAMES})(); }}")
        for i in range(40):
            tab.mouse.move(main["x"] + (0.1 + 0.02 * i) * main["width"], main["y"] + (0.2 + 0.01 * i) * main["height"])
        times = tab.evaluate("() => window.counted")
        rates[what] = 1000 * (len(times) - 1) / (times[-1] - times[0])
    print(f"opened in {opening:.1f} s; next photo in {next_photo:.0f} ms; frames a second: {rates}")
    assert opening < 15
    assert next_photo < 1500
    assert min(rates.values()) > 10  # 60 where the machine does nothing else
