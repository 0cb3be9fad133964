"""Objects found in photos without labels: LOST, CorLoc."""

from __future__ import annotations

from typing import Protocol

import torch

from ..._util.images import read_image
from ..data.boxes import Located
from ..estimates import mean_over
from ..objects import is_located, lost
from ..report import Measure, Report
from ..rows import Rows
from .correspondence import part_of

CORLOC = Measure("CorLoc", "higher", "%")
BY_MASKS = Measure("objects of masks located", "higher", "%")  # no CorLoc of VOC


class Photos(Protocol):
    """A map-style data set of photos with boxes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Located: ...


def discovery(
    rows: Rows,
    photos: Photos,
    *,
    limit: int | None = None,
    neighbors: int = 100,
    bias: float = 0.0,
    progress: bool = False,
) -> Report:
    """Find the object of each photo by LOST, and see whether it is one that people marked.

    Args:
        rows: the model, and what is to be compared with it.
        photos: with boxes; those without any are left out.
        limit: take so many photos, spread evenly, rather than all.
        neighbors: of `lost`.
        bias: of `lost`.
        progress: whether to show a bar.

    Returns:
        CorLoc: the share of photos whose box overlaps a true one with an IoU above .5, with intervals over photos. It
        has another name where `photos.source` says that boxes come from masks.

    Raises:
        ValueError: if no photo can be read.
    """
    source = getattr(photos, "source", "Annotations")
    measure = CORLOC if source == "Annotations" else BY_MASKS
    skipped: dict[str, str] = {}
    located: dict[int, tuple[str, dict[str, float]]] = {}  # of a photo: its file, and row -> 1 or 0
    for i in part_of(rows, len(photos), limit, "photos", progress):
        try:
            photo = photos[i]
            image = read_image(photo.image)
        except ValueError as error:
            skipped[f"photo {i}"] = str(error)
            continue
        if not len(photo.boxes):
            continue
        boxes = {name: lost(fmap, neighbors=neighbors, bias=bias) for name, fmap in rows.maps(image).rows.items()}
        located[i] = str(photo.image), {name: float(is_located(box, photo.boxes)) for name, box in boxes.items()}
    located, skipped = rows.team.gather(located), rows.team.gather(skipped)
    if not located:
        raise ValueError(f"no photo with a box can be read: {next(iter(skipped.values()), 'there is none')}")
    found = {name: [of[name] for _, of in located.values()] for name in rows.names}
    return Report(
        task="discovery",
        over="photos",
        count=len(located),
        measures=[measure],
        figures={name: {measure.name: mean_over(torch.tensor(of))} for name, of in found.items()},
        settings={**rows.settings, "neighbors": neighbors, "bias": bias, "boxes": source},
        each={measure.name: found},
        names=[name for name, _ in located.values()],
        skipped=skipped,
    )
