"""A report as one HTML file: sentences, table, plots, and the images that gain and lose most."""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._util.images import ImageError, read_image
from .plots import as_svg, plots_of
from .rows import PLAIN

if TYPE_CHECKING:
    from .report import Measure, Report

MOST = 10  # images that gain most, and as many that lose most
THUMBNAIL = 160  # pixels
EXPLORE = '<p><a href="{}">Explore the features</a> of some of these images, plain beside denoised.</p>'
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }
figure { display: inline-block; margin: 0 .5rem .5rem 0; font-size: .8rem; vertical-align: top; max-width: 160px; }
svg { background: white; max-width: 100%; height: auto; }
"""


def page_of(report: Report, explorer: str | None = None) -> str:
    """Make the page: one file, no network; `explorer` is the address of a page to explore the features with."""
    title = html.escape(f"{report.task}: {report.count} {report.over}")
    parts = [
        f"<h1>{title}</h1>",
        _list(report.verdicts.values()),
        *([EXPLORE.format(html.escape(explorer))] if explorer else []),
        _table(report.table()),
        *(f"<p>{as_svg(figure)}</p>" for figure in plots_of(report).values()),
        *_extremes(report),
        "<h2>Measured with</h2>",
        _list(f"{key}: {value}" for key, value in {**report.settings, **report.versions()}.items()),
        *(
            ["<h2>Skipped</h2>", _list(f"{name}: {why}" for name, why in report.skipped.items())]
            if report.skipped
            else []
        ),
    ]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    start = f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>'
    return f"{start}\n<body>\n{body}\n</body></html>\n"


def _list(lines: object) -> str:
    items = "".join(f"<li>{html.escape(str(line))}</li>" for line in lines)  # type: ignore[attr-defined]
    return f"<ul>{items}</ul>"


def _table(markdown: str) -> str:
    """Turn a table of Markdown into one of HTML."""
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines())
    rows = [
        *("".join(f"<th>{html.escape(cell)}</th>" for cell in header),),
        *("".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines),
    ]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _extremes(report: Report) -> list[str]:
    """Show the images that gain most and lose most by the first measure that images have, for every row."""
    measure = next((m for m in report.measures if m.name in report.each), report.measures[0])
    each, labels = report.each.get(measure.name, {}), _labels(report.names)
    parts = []
    for row, values in each.items():
        if row == PLAIN or len(values) < 2:
            continue
        gains = [
            (value - plain) * (1 if measure.better == "higher" else -1)
            for value, plain in zip(values, each[PLAIN], strict=True)
        ]
        order = sorted((i for i, gain in enumerate(gains) if not math.isnan(gain)), key=lambda i: -gains[i])
        for title, chosen in (
            ("gains most", [i for i in order if gains[i] > 0][:MOST]),
            ("loses most", [i for i in order[::-1] if gains[i] < 0][:MOST]),
        ):
            if chosen:
                shown = "".join(_thumbnail(report.names[i], labels[i], gains[i], measure) for i in chosen)
                parts += [f"<h2>{html.escape(row)}: what {title} in {html.escape(measure.name)}</h2>", shown]
    return parts


def _labels(names: Sequence[str]) -> list[str]:
    """Name files without their folders, or with one where others have the same name, as the first frames of videos."""
    count = Counter(Path(name).name for name in names)
    return ["/".join(Path(name).parts[-2 if count[Path(name).name] > 1 else -1 :]) for name in names]


def _thumbnail(name: str, label: str, gain: float, measure: Measure) -> str:
    """Show an image, or its name alone where it is no file any more."""
    caption = f"{html.escape(label)}: {measure.number(gain, sign=True)}"
    try:
        picture = read_image(Path(name))
    except ImageError:
        return f"<figure><figcaption>{caption}</figcaption></figure>"
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<figure><img alt="" src="data:image/jpeg;base64,{source}"><figcaption>{caption}</figcaption></figure>'
