"""`dvt-timm list`: the names that this package adds to timm, read from the manifest alone."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any, TypeAlias

from ..manifest import Published, Variant, published_variants, read_manifest
from .console import Column, CommandError, Commands, cell, table

Row: TypeAlias = dict[str, Any]  # what is known of a name; None where nothing is

FIGURES: dict[str, Column] = {"voc_miou": ("VOC", ".2f"), "ade20k_miou": ("ADE20k", ".2f"), "nyu_rmse": ("NYU", ".4f")}
LONG: dict[str, Column] = {
    "name": ("name", ""),
    "base": ("base", ""),
    "license": ("license", ""),
    "head_mb": ("head MB", ".1f"),
    **FIGURES,
    "weights": ("weights", ""),
}
SHORT = {"voc_miou": FIGURES["voc_miou"], "ade20k_miou": FIGURES["ade20k_miou"]}
WIDTH = 100  # columns of the short form
FIGURES_NOTE = (
    "VOC, ADE20k: mIoU in percent of the authors' linear probes, base -> with these weights; published with their "
    "release, not measured by this project."
)
PAGE = """# Names

Every name that `import dvt_timm` adds to timm, and the file behind it. Files are those of
[`jjiaweiyang/DVT`](https://huggingface.co/jjiaweiyang/DVT): a head, or a ViT with distilled weights, which needs no
head at run time and has no classifier. Names of the same file share a row. Public code names five of the files; the
other names follow the authors' tables of results and have not been seen. `dvt-timm weights check` looks, with a
network.

Figures are the authors' linear probes, from their release: VOC and ADE20k mIoU in percent, NYU RMSE in meters, raw base
-> with these weights. They are published figures, not measured by this project.

| name | what it is, file | base tag, license | VOC | ADE20k | NYU |
| --- | --- | --- | --- | --- | --- |
{rows}

- A name without `_voc` or `_in1k` is the recommended head of that base.
- `_voc` and `_in1k` say on which images the head was trained, without labels: PASCAL VOC 2007 and 2012 but for its
  validation images, or ImageNet-1k.
- `_distilled` names are plain timm models, distilled on ImageNet-1k from such a head.
- Names without a published head ("head of your own") build, for `denoiser=` and for training; their `pretrained=True`
  is an error that says so.
{notes}

This page is the output of `dvt-timm list --markdown`."""


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "list",
        help="list the names this package adds to timm",
        description="List the names this package adds to timm, below their bases, with the authors' linear-probe "
        "figures: mIoU in percent on VOC and ADE20k, RMSE in meters on NYU.",
    )
    parser.add_argument("filter", nargs="?", default="*", metavar="FILTER", help="as timm's, '*dinov2*'")
    parser.add_argument("--pretrained", action="store_true", help="only those with weights")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--long", action="store_true", help="a line a name: base, size of the head, where its weights are"
    )
    form.add_argument("--json", action="store_true", help="all that is known, as a JSON list of objects")
    form.add_argument("--markdown", action="store_true", help="as a page of the documentation")
    parser.set_defaults(run=run, needs_timm=False)


def run(arguments: argparse.Namespace) -> int:
    """Print the names in one of the forms."""
    rows = rows_of(arguments.filter, arguments.pretrained)
    if not rows:
        raise CommandError(f"no name matches {arguments.filter!r}; give a pattern as timm's, '*dinov2*'")
    if arguments.json:
        print(json.dumps(_sorted(rows), indent=2))
    elif arguments.long:
        print(table(LONG, [{**row, "weights": row["weights"] or "none published"} for row in _sorted(rows)]))
    else:
        print(page(rows) if arguments.markdown else summary(rows))
    return 0


def rows_of(pattern: str = "*", pretrained: bool = False) -> list[Row]:
    """Read the names that match a pattern, in the manifest's order; `pretrained`: only those with weights."""
    rows = [_row(variant) for variant in published_variants().values()]
    return [row for row in rows if fnmatch(row["name"], pattern) and (row["weights"] or not pretrained)]


def head_megabytes(dim: int, grid_size: tuple[int, int]) -> float:
    """Compute the size of a head of one block, float32, in 10^6 bytes: an embedding of the grid, and the block."""
    parameters = dim * grid_size[0] * grid_size[1] + 12 * dim**2 + 13 * dim
    return round(4 * parameters / 1e6, 1)


def summary(rows: Sequence[Row]) -> str:
    """Lay the names out below their bases, names of the same file on one line, with notes at the end."""
    columns: dict[str, Column] = {"name": ("base, and names", ""), **{key: (SHORT[key][0], "") for key in SHORT}}
    blank = dict.fromkeys([*columns, "license"], "")
    lines = []
    for base, group in _by_base(rows).items():
        lines.append({**blank, "name": base})
        lines += [_summary_line(aliases) for aliases in _folded(group)]
    notes = [FIGURES_NOTE, *(f"{subject}: {note}." for subject, note in _notes(rows))]
    names = table({**columns, "license": ("license", "")}, lines)
    return "\n".join([names, "", *(textwrap.fill(note, WIDTH) for note in notes)])


def page(rows: Sequence[Row]) -> str:
    """Write the names as a page of the documentation."""
    lines = [_page_line(aliases) for group in _by_base(rows).values() for aliases in _folded(group)]
    notes = [f"- `{subject}`: {note}." for subject, note in _notes(rows)]
    return PAGE.format(rows="\n".join(lines), notes="\n".join(notes))


def _row(variant: Variant) -> Row:
    base, weights, figures = read_manifest()["bases"][variant.base], variant.weights, variant.figures or {}
    return {
        "name": variant.name,
        "base": variant.name if variant.backbone else variant.base,
        "license": base["license"],
        "distilled": variant.distilled,
        "head_mb": None if variant.distilled else head_megabytes(base["dim"], variant.grid_size),
        **{key: figures.get(key) for key in FIGURES},
        "base_figures": None if variant.backbone else base.get("figures"),
        "weights": f"{weights.repo}:{weights.file}" if isinstance(weights, Published) else weights and "embedded",
        **{key: getattr(weights, key, None) for key in ("revision", "size", "sha256")},
        "note": variant.note,
    }


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["name"])


