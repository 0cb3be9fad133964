"""The outcome of a task: figures of every row with their intervals, and a sentence on each.

Letters: N images, or pairs, or sequences: what the figures are over.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from .._util.files import replacing, write_json, write_text
from .._util.images import OURS
from .._version import __version__
from .estimates import Estimate
from .rows import PLAIN

NORMAL = 1.96  # standard errors that half a 95 % interval takes
POWER = 0.84  # standard errors more, to find a difference in four of five cases
FEWEST = 8  # of fewer the bootstrap's intervals are too narrow


@dataclass(frozen=True)
class Measure:
    """What a figure says.

    Attributes:
        name: as tables head it.
        better: which values are better, "higher" or "lower".
        unit: "%" where figures are shares of 1 that are shown in percent, "" where they are shown as they are.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: Literal["", "%"] = ""

    def number(self, value: float, sign: bool = False) -> str:
        """Write a figure."""
        if math.isnan(value):
            return "-"
        scale, digits = (100, 1) if self.unit else (1, 3)
        rounded = round(value * scale, digits) + 0.0  # -0.0 is 0.0
        return f"{rounded:{'+' if sign else ''}.{digits}f}"


@dataclass(frozen=True, eq=False)
class Report:
    """What a task found.

    Attributes:
        task: its name.
        over: what the figures are means over, in the plural: "images", "pairs", "sequences".
        count: of them, N.
        measures: the first one is what the sentences are about.
        figures: row -> name of a measure -> its estimate. A row may lack a measure.
        settings: what it was measured with, JSON-friendly.
        each: name of a measure -> row -> [N] figures of each image, where it has them.
        names: [N], of the images.
        classes: name of a class -> row -> its part of the first measure.
        published: row -> name of a measure -> the figure that the authors give for it.
        skipped: image that could not be read -> why.
    """

    task: str
    over: str
    count: int
    measures: Sequence[Measure]
    figures: Mapping[str, Mapping[str, Estimate]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    names: Sequence[str] = ()
    classes: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def difference(self, row: str, measure: Measure | None = None, than: str = PLAIN) -> Estimate | None:
        """Give how much higher a row's figure is than another's, paired; None if either has none."""
        name = (measure or self.measures[0]).name
        figure, other = self.figures[row].get(name), self.figures[than].get(name)
        return None if figure is None or other is None else figure - other

    def verdict(self, row: str, than: str = PLAIN) -> str:
        """Say in a sentence whether a row is better than another one, by the first measure."""
        measure = self.measures[0]
        difference = self.difference(row, than=than)
        if difference is None or math.isnan(difference.value):
            return f"{row}: {measure.name} is not known, so that nothing can be said."
        low, high = difference.interval
        unit = measure.unit and " points"
        by, few = measure.number(difference.value, sign=True), ""
        if math.isnan(low):
            few = f"{self.count} of the {self.over} say nothing of others"
        elif self.count < FEWEST:
            few = f"{self.count} {self.over} are too few to say more"
        if few:
            return f"{row}: {by}{unit} of {measure.name} beside {than}; {few}."
        size, spread = measure.number(abs(difference.value)), measure.number((high - low) / 2)
        if low <= 0 <= high:
            return (
                f"{row}: no difference from {than} was found in {measure.name} with {self.count} {self.over} "
                f"({by} +- {spread}{unit}){self._needed(difference)}."
            )
        word = "better" if (low > 0) == (measure.better == "higher") else "worse"
        return f"{row}: {word} than {than} by {size} +- {spread}{unit} of {measure.name} ({self.count} {self.over})."

    def is_worse(self, row: str, than: str = PLAIN) -> bool:
        """Say whether a row is worse than another by the first measure: surely, or as far as so few can tell."""
        difference = self.difference(row, than=than)
        if difference is None:
            return False
        low, high = difference.interval
        worse, best = (difference.value, low) if self.measures[0].better == "lower" else (-difference.value, -high)
        return worse > 0 and not (self.count >= FEWEST and best <= 0)

    @property
    def verdicts(self) -> dict[str, str]:
        """The sentences on all rows but the plain one."""
        return {row: self.verdict(row) for row in self.figures if row != PLAIN}

    def _needed(self, difference: Estimate) -> str:
        """Say how many would be needed to tell a difference of this size."""
        low, high = difference.interval
        if difference.value == 0 or high == low:
            return ""
        share = (NORMAL + POWER) * (high - low) / 2 / NORMAL / difference.value
        needed = max(self.count * share * share, self.count + 1)
        return f"; to tell so small a one it takes some {_rounded(math.ceil(needed))}" if math.isfinite(needed) else ""

    def table(self) -> str:
        """Write the figures as a Markdown table, a measure a line, 95 % intervals in brackets, published ones below."""
        rows = list(self.figures)
        lines = [["measure", "better", *rows], ["---"] * (len(rows) + 2)]
        for measure in self.measures:
            cells = [_cell(measure, self.figures[row].get(measure.name)) for row in rows]
            lines.append([f"{measure.name}{measure.unit and ', %'}", measure.better, *cells])
            known = [self.published.get(row, {}).get(measure.name) for row in rows]
            if any(value is not None for value in known):
                cells = ["-" if value is None else measure.number(value) for value in known]
                lines.append([f"{measure.name}, published", measure.better, *cells])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def text(self) -> str:
        """Write the report as Markdown: table, sentences, and what it was measured with."""
        settings = [f"- {key}: {value}" for key, value in {**self.settings, **self.versions()}.items()]
        skipped = [f"- {name}: {reason}" for name, reason in self.skipped.items()]
        parts = [
            f"# {self.task}: {self.count} {self.over}",
            self.table(),
            "\n".join(f"- {sentence}" for sentence in self.verdicts.values()),
            "## Measured with\n\n" + "\n".join(settings),
            *(["## Skipped\n\n" + "\n".join(skipped)] if skipped else []),
        ]
        return "\n\n".join(parts) + "\n"

    @staticmethod
    def versions() -> dict[str, str]:
        """Say what it was measured by."""
        return {"dvt-timm": __version__, "torch": torch.__version__, "python": platform.python_version()}

    def as_json(self) -> dict[str, Any]:
        """Give everything, JSON-friendly; what is not known is null."""
        figures = {row: {name: _json_of(estimate) for name, estimate in of.items()} for row, of in self.figures.items()}
        differences = {
            row: {m.name: _json_of(d) for m in self.measures if (d := self.difference(row, m)) is not None}
            for row in self.figures
            if row != PLAIN
        }
        return {
            "task": self.task,
            "over": self.over,
            "count": self.count,
            "measures": [{"name": m.name, "better": m.better, "unit": m.unit} for m in self.measures],
            "figures": figures,
            "differences": differences,
            "verdicts": self.verdicts,
            "classes": {name: {row: _json_of(e) for row, e in of.items()} for name, of in self.classes.items()},
            "published": {row: dict(of) for row, of in self.published.items()},
            "settings": {**self.settings, **self.versions()},
            "names": list(self.names),
            "each": {
                name: {row: [_known(v) for v in of] for row, of in rows.items()} for name, rows in self.each.items()
            },
            "skipped": dict(self.skipped),
        }

    def save(self, folder: Path, *, explorer: str | None = None) -> None:
        """Write report.json, report.md, report.html and a PNG of each plot to a folder.

        Args:
            folder: made where it does not exist.
            explorer: address of a page of `dvt_timm.explore`, relative to the folder, that the HTML links to.

        Raises:
            ImportError: if matplotlib is not installed.
            OSError: if it cannot be written.
        """
        from .page import page_of
        from .plots import plots_of

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", self.as_json())
        for name, figure in plots_of(self).items():
            with replacing(folder / f"{name}.png") as path:
                figure.savefig(path, format="png", dpi=150, metadata=dict([OURS]))
        for name, text in (("report.md", self.text()), ("report.html", page_of(self, explorer))):
            write_text(folder / name, text)


def _cell(measure: Measure, figure: Estimate | None) -> str:
    if figure is None:
        return "-"
    low, high = (measure.number(end) for end in figure.interval)
    return measure.number(figure.value) + ("" if low == "-" else f" [{low}, {high}]")


def _json_of(estimate: Estimate) -> dict[str, float | None]:
    low, high = estimate.interval
    return {"value": _known(estimate.value), "low": _known(low), "high": _known(high)}


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _rounded(count: int) -> str:
    """Round to two digits."""
    digits = max(len(str(count)) - 2, 0)
    return f"{round(count, -digits):,}"
