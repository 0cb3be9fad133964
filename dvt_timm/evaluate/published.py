"""The figures that the authors give for the models of a table, where the manifest knows them."""

from __future__ import annotations

from typing import Any

from ..manifest import published_variants, read_manifest
from ..names import backbone_of, name_of
from ..offline.run import own_weights_sha256
from .rows import DENOISED, PLAIN, Rows


def published_of(rows: Rows, figure: str) -> dict[str, float]:
    """Give the published figure of each row that has one: "voc_miou", "ade20k_miou" in percent, "nyu_rmse" in meters.

    Weights of one's own have none, nor has a block before the last one. Plain features are the base's, the row
    "denoised" is the named model's, and another model's row that of its name.
    """
    if not rows.is_last:
        return {}
    name = "" if own_weights_sha256(rows.model) else _name(rows.model)
    variant = published_variants().get(name)
    base = variant.base if variant is not None and variant.backbone is None else name
    known = {PLAIN: read_manifest()["bases"].get(backbone_of(base), {}).get("figures")}
    known[DENOISED] = variant.figures if variant is not None else None
    for row, model in rows.others.items():
        of_row = published_variants().get(_name(model))
        known[row] = of_row.figures if of_row is not None else None
    found = {row: (figures or {}).get(figure) for row, figures in known.items() if row in rows.names}
    return {row: float(value) for row, value in found.items() if value is not None}


def _name(model: Any) -> str:
    cfg = getattr(model, "pretrained_cfg", None)
    return "" if cfg is None else name_of(cfg)
