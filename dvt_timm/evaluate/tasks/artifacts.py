"""How much of a patch's position is in its features, on any folder of photos, without labels.

Letters: N photos, h x w patches, C channels, M patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..._util.images import ImageError, check_aspect, read_image
from ..._util.team import Team
from ...offline.run import unique
from ...projection import RANK, Moments, PositionProjection, places
from ..estimates import Estimate, mean_over
from ..leakage import LinearPlaces, NearestPlaces, errors_of, mean_r2, r2_over
from ..mic import largest_coefficients
from ..planting import artifact_left, distance_to_truth, plant
from ..report import Measure, Report
from ..rows import PLAIN, PROJECTION, Maps, Rows

OUTLIER = 2.0  # norms above so many medians
PATCHES = 100  # of each photo, for neighbors
MIC_PHOTOS = 4  # each takes seconds
FEWEST = 4  # photos
Numbered = tuple[int, Path]  # a photo, by its place in the order that the seed decides

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
        mic_photos: how many test photos, the first ones, the paper's information coefficient is taken of; 0 for none.
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
    numbered = [(number, photos[i]) for number, i in enumerate(order)]
    fit, test = (rows.team.part(part) for part in (numbered[:num_fit], numbered[num_fit:]))
    bar = tqdm(total=len(fit) + len(test), desc="artifacts", unit="photo", disable=None if progress else True)
    probes = {name: _Probes(seed) for name in rows.names}
    for number, _, maps in _maps_of(rows, fit, skipped, bar):
        for name, fmap in maps.rows.items():
            probes[name].add(number, fmap)
    probes = {name: probe.joined(rows.team) for name, probe in probes.items()}
    fitted, found = len(probes[PLAIN].drawn), dict[int, _Photo]()
    if fitted:
        fits = {name: probe.fitted() for name, probe in probes.items()}
        if projection:
            fits[PROJECTION] = _add_projection(rows, probes[PLAIN], projection)
            rows.notes[PROJECTION] = f"{projection} dimensions, found on the {fitted} photos that fit the probes"
        judge = _Judge(rows, fits, seed, num_fit + mic_photos)
        for start in range(0, len(test), rows.batch_size):
            found |= _judged(rows, test[start : start + rows.batch_size], judge, skipped, bar)
    bar.close()
    found, skipped = rows.team.gather(found), rows.team.gather(skipped)
    tested = len(found)
    if tested < 2 or fitted + tested < FEWEST:
        raise ValueError(
            f"of {given} photos {fitted} can be read to fit the probes, and {tested} others to test them; it takes "
            f"{FEWEST} different ones that can be read, two of them to test; give more"
        )
    settings = {"photos that fit the probes": fitted, "seed": seed, "outliers": f"above {OUTLIER} medians"}
    return _report(rows, list(found.values()), {**rows.settings, **settings}, skipped)


def _judged(
    rows: Rows, photos: Sequence[Numbered], judge: _Judge, skipped: dict[str, str], bar: Any
) -> dict[int, _Photo]:
    """Judge some photos that test: as they are, and with an artifact planted in the model."""
    clean = {(number, path): maps for number, path, maps in _maps_of(rows, photos, skipped, bar)}
    found = {number: judge.judged(number, path, maps) for (number, path), maps in clean.items()}
    if rows.model.pos_embed is not None:
        with plant(rows.model):
            for number, path, planted in _maps_of(rows, list(clean), {}, tqdm(disable=True)):
                judge.compare(found[number], clean[number, path], planted)
    return found


def _maps_of(
    rows: Rows, photos: Sequence[Numbered], skipped: dict[str, str], bar: Any
) -> Iterator[tuple[int, Path, Maps]]:
    """Give number, path and maps of the photos that can be read; note why others cannot."""
    readable: list[Numbered] = []

    def images() -> Iterator[Any]:
        for number, path in photos:
            bar.update()
            try:
                image = read_image(path)
                check_aspect(path, image)
            except ImageError as error:
                skipped[str(path)] = str(error)
                continue
            readable.append((number, path))
            yield image

    for i, maps in enumerate(rows.over(images())):
        yield *readable[i], maps


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
    features, place = plain.patches()
    with torch.no_grad():
        projected = head(features[None, None])[0, 0]
    return linear, NearestPlaces.of(projected, place)


class _Probes:
    """What the photos that fit give a row's two probes."""

    def __init__(self, seed: int) -> None:
        self.seed, self.moments = seed, Moments()
        self.drawn: dict[int, tuple[Tensor, Tensor]] = {}  # of a photo: features and places of some patches

    def add(self, number: int, fmap: Tensor) -> None:
        self.moments.add(fmap)
        drawn = _drawn(fmap, self.seed, number)
        self.drawn[number] = fmap.flatten(0, 1)[drawn], places(*fmap.shape[:2])[drawn]

    def joined(self, team: Team) -> _Probes:
        """Join what the photos of all processes give."""
        whole = _Probes(self.seed)
        whole.moments = Moments.joined(team.gather({team.rank: self.moments}).values())
        whole.drawn = team.gather(self.drawn)
        return whole

    def patches(self) -> tuple[Tensor, Tensor]:
        """Give the features [M, C] and the places [M, 4] of the patches that were drawn."""
        features, place = (torch.cat(parts) for parts in zip(*self.drawn.values(), strict=True))
        return features, place

    def fitted(self) -> tuple[LinearPlaces, NearestPlaces]:
        return LinearPlaces.fit(self.moments), NearestPlaces.of(*self.patches())


