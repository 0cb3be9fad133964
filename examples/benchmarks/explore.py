"""What a page of `dvt-timm explore` takes: bytes a photo, errors of similarities, seconds; and how a browser moves it.

python examples/benchmarks/explore.py PHOTOS --count 50 --browser

Two CPU cores, four minutes at 518 pixels. The middle squares of the photos are taken, so that each has 37 x 37 patches.
With --browser (`pip install '.[browser]'`, `apt-get install chromium`) the page is opened in Chromium.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import timed
from photos import MODEL, spread
from PIL import ImageOps

import dvt_timm
from dvt_timm._util.images import preprocessing_of, read_image
from dvt_timm.explore import Explorer

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
NEXT = """async () => {
  const times = [];
  for (let i = 1; i < Math.min(11, about.photos.length); i++) {
    const start = performance.now();
    show(i);
    await photoAt(i).ready;
    times.push(performance.now() - start);
  }
  return times;
}"""
FRAMES = """() => {
  window.frames_ = [];
  const note = (time) => (window.frames_.push(time), requestAnimationFrame(note));
  requestAnimationFrame(note);
}"""


def page_of(photos: list[Path], size: int | None) -> tuple[Explorer, list[float]]:
    """The page of the middle squares of photos, and the seconds that each took beyond its forward pass."""
    model = timm.create_model(MODEL, pretrained=True, num_classes=0).eval()
    preprocessing = preprocessing_of(model, size)
    page, seconds = Explorer({"model": MODEL}, len(photos)), []
    for path in photos:
        image = read_image(path)
        image = preprocessing.resize(ImageOps.fit(image, (min(image.size), min(image.size))))
        with torch.inference_mode():
            maps = dvt_timm.feature_maps(model, preprocessing.to_tensor(image))
        _, spent = timed(lambda name=path.name, image=image, maps=maps: page.add(name, image, maps.raw, maps.denoised))
        seconds.append(spent)
    return page, seconds


def in_browser(file: Path) -> dict[str, float]:
    """Open the page, go through photos, hover, and drag the handle."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    assert program is not None, "Chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        tab = playwright.chromium.launch(executable_path=program, args=ARGUMENTS).new_page()
        _, opening = timed(lambda: (tab.goto(file.as_uri()), tab.evaluate("() => photoAt(0).ready.then(() => 0)")))
        found = {"opening, s": opening, "next photo, ms": statistics.median(tab.evaluate(NEXT))}
        handle, main = (tab.locator(name).bounding_box() for name in ("#handle", "#main"))
        tab.evaluate(FRAMES)
        found["frames a second, hovering"] = _frames(tab, main)
        tab.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        tab.mouse.down()
        found["frames a second, dragging"] = _frames(tab, main)
        return found


def _frames(tab: Any, main: dict[str, float]) -> float:
    """Move the pointer over the photo; the frames that were drawn in a second."""
    tab.evaluate("() => { window.frames_.length = 0; }")
    for i in range(120):
        across, down = 0.1 + 0.8 * (i % 40) / 40, 0.2 + 0.6 * (i % 31) / 31
        tab.mouse.move(main["x"] + across * main["width"], main["y"] + down * main["height"])
    times = tab.evaluate("() => window.frames_")
    return 1000 * (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="What a page of dvt-timm explore takes.")
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--count", type=int, default=50, metavar="N")
    parser.add_argument("--size", type=int, metavar="N")
    parser.add_argument("--browser", action="store_true")
    arguments = parser.parse_args()
    page, seconds = page_of(spread(arguments.photos, arguments.count), arguments.size)
    html, spent = timed(page.html)
    sizes = [len(text) for text in re.findall(r'<script type="application/json" id="photo-\d+">.*?</script>', html)]
    grid = " x ".join(map(str, page.photos[0].shown["grid"]))
    print(f"{arguments.count} photos of {grid} patches: {len(html) / 1e6:.1f} MB")
    print(f"a photo: {statistics.mean(sizes) / 1e3:.0f} KB, at most {max(sizes) / 1e3:.0f} KB, and its thumbnail")
    print(f"seconds a photo, without the forward pass: {statistics.median(seconds):.2f}; the page itself: {spent:.1f}")
    (about,) = re.findall(r'<script type="application/json" id="about">(.*?)</script>', html)
    for name, text in json.loads(about)["facts"]:
        print(f"{name}: {text}")
    if arguments.browser:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "page.html")
            page.save(file)
            print("; ".join(f"{name}: {value:.1f}" for name, value in in_browser(file).items()))


if __name__ == "__main__":
    main()
