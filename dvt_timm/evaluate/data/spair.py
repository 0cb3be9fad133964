"""SPair-71k: pairs of photos of one kind of object with key points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._util.files import read_json

LAYOUT = "SPair-71k/{JPEGImages/<category>/*.jpg, PairAnnotation/<split>/*.json, Layout/{large,small}/<split>.txt}"


@dataclass(frozen=True)
class Pair:
    """Two photos, and the points that are the same in both.

    Attributes:
        name: of the pair.
        category: of the object.
        source, target: the photos.
        source_points, target_points: [K, 2], pixels (x, y) of the photos.
        side: the longer side of the object's box in the target, in pixels.
    """

    name: str
    category: str
    source: Path
    target: Path
    source_points: Tensor
    target_points: Tensor
    side: float


class SpairPairs:
    """The pairs of a split, in the order of its list: a map-style data set.

    Args:
        folder: with `JPEGImages`, `PairAnnotation` and `Layout`.
        split: "test", "val" or "trn".
        layout: which list, "large" or "small".

    Raises:
        ValueError: if the folder is laid out otherwise.
    """

    def __init__(self, folder: Path, split: str = "test", layout: str = "large") -> None:
        self.folder = folder
        annotations, listed = folder / "PairAnnotation" / split, folder / "Layout" / layout / f"{split}.txt"
        for wanted in (folder / "JPEGImages", annotations):
            if not wanted.is_dir():
                raise ValueError(f"{wanted} not found; SPair-71k is laid out as {LAYOUT}")
        by_stem = {path.stem: path for path in annotations.glob("*.json")}
        names = listed.read_text(encoding="utf-8").split() if listed.is_file() else sorted(by_stem)
        self.files = [by_stem.get(name, by_stem.get(name.replace(":", "_"))) for name in names]  # Windows has no ":"
        missing = [name for name, file in zip(names, self.files, strict=True) if file is None]
        if missing or not names:
            first = f"{missing[0]}, the first of {len(missing)}" if missing else "any pair"
            raise ValueError(f"{annotations} lacks {first}; SPair-71k is laid out as {LAYOUT}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Pair:
        """Read pair i; raise ValueError if its annotation is damaged."""
        file = self.files[i]
        assert file is not None
        try:
            return self._pair(file.stem, read_json(file))
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no pair of SPair-71k: {error!r}; take another copy") from error

    def _pair(self, name: str, found: dict[str, Any]) -> Pair:
        photos = self.folder / "JPEGImages" / found["category"]
        source, target = (_points(found, f"{side}_kps") for side in ("src", "trg"))
        if len(source) != len(target):
            raise ValueError(f"{len(source)} and {len(target)} points")
        names = [Path(found[f"{side}_imname"]).name for side in ("src", "trg")]
        side = _longer_side(found["trg_bndbox"])
        return Pair(name, found["category"], photos / names[0], photos / names[1], source, target, side)


def _points(found: dict[str, Any], key: str) -> Tensor:  # [K, 2]
    """Read the points of a photo; raise ValueError if there are none, or they are no points."""
    points = torch.tensor(found[key], dtype=torch.float32)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{key} must be [x, y] of each point, got shape {list(points.shape)}")
    if not bool(points.isfinite().all()):
        raise ValueError(f"{key} must be finite, got {points.tolist()}")
    return points


def _longer_side(box: list[float]) -> float:
    """Measure a box in pixels; raise ValueError if it is none."""
    left, top, right, bottom = box
    side = float(max(right - left, bottom - top))
    if side <= 0 or not all(map(math.isfinite, box)):
        raise ValueError(f"trg_bndbox must be left, top, right and bottom, got {box}")
    return side