def _by_base(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["base"], []).append(row)
    return groups


def _folded(rows: Iterable[Row]) -> list[list[Row]]:
    """Put the names of one file together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["weights"] or row["name"], []).append(row)
    return list(groups.values())


def _summary_line(aliases: list[Row]) -> Row:
    row = aliases[0]
    mark = {None: " (no weights)", "embedded": " (embedded)"}.get(row["weights"], "")
    names = ", ".join([row["name"], *map(_tag, aliases[1:])])
    return {"name": f"  {names}{mark}", **{key: _change(row, key) for key in SHORT}, "license": row["license"]}


def _page_line(aliases: list[Row]) -> str:
    row = aliases[0]
    names = ", ".join([f"`{row['name']}`", *(f"`.{_tag(alias)}`" for alias in aliases[1:])])
    kind, tag = "ViT" if row["distilled"] else "head", row["base"].partition(".")[2]
    if row["weights"] is None:
        what, figures = "head of your own", ["no published head", "", ""]
    elif row["weights"] == "embedded":
        what, tag, figures = "head and ViT, embedded", "embedded, see below", ["not probed", "", ""]
    else:
        what, figures = f"{kind}, `{row['weights'].partition(':')[2]}`", [_change(row, key) for key in FIGURES]
    return f"| {names} | {what} | {tag}, {row['license']} | {' | '.join(figures)} |"


def _tag(row: Row) -> str:
    tag: str = row["name"].partition(".")[2]
    return tag


def _change(row: Row, key: str) -> str:
    """Write a figure of the base and of the weights, "raw -> denoised"; "-" where none is published."""
    if row["base_figures"] is None:
        return "-"
    spec = FIGURES[key][1]
    return f"{cell(row['base_figures'][key], spec)} -> {cell(row[key], spec)}"


def _notes(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Collect the notes, each once, with what they are of: a base, or a name whose base is embedded."""
    notes = {row["note"]: row["name" if row["weights"] == "embedded" else "base"] for row in rows if row["note"]}
    return [(subject, note) for note, subject in notes.items()]
