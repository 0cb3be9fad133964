"""Puts the page together: its template, and the photos as JSON."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from .._util.files import json_text
from ..viz import colorize
from ..viz.arrays import Floats
from .photo import EncodedPhoto
from .pictures import PALETTE

SCRIPTS = ("maps.js", "view.js", "picture.js", "listen.js")


def page_of(facts: Mapping[str, str], photos: Sequence[EncodedPhoto], shared: Mapping[str, Floats]) -> str:
    """Make one HTML file that asks no network, and runs no script but its own, whatever the photos are called.

    Args:
        facts: what the page says of model, head, sizes and figures.
        photos: in their order.
        shared: row -> [C, M], the dimensions that photos are linked by.
    """
    style, script = _template("page.css"), "\n".join(map(_template, SCRIPTS))
    about = {
        "facts": list(facts.items()),
        "photos": [{"name": photo.name, "thumbnail": _base64(photo.thumbnail)} for photo in photos],
        "colormap": colorize(np.linspace(0, 1, 256)[None], 0, 1)[0].tolist(),
        "palette": [list(bytes.fromhex(color)) for color in PALETTE],
    }
    data = [_data("about", about)]
    data += [_data(f"photo-{i}", photo.as_json(dict(shared))) for i, photo in enumerate(photos)]
    return Template(_template("page.html")).substitute(
        policy=f"default-src 'none'; img-src data: blob:; style-src {_hash(style)}; script-src {_hash(script)}",
        style=style,
        script=script,
        data="\n".join(data),
    )


def _template(name: str) -> str:
    return files(__package__).joinpath("template", name).read_text(encoding="utf-8")


def _data(name: str, value: Any) -> str:
    """Write JSON that no text in it ends: `<` begins neither a tag nor a comment."""
    text = json_text(value).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _hash(text: str) -> str:
    """Name a style or a script by its content, as the page's policy does."""
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
