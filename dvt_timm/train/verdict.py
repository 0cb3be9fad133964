"""What training has come to: trained features beside raw ones and beside a projection, on images held out.

Letters: N held-out images, h x w patches, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..evaluate.estimates import Estimate, ratio_over
from ..evaluate.leakage import LinearPlaces, errors_of, mean_r2, r2_over
from ..evaluate.report import Measure, Report
from ..evaluate.rows import PLAIN, PROJECTION
from ..projection import Moments, PositionProjection, places
from .evaluation import FEWEST_MAPS, errors_to

TRAINED = "trained"
ERROR, LEAKAGE = Measure("error to the targets", "lower"), Measure("position leakage", "lower")


def judge(
    raw: Sequence[Tensor],
    trained: Sequence[Tensor],
    target: Sequence[Tensor],
    projection: PositionProjection | None,
    settings: dict[str, Any],
    names: Sequence[str],
) -> Report:
    """Compare maps of N images that took no part in training, and say how sure that is.

    Args:
        raw: maps [h, w, C] of the plain model.
        trained: what was trained makes of them.
        target: maps without artifacts.
        projection: the baseline that costs nothing, found on other images; None for no such row.
        settings: what they are of.
        names: of the images.

    Returns:
        Rows "plain", "trained" and "projection": squared error to the targets over the variance of their patches, and
        the mean R2 with which a patch's place is read linearly, probes fitted on one half of the images and tested on
        the other, both ways. Leakage takes four images or more.
    """
    rows = {PLAIN: raw, TRAINED: trained}
    if projection is not None:
        rows[PROJECTION] = [projection(fmap[None].float())[0].detach() for fmap in raw]
    figures: dict[str, dict[str, Estimate]] = {}
    each: dict[str, Sequence[float]] = {}
    for name, maps in rows.items():
        errors, spreads = errors_to(maps, target)
        figures[name] = {ERROR.name: ratio_over(errors, spreads)}
        each[name] = (errors / spreads).tolist()
        if len(maps) >= FEWEST_MAPS:
            figures[name][LEAKAGE.name] = mean_r2(r2_over(_crossed(maps)))
    return Report(
        task="training",
        over="held-out images",
        count=len(raw),
        measures=[ERROR, LEAKAGE],
        figures=figures,
        settings=settings,
        each={ERROR.name: each},
        names=names,
    )


def sentences(report: Report) -> list[str]:
    """Say whether what was trained is better than raw features, and than the projection."""
    return [report.verdict(TRAINED, than) for than in (PLAIN, PROJECTION) if than in report.figures]


def _crossed(maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Test each half of the maps by the probe that the other one fits: errors and squares [4] of every map."""
    half = len(maps) // 2
    parts = (maps[:half], maps[half:])
    found = []
    for fitting, testing in (parts[::-1], parts):
        moments = Moments()
        for fmap in fitting:
            moments.add(fmap)
        probe = LinearPlaces.fit(moments)
        found += [errors_of(probe.read(fmap), places(*fmap.shape[:2])) for fmap in testing]
    return found
