"""Photos with planted maps, pages of them, and what a page holds."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt_timm.explore import Explorer

CHANNELS = 96


def maps(seed: int, grid: tuple[int, int] = (9, 12), leaks: float = 2.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """A raw map [h, w, C], in which position can be read, and the same without its position."""
    random = np.random.default_rng(seed)
    size = (grid[1], grid[0])
    noise = random.normal(size=(12, 4, 4)).astype(np.float32)
    smooth = [np.asarray(Image.fromarray(each).resize(size)) for each in noise]
    clean = np.stack(smooth, axis=2) @ random.normal(size=(12, CHANNELS)) + 0.3 * random.normal(size=(*grid, CHANNELS))
    y, x = (np.linspace(-1, 1, side) for side in grid)
    axes = np.random.default_rng(99).normal(size=(2, CHANNELS))
    return clean + leaks * (x[None, :, None] * axes[0] + y[:, None, None] * axes[1]), clean


def photo(seed: int, grid: tuple[int, int] = (9, 12), cell: int = 10) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, size=(5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((grid[1] * cell, grid[0] * cell), Image.Resampling.BICUBIC)


def page(count: int, names: list[str] | None = None, facts: dict[str, str] | None = None, **options: Any) -> Explorer:
    found = Explorer(facts or {"model": "planted"}, count, **options)
    for i in range(count):
        found.add(names[i] if names else f"{i}.png", photo(i), *maps(i))
    return found


def data_of(html: str) -> dict[str, Any]:
    """The JSON in a page, by the names of its elements."""
    blocks = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', html)
    return {name: json.loads(text) for name, text in blocks}


def bytes_of(text: str, dtype: str, *shape: int) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(shape)
