"""What the commands print: the names of this package and the state of its published files, as tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ..registry import get_variant, list_variants

FIGURES = {"voc_miou": ("VOC", ".2f"), "ade20k_miou": ("ADE20k", ".2f"), "nyu_rmse": ("NYU", ".4f")}
COLUMNS = {  # key of a row -> its title, and the format of a number
    "name": ("name", ""),
    "base": ("base", ""),
    "licence": ("licence", ""),
    "head_mb": ("head MB", ".1f"),
    **FIGURES,
    "weights": ("weights", ""),
}


def variants(pretrained: bool, as_json: bool) -> str:
    """Every name that this package adds to timm, or those with weights."""
    rows = [_row(name) for name in list_variants(pretrained)]
    if as_json:
        return json.dumps(rows, indent=2)
    return table(COLUMNS, [{**row, "weights": row["weights"] or "none published"} for row in rows])


def table(columns: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under a header, columns aligned, numbers to the right; None is "-".

    Args:
        columns: key of a row -> (title, format of a number, empty for text).
        rows: with these keys.
    """
    header = [title for title, _ in columns.values()]
    cells = [[_cell(row[key], spec) for key, (_, spec) in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    aligns = [">" if spec else "<" for _, spec in columns.values()]
    lines = [zip(row, aligns, widths, strict=True) for row in [header, *cells]]
    return "\n".join("  ".join(f"{text:{align}{width}}" for text, align, width in line).rstrip() for line in lines)


def _cell(value: Any, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _row(name: str) -> dict[str, Any]:
    """What is listed of a variant; None where unknown."""
    from timm.models import get_pretrained_cfg

    variant = get_variant(name)
    has_head = variant.dim > 0 and not variant.distilled
    cfg = get_pretrained_cfg(variant.base)
    figures = variant.figures or {}
    return {
        "name": name,
        "base": variant.base,
        "licence": None if cfg is None else cfg.license,
        "head_mb": _head_megabytes(variant.dim, variant.grid_size) if has_head else None,
        **{key: figures.get(key) for key in FIGURES},
        "weights": _source(variant),
    }


@cache
def _head_megabytes(dim: int, grid_size: tuple[int, int]) -> float:
    """Size of a head's float32 parameters in 10^6 bytes."""
    import torch

    from ..head import DenoiserHead

    with torch.device("meta"):
        head = DenoiserHead(dim, grid_size)
    return round(4 * sum(parameter.numel() for parameter in head.parameters()) / 1e6, 1)


def _source(variant: Any) -> str | None:
    """Where the weights are: "embedded", "repo:file", a user's own path, or None."""
    if variant.head is not None:
        return str(variant.head)
    if variant.file is None:
        return None
    return "embedded" if variant.repo is None else f"{variant.repo}:{variant.file}"
