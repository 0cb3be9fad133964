"""Objects of videos followed from the mask of their first frame: DAVIS, J and F.

Letters: T frames, h x w patches, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.davis import Video
from ..estimates import Estimate, ratio_over
from ..report import Measure, Report
from ..rows import Rows
from ..videos import boundary_accuracy, masks_of, propagate, region_similarity, soft_labels
from .correspondence import part_of

J, F = Measure("J", "higher", "%"), Measure("F", "higher", "%")
BOTH = Measure("J&F", "higher", "%")


class Videos(Protocol):
    """A map-style data set of videos."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Video: ...


def propagation(
    rows: Rows,
    videos: Videos,
    *,
    limit: int | None = None,
    frames: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Follow the objects of each video by what is alike.

    Args:
        rows: the model, and what is to be compared with it.
        videos: with masks.
        limit: take so many videos, spread evenly, rather than all.
        frames: take the first ones of each video, rather than all.
        progress: whether to show a bar.
        options: of `propagate`: neighbors, temperature, context, radius.

    Returns:
        J (intersection over union), F (contours) and their mean, each object's mean over its frames but the first and
        the last, averaged over objects as DAVIS does it; with intervals over videos.

    Raises:
        ValueError: if no video can be followed: one needs three frames and an object in its first mask. Others that
            cannot are named in the report.
    """
    skipped: dict[str, str] = {}
    found: dict[int, dict[str, Tensor]] = {}  # of a video: row -> J and F of objects
    for i in part_of(rows, len(videos), limit, "videos", progress):
        video = videos[i]
        try:
            found[i] = _objects(rows, video, frames or len(video.frames), options)
        except ValueError as error:
            skipped[video.name] = str(error)
    found, skipped = rows.team.gather(found), rows.team.gather(skipped)
    if not found:
        reason = next(iter(skipped.values()), "there is none, give a split that names some")
        raise ValueError(f"no video can be followed: {reason}")
    scores = {name: _Scores([objects[name] for objects in found.values()]) for name in rows.names}
    return Report(
        task="propagation",
        over="videos",
        count=len(found),
        measures=[BOTH, J, F],
        figures={name: of.figures() for name, of in scores.items()},
        settings={**rows.settings, **options, **({} if frames is None else {"frames of each video": frames})},
        each={BOTH.name: {name: of.each() for name, of in scores.items()}},
        names=[str(videos[i].frames[0]) for i in found],
        skipped=skipped,
    )


def _objects(rows: Rows, video: Video, count: int, options: dict[str, Any]) -> dict[str, Tensor]:
    """Score a video: name of a row -> J and F of each object [K, 2], means over frames."""
    count = min(count, len(video.frames))
    first = video.mask(0)
    ids = [int(label) for label in np.unique(first) if label]
    if count < 3 or not ids:
        raise ValueError(
            f"{video.name}: {count} frames with {len(ids)} objects in the first; three frames and an object are needed"
        )
    labels = soft_labels(first, rows.grid(video.frame(0)))
    feeds: dict[str, deque[Tensor]] = {name: deque() for name in rows.names}
    followed = {name: propagate(_fed(feed), labels, **options) for name, feed in feeds.items()}
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in rows.names}
    for t, maps in enumerate(rows.over(video.frame(t) for t in range(count - 1))):
        truth = video.mask(t)
        for name, fmap in maps.rows.items():
            feeds[name].append(fmap)
            if t:
                guessed = masks_of(next(followed[name]), truth.shape)
                found[name].append([_scored(guessed == label, truth == label) for label in ids])
    return {name: torch.tensor(of).mean(dim=0) for name, of in found.items()}


def _fed(feed: deque[Tensor]) -> Iterator[Tensor]:
    """Hand on maps as they come."""
    while feed:
        yield feed.popleft()


def _scored(guessed: Any, truth: Any) -> tuple[float, float]:
    return region_similarity(guessed, truth), boundary_accuracy(guessed, truth)


@dataclass
class _Scores:
    """The scores of one row, video by video."""

    objects: list[Tensor]  # [K, 2], J and F of each object

    def figures(self) -> dict[str, Estimate]:
        sums = torch.stack([of.sum(dim=0) for of in self.objects])
        counts = torch.tensor([len(of) for of in self.objects])
        parts = [ratio_over(sums[:, i], counts) for i in range(2)]
        return {BOTH.name: Estimate.mean(parts), J.name: parts[0], F.name: parts[1]}

    def each(self) -> list[float]:
        return [float(of.sum(dim=0).mean() / len(of)) for of in self.objects]
