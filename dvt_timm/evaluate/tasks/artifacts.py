"""How much of a patch's position is in its features, on any folder of photos, without labels.

Letters: N photos, h x w patches, C channels, M patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..._util.images import ImageError, check_aspect, read_image
from ...offline.run import unique
from ...projection import RANK, Moments, PositionProjection, places
from ..estimates import Estimate, mean_over
from ..leakage import LinearPlaces, NearestPlaces, errors_of, mean_r2, r2_over
from ..mic import information_coefficients
from ..planting import artifact_left, distance_to_truth, plant
from ..report import Measure, Report
from ..rows import PLAIN, PROJECTION, Maps, Rows

OUTLIER = 2.0  # norms above so many medians
PATCHES = 100  # of each photo, for neighbors
MIC_PHOTOS = 4  # each takes seconds
FEWEST = 4  # photos

LEAKAGE, NEAREST = Measure("position leakage", "lower"), Measure("leakage, k-NN", "lower")
READ = ("x", "y", "x distance", "y distance")  # `TARGETS`, without signs that a table is made of
LINEAR = [Measure(f"leakage {target}", "lower") for target in READ]
NEIGHBORS = [Measure(f"leakage {target}, k-NN", "lower") for target in READ]
MIC, OUTLIERS = Measure("MIC", "lower"), Measure("outliers", "lower", "%")
LEFT, DISTANCE = Measure("planted artifact left", "lower"), Measure("distance to the truth", "lower")
MEASURES = [LEAKAGE, NEAREST, *LINEAR, *NEIGHBORS, MIC, OUTLIERS, LEFT, DISTANCE]


def artifacts(
    rows: Rows,
    photos: Sequence[Path],
    *,
    projection: int = RANK,
    mic_photos: int = MIC_PHOTOS,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Measure artifacts of position, with intervals over photos.

    Two thirds of the photos fit the probes of position, the others test them. In the model with an absolute position
    embedding a plaid is planted (`evaluate.plant`), on the photos that test: what the plain model gives without it is
    the truth.

    Args:
        rows: the model, and what is to be compared with it.
        photos: image files, each content taken once; those that cannot be read are left out, and named in the report.
        projection: dimensions of the `PositionProjection` that is found on the photos that fit the probes, and is a
            row; 0 for none.
        mic_photos: how many test photos the paper's information coefficient is taken of; 0 for none.
        seed: decides which photos test, and which patches neighbors are among.
        progress: whether to show a bar.

    Returns:
        Of every row the R2 with which a patch's place is read, linearly and from its nearest neighbors: that of x, y
        and their distances from the middle, below 0 where nothing is read, and the mean of the four, each at least 0.
        The information coefficient; the share of patches whose norm is above twice the median; and what is left of the
        planted artifact, for rows that share the model's position embedding.

    Raises:
        ValueError: if fewer than four different photos can be read, or fewer than two that test.
    """
    skipped: dict[str, str] = {}
    given = len(photos)
    photos = [path for path, _ in unique(photos, set(), lambda path, reason: skipped.update({str(path): reason}))]
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed)).tolist()
    num_fit = len(order) * 2 // 3
    fit, test = ([photos[i] for i in part] for part in (order[:num_fit], order[num_fit:]))
    bar = tqdm(total=len(photos), desc="artifacts", unit="photo", disable=None if progress else True)
    probes = {name: _Probes(seed) for name in rows.names}
    fitted = 0
    for _, maps in _maps_of(rows, fit, skipped, bar):
        fitted += 1
        for name, fmap in maps.rows.items():
            probes[name].add(fmap)
    tested = 0
    if fitted:
        fits = {name: probe.fitted() for name, probe in probes.items()}
        if projection:
            fits[PROJECTION] = _add_projection(rows, probes[PLAIN], projection)
            rows.notes[PROJECTION] = f"{projection} dimensions, found on the {fitted} photos that fit the probes"
        tests = _Tests(rows, mic_photos)
        for start in range(0, len(test), rows.batch_size):
            _judge(rows, test[start : start + rows.batch_size], tests, fits, skipped, bar)
        tested = len(tests.paths)
    bar.close()
    if tested < 2 or fitted + tested < FEWEST:
        raise ValueError(
            f"of {given} photos {fitted} can be read to fit the probes, and {tested} others to test them; it takes "
            f"{FEWEST} different ones that can be read, two of them to test; give more"
        )
    settings = {"photos that fit the probes": fitted, "seed": seed, "outliers": f"above {OUTLIER} medians"}
    return tests.report({**rows.settings, **settings}, skipped)


def _judge(
    rows: Rows,
    paths: Sequence[Path],
    tests: _Tests,
    fits: dict[str, tuple[LinearPlaces, NearestPlaces]],
    skipped: dict[str, str],
    bar: Any,
) -> None:
    """Judge some photos that test: as they are, and with an artifact planted in the model."""
    clean = dict(_maps_of(rows, paths, skipped, bar))
    for path, maps in clean.items():
        tests.add(path, maps, fits)
    if rows.model.pos_embed is not None:
        with plant(rows.model):
            for path, planted in _maps_of(rows, list(clean), {}, tqdm(disable=True)):
                tests.compare(clean[path], planted)


