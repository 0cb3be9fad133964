"""Key points of a photo found in another of the same kind of object: SPair-71k, PCK.

Letters: K points of a pair, A shares alpha, N pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..._util.images import read_image
from ..data.spair import Pair
from ..estimates import ratio_over, resampled
from ..keypoints import match_points
from ..report import Measure, Report
from ..rows import Maps, Rows

ALPHAS = (0.1, 0.05, 0.15, 0.2)  # of the longer side of the object's box; the first one is what sentences are about
PER_IMAGE = [Measure(f"PCK@{alpha:.2f}", "higher", "%") for alpha in ALPHAS]
PER_POINT = [Measure(f"PCK@{alpha:.2f} per point", "higher", "%") for alpha in ALPHAS]
KEPT = 64  # photos whose maps are kept: those of a pair come again soon


@dataclass(frozen=True)
class _Found:
    """What was found of a pair."""

    photos: tuple[Path, Path]  # source and target
    count: int  # K
    hits: dict[str, Tensor]  # row -> [A] points found


class Pairs(Protocol):
    """A map-style data set of pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Pair: ...


def correspondence(rows: Rows, pairs: Pairs, *, limit: int | None = None, progress: bool = False) -> Report:
    """Find the key points of each pair's source in its target, each by the patch that is most alike.

    Args:
        rows: the model, and what is to be compared with it.
        pairs: of photos.
        limit: take so many pairs, spread evenly, rather than all.
        progress: whether to show a bar.

    Returns:
        PCK at .05, .10, .15 and .20 of the longer side of the object's box, averaged over pairs ("per image" in papers)
        and over points, with intervals over the photos that the pairs share.

    Raises:
        ValueError: if no pair can be read.
    """
    skipped: dict[str, str] = {}
    kept: dict[Path, Maps] = {}
    found: dict[int, _Found] = {}
    for i in part_of(rows, len(pairs), limit, "pairs", progress):
        try:
            pair = pairs[i]
            images = [read_image(path) for path in (pair.source, pair.target)]
        except ValueError as error:
            skipped[f"pair {i}"] = str(error)
            continue
        source, target = (
            _maps(rows, path, image, kept) for path, image in zip((pair.source, pair.target), images, strict=True)
        )
        hits = {name: _points_found(pair, images, source.rows[name], target.rows[name]) for name in rows.names}
        found[i] = _Found((pair.source, pair.target), len(pair.source_points), hits)
    found, skipped = rows.team.gather(found), rows.team.gather(skipped)
    if not found:
        raise ValueError(f"none of {len(pairs)} pairs can be read: {next(iter(skipped.values()), 'there are none')}")
    return _report(rows, list(found.values()), skipped)


def spread_over(count: int, limit: int | None) -> list[int]:
    """Choose so many of a data set's indices, spread evenly; all without a limit."""
    taken = count if limit is None else min(limit, count)
    return [i * count // taken for i in range(taken)]


def part_of(rows: Rows, count: int, limit: int | None, title: str, progress: bool) -> Iterable[int]:
    """Choose of a data set's indices as `spread_over` does, and give this process its part of them, with a bar."""
    return tqdm(rows.team.part(spread_over(count, limit)), desc=title, disable=None if progress else True)


def _maps(rows: Rows, path: Path, image: Image.Image, kept: dict[Path, Maps]) -> Maps:
    if path not in kept:
        while len(kept) >= KEPT:
            kept.pop(next(iter(kept)))
        kept[path] = rows.maps(image)
    return kept[path]


def _points_found(pair: Pair, images: Sequence[Image.Image], source: Tensor, target: Tensor) -> Tensor:  # [A]
    """Count the points that are found near enough, for each alpha."""
    sides = [torch.tensor(image.size, dtype=torch.float32) for image in images]
    guessed = match_points(source, target, (pair.source_points / sides[0]).clamp(0, 1)) * sides[1]
    distance = (guessed - pair.target_points).norm(dim=1)
    return torch.stack([(distance <= alpha * pair.side).sum() for alpha in ALPHAS])


def _drawn(photos: Sequence[tuple[Path, Path]]) -> Tensor:
    """Draw photos with replacement, not pairs, which share them: [R, N], how often each pair is drawn."""
    numbers = {path: i for i, path in enumerate(dict.fromkeys(path for pair in photos for path in pair))}
    counts = resampled(len(numbers))
    return torch.stack([counts[:, numbers[source]] * counts[:, numbers[target]] for source, target in photos], dim=1)


def _report(rows: Rows, found: Sequence[_Found], skipped: dict[str, str]) -> Report:
    counts, drawn = torch.tensor([pair.count for pair in found]), _drawn([pair.photos for pair in found])
    hits = {name: torch.stack([pair.hits[name] for pair in found]) for name in rows.names}  # [N, A]
    figures: dict[str, dict[str, Any]] = {}
    for name, of in hits.items():
        figures[name] = {
            m.name: ratio_over(of[:, a] / counts, torch.ones(len(of)), drawn) for a, m in enumerate(PER_IMAGE)
        }
        figures[name] |= {m.name: ratio_over(of[:, a], counts, drawn) for a, m in enumerate(PER_POINT)}
    return Report(
        task="correspondence",
        over="pairs",
        count=len(counts),
        measures=[*PER_IMAGE, *PER_POINT],
        figures=figures,
        settings={**rows.settings, "intervals": "over photos, which pairs share"},
        each={PER_IMAGE[0].name: {name: (of[:, 0] / counts).tolist() for name, of in hits.items()}},
        names=[str(target) for _, target in (pair.photos for pair in found)],
        skipped=skipped,
    )