def _drawn(fmap: Tensor, seed: int, number: int) -> Tensor:
    """Draw patches of the map of a photo, whatever the other photos are."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randperm(fmap.shape[0] * fmap.shape[1], generator=generator)[:PATCHES]


@dataclass
class _Row:
    """What a row's map of a photo shows."""

    linear: tuple[Tensor, Tensor]  # squared errors and squares, [4] each
    nearest: tuple[Tensor, Tensor]
    values: dict[str, float]  # by the measure's name


@dataclass
class _Photo:
    """What a test photo shows of every row."""

    path: Path
    rows: dict[str, _Row]


class _Judge:
    """Judges the maps of test photos by what the others have fitted; those below a number are judged by the MIC too."""

    def __init__(
        self, rows: Rows, fits: dict[str, tuple[LinearPlaces, NearestPlaces]], seed: int, mic_below: int
    ) -> None:
        self.fits, self.seed, self.mic_below = fits, seed, mic_below
        self.carriers = [name for name in rows.names if rows.shares_positions(name)]

    def judged(self, number: int, path: Path, maps: Maps) -> _Photo:
        """Judge the maps of a photo."""
        drawn = _drawn(maps.rows[PLAIN], self.seed, number)
        found = {}
        for name, fmap in maps.rows.items():
            (linear, nearest), place = self.fits[name], places(*fmap.shape[:2])
            norms = fmap.norm(dim=-1)
            found[name] = _Row(
                linear=errors_of(linear.read(fmap), place),
                nearest=errors_of(nearest.read(fmap.flatten(0, 1)[drawn]), place[drawn]),
                values={OUTLIERS.name: float((norms > OUTLIER * norms.median()).float().mean())},
            )
            if number < self.mic_below:
                found[name].values[MIC.name] = float(largest_coefficients(fmap).mean())
        return _Photo(path, found)

    def compare(self, photo: _Photo, before: Maps, planted: Maps) -> None:
        """Compare the maps of a photo in the model that carries an artifact with those before."""
        clean = before.rows
        for name in self.carriers:
            fmap, values = planted.rows[name], photo.rows[name].values
            values[LEFT.name] = artifact_left(fmap, clean[name], planted.rows[PLAIN], clean[PLAIN])
            values[DISTANCE.name] = distance_to_truth(fmap, clean[PLAIN])


def _report(rows: Rows, photos: Sequence[_Photo], settings: dict[str, Any], skipped: dict[str, str]) -> Report:
    by_row = {name: [photo.rows[name] for photo in photos] for name in rows.names}
    return Report(
        task="artifacts",
        over="photos",
        count=len(photos),
        measures=MEASURES,
        figures={name: _figures(of) for name, of in by_row.items()},
        settings=settings,
        each={LEAKAGE.name: {name: [_leakage(*photo.linear) for photo in of] for name, of in by_row.items()}},
        names=[str(photo.path) for photo in photos],
        skipped=skipped,
    )


def _figures(photos: Sequence[_Row]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for all_of, each, sums in (
        (LEAKAGE, LINEAR, [photo.linear for photo in photos]),
        (NEAREST, NEIGHBORS, [photo.nearest for photo in photos]),
    ):
        r2 = r2_over(sums)
        found |= {measure.name: estimate for measure, estimate in zip(each, r2, strict=True)}
        found[all_of.name] = mean_r2(r2)
    for measure in (MIC, OUTLIERS, LEFT, DISTANCE):
        values = [photo.values[measure.name] for photo in photos if measure.name in photo.values]
        if values:
            found[measure.name] = mean_over(torch.tensor(values))
    return {measure.name: found[measure.name] for measure in MEASURES if measure.name in found}


def _leakage(errors: Tensor, squares: Tensor) -> float:
    """Give the mean R2 of a photo."""
    return float((1 - errors / squares).clamp(min=0).mean())