def _maps_of(rows: Rows, paths: Sequence[Path], skipped: dict[str, str], bar: Any) -> Iterator[tuple[Path, Maps]]:
    """Give the maps of the photos that can be read; note why others cannot."""
    readable: list[Path] = []

    def images() -> Iterator[Any]:
        for path in paths:
            bar.update()
            try:
                image = read_image(path)
                check_aspect(path, image)
            except ImageError as error:
                skipped[str(path)] = str(error)
                continue
            readable.append(path)
            yield image

    for i, maps in enumerate(rows.over(images())):
        yield readable[i], maps


def _add_projection(rows: Rows, plain: _Probes, rank: int) -> tuple[LinearPlaces, NearestPlaces]:
    """Make the projection a row, and fit its probes: both are known from what was seen of the plain maps."""
    moments = plain.moments
    head = PositionProjection.of(moments, rank)
    rows.add({PROJECTION: head})
    basis = head.basis.detach().double()
    rest = torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T
    linear = LinearPlaces.solved(
        moments.mean, rest @ moments.covariance @ rest, rest @ moments.with_places, moments.place
    )
    with torch.no_grad():
        projected = head(torch.cat(plain.features)[None, None])[0, 0]
    return linear, NearestPlaces.of(projected, torch.cat(plain.places))


class _Probes:
    """What the photos that fit give a row's two probes."""

    def __init__(self, seed: int) -> None:
        self.moments = Moments()
        self.features: list[Tensor] = []
        self.places: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, fmap: Tensor) -> None:
        self.moments.add(fmap)
        drawn = _drawn(fmap, self.generator)
        self.features.append(fmap.flatten(0, 1)[drawn])
        self.places.append(places(*fmap.shape[:2])[drawn])

    def fitted(self) -> tuple[LinearPlaces, NearestPlaces]:
        nearest = NearestPlaces.of(torch.cat(self.features), torch.cat(self.places))
        return LinearPlaces.fit(self.moments), nearest


def _drawn(fmap: Tensor, generator: torch.Generator) -> Tensor:
    """Draw patches of a map."""
    return torch.randperm(fmap.shape[0] * fmap.shape[1], generator=generator)[:PATCHES]


@dataclass
class _Row:
    """The figures of one row, photo by photo."""

    linear: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # squared errors and squares, [4] each
    nearest: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    mic: list[float] = field(default_factory=list)
    outliers: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Estimate]:
        found: dict[str, Estimate] = {}
        for all_of, each, sums in ((LEAKAGE, LINEAR, self.linear), (NEAREST, NEIGHBORS, self.nearest)):
            r2 = r2_over(sums)
            found |= {measure.name: estimate for measure, estimate in zip(each, r2, strict=True)}
            found[all_of.name] = mean_r2(r2)
        for measure, values in (
            (MIC, self.mic),
            (OUTLIERS, self.outliers),
            (LEFT, self.left),
            (DISTANCE, self.distance),
        ):
            if values:
                found[measure.name] = mean_over(torch.tensor(values))
        return {measure.name: found[measure.name] for measure in MEASURES if measure.name in found}

    def leakage(self) -> list[float]:
        """Give the mean R2 of every photo."""
        return [float((1 - errors / squares).clamp(min=0).mean()) for errors, squares in self.linear]


class _Tests:
    """What the test photos show."""

    def __init__(self, rows: Rows, mic_photos: int) -> None:
        self.rows = {name: _Row() for name in rows.names}
        self.carriers = [name for name in rows.names if rows.shares_positions(name)]
        self.mic_photos = mic_photos
        self.paths: list[Path] = []
        self.generator = torch.Generator().manual_seed(0)

    def add(self, path: Path, maps: Maps, fits: dict[str, tuple[LinearPlaces, NearestPlaces]]) -> None:
        """Judge the maps of a photo."""
        drawn = _drawn(maps.rows[PLAIN], self.generator)
        for name, fmap in maps.rows.items():
            row, (linear, nearest), place = self.rows[name], fits[name], places(*fmap.shape[:2])
            row.linear.append(errors_of(linear.read(fmap), place))
            row.nearest.append(errors_of(nearest.read(fmap.flatten(0, 1)[drawn]), place[drawn]))
            norms = fmap.norm(dim=-1)
            row.outliers.append(float((norms > OUTLIER * norms.median()).float().mean()))
            if len(self.paths) < self.mic_photos:
                row.mic.append(float(information_coefficients(fmap).amax(dim=0).mean()))
        self.paths.append(path)

    def compare(self, before: Maps, planted: Maps) -> None:
        """Compare the maps of a photo in the model that carries an artifact with those before."""
        clean = before.rows
        for name in self.carriers:
            fmap = planted.rows[name]
            self.rows[name].left.append(artifact_left(fmap, clean[name], planted.rows[PLAIN], clean[PLAIN]))
            self.rows[name].distance.append(distance_to_truth(fmap, clean[PLAIN]))

    def report(self, settings: dict[str, Any], skipped: dict[str, str]) -> Report:
        return Report(
            task="artifacts",
            over="photos",
            count=len(self.paths),
            measures=MEASURES,
            figures={name: row.figures() for name, row in self.rows.items()},
            settings=settings,
            each={LEAKAGE.name: {name: row.leakage() for name, row in self.rows.items()}},
            names=list(map(str, self.paths)),
            skipped=skipped,
        )
