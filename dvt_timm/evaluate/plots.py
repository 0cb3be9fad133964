"""Plots of a report, by matplotlib: figures with their intervals, and each image as it is against denoised."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from .rows import PLAIN

if TYPE_CHECKING:
    from .report import Measure, Report

WIDTH, BAR_HEIGHT, SCATTER = 7.0, 0.32, 4.2  # inches


def figure_maker() -> Any:
    """Give matplotlib's class of figures, which draws without a display; raise ImportError if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("reports need matplotlib; pip install 'dvt-timm[evaluate]'") from error
    return Figure


def plots_of(report: Report) -> dict[str, Any]:
    """Draw a report: name of a plot -> figure of matplotlib; `scatter-...` ones where images have figures."""
    plots = {"figures": _bars(report)}
    if report.classes:
        plots["classes"] = _classes(report)
    for measure in report.measures:
        if len(report.each.get(measure.name, {}).get(PLAIN, ())) > 1:
            plots[f"scatter-{_slug(measure.name)}"] = _scatter(report, measure)
    return plots


def as_svg(figure: Any) -> str:
    """Give a figure as an SVG element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _bars(report: Report) -> Any:
    """One line of points per measure, a point with its interval per row."""
    rows, measures = list(report.figures), report.measures
    height = sum(BAR_HEIGHT * len(rows) + 0.6 for _ in measures)
    figure = figure_maker()(figsize=(WIDTH, height), layout="constrained")
    for axes, measure in zip(figure.subplots(len(measures), squeeze=False)[:, 0], measures, strict=True):
        for place, row in enumerate(reversed(rows)):
            estimate = report.figures[row].get(measure.name)
            if estimate is None or math.isnan(estimate.value):
                continue
            scale = 100 if measure.unit else 1
            low, high = (estimate.value if math.isnan(end) else end for end in estimate.interval)
            axes.plot([low * scale, high * scale], [place, place], color="0.6", linewidth=3)
            axes.plot(estimate.value * scale, place, "o", color="0.1" if row == PLAIN else "C0")
        axes.set_yticks(range(len(rows)), list(reversed(rows)))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        unit = ", %" if measure.unit else ""
        axes.set_title(f"{measure.name}{unit} ({measure.better} is better)", fontsize=10, loc="left")
    return figure


def _classes(report: Report) -> Any:
    """A line per class, a point with its interval per row."""
    rows, measure = list(report.figures), report.measures[0]
    scale = 100 if measure.unit else 1
    figure = figure_maker()(figsize=(WIDTH, 0.3 * len(report.classes) + 1), layout="constrained")
    axes = figure.subplots()
    for place, of in enumerate(report.classes.values()):
        for offset, row in enumerate(rows):
            estimate, y = of[row], place + 0.6 * (offset / len(rows) - 0.4)
            low, high = (estimate.value if math.isnan(end) else end for end in estimate.interval)
            color = "0.3" if row == PLAIN else f"C{offset - 1}"
            axes.plot([low * scale, high * scale], [y, y], color=color, alpha=0.4, linewidth=2)
            axes.plot(estimate.value * scale, y, ".", color=color, label=row if place == 0 else None)
    axes.set_yticks(range(len(report.classes)), [name.replace("$", r"\$") for name in report.classes])
    axes.invert_yaxis()
    axes.set_xlabel(f"{measure.name}{', %' if measure.unit else ''}")
    axes.legend(fontsize=8)
    return figure


def _scatter(report: Report, measure: Measure) -> Any:
    """Each image as it is (across) against each other row (up)."""
    each = report.each[measure.name]
    figure = figure_maker()(figsize=(SCATTER, SCATTER), layout="constrained")
    axes = figure.subplots()
    for row, values in each.items():
        if row != PLAIN:
            axes.plot(each[PLAIN], values, ".", label=row, alpha=0.7)
    ends = axes.get_xlim()
    axes.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
    axes.set_xlabel(f"{measure.name}, {PLAIN}")
    axes.set_ylabel(f"{measure.name}, denoised")
    axes.legend(fontsize=8)
    return figure


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
