"""Artifacts on photos: the probes are the measures', the projection is known without a pass, a plaid is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAMILIES, VIT, create, photos, random_head
from torch import Tensor

from dvt_timm._util.images import read_image
from dvt_timm.evaluate import PositionProjection, artifact_left, information_coefficients, plant, position_leakage
from dvt_timm.evaluate.leakage import NearestPlaces
from dvt_timm.evaluate.rows import Rows
from dvt_timm.evaluate.tasks import artifacts as module
from dvt_timm.evaluate.tasks.artifacts import artifacts
from dvt_timm.projection import places


def rows_of(**options: Any) -> Rows:
    return Rows(create(FAMILIES[VIT], dynamic_img_size=True, img_size=70), {"head": random_head()}, **options)


def split(paths: list[Path], seed: int = 0) -> tuple[list[Path], list[Path]]:
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [paths[i] for i in order]
    return drawn[: len(paths) * 2 // 3], drawn[len(paths) * 2 // 3 :]


def maps_of(rows: Rows, paths: list[Path], name: str) -> list[Tensor]:
    return [maps.rows[name] for maps in rows.over(map(read_image, paths))]


def test_leakage_is_that_of_the_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATCHES", 25)  # all of them: no draw
    paths = photos(tmp_path, 9)
    found = artifacts(rows_of(), paths, projection=5, mic_photos=2)
    assert list(found.figures) == ["plain", "head", "projection"]
    assert found.count == 3
    train, test = split(paths)
    assert found.names == list(map(str, test))
    rows = rows_of()
    rows.add({"projection": PositionProjection.fit(maps_of(rows, train, "plain"), 5)})
    for name in ("plain", "head", "projection"):
        fits, tests = maps_of(rows, train, name), maps_of(rows, test, name)
        r2 = list(position_leakage(fits, tests).values())
        figures = found.figures[name]
        for target, expected in zip(("x", "y", "x distance", "y distance"), r2, strict=True):
            assert figures[f"leakage {target}"].value == pytest.approx(expected, abs=2e-3)
        mean = sum(max(value, 0) for value in r2) / 4
        assert figures["position leakage"].value == pytest.approx(mean, abs=2e-3)
        mic = [float(information_coefficients(fmap).amax(dim=0).mean()) for fmap in tests[:2]]
        assert figures["MIC"].value == pytest.approx(sum(mic) / 2, abs=0.02)
        nearest = NearestPlaces.of(torch.cat([f.flatten(0, 1) for f in fits]), places(5, 5).repeat(len(fits), 1))
        read, truth = nearest.read(torch.cat([f.flatten(0, 1) for f in tests])), places(5, 5).repeat(3, 1)
        error = (read - truth).square().sum(dim=0) / (truth - truth.mean(dim=0)).square().sum(dim=0)
        assert figures["leakage x, k-NN"].value == pytest.approx(float(1 - error[0]), abs=2e-3)
    assert found.measures[0].name == "position leakage"
    assert found.verdict("head").startswith("head: ")


def test_what_is_left_of_a_planted_artifact(tmp_path: Path) -> None:
    paths = photos(tmp_path, 9)
    other = create(FAMILIES[VIT], dynamic_img_size=True, img_size=70)
    rows = rows_of(others={"other": other})
    found = artifacts(rows, paths, projection=0, mic_photos=0)
    assert found.figures["plain"]["planted artifact left"].value == pytest.approx(1)
    assert "planted artifact left" not in found.figures["other"]  # nothing is planted in it
    _, test = split(paths)
    clean = {name: maps_of(rows_of(), test, name) for name in ("plain", "head")}
    with plant(rows.model):
        planted = {name: maps_of(rows, test, name) for name in ("plain", "head")}
    left = [
        artifact_left(*four)
        for four in zip(planted["head"], clean["head"], planted["plain"], clean["plain"], strict=True)
    ]
    assert found.figures["head"]["planted artifact left"].value == pytest.approx(sum(left) / 3, rel=0.02)


def test_outliers(tmp_path: Path) -> None:
    class Loud(torch.nn.Module):
        dim, source, config = 128, None, {}

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(5, 5, 1))
            self.scale.data[0, :4] = 30

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    rows = rows_of()
    rows.add({"loud": Loud()})  # type: ignore[dict-item]
    found = artifacts(rows, photos(tmp_path, 6), projection=0, mic_photos=0)
    assert found.figures["plain"]["outliers"].value == 0
    assert found.figures["loud"]["outliers"].value == pytest.approx(4 / 25)


def test_photos_that_cannot_be_read(tmp_path: Path) -> None:
    paths = photos(tmp_path, 9)
    train, test = split(paths)
    for path in (train[0], test[1]):
        path.write_text(f"no image {path}")
    found = artifacts(rows_of(), [*paths], projection=0, mic_photos=0)
    assert found.skipped.keys() == {str(train[0]), str(test[1])}
    assert found.count == 2
    assert found.names == [str(test[0]), str(test[2])]
    for count in (0, 3):
        with pytest.raises(
            ValueError, match=rf"of {count} photos {count * 2 // 3} can be read .* it takes 4 different ones"
        ):
            artifacts(rows_of(), photos(tmp_path, count, 20))


def test_copies_do_not_test_what_they_fitted(tmp_path: Path) -> None:
    paths = photos(tmp_path, 9)
    alone = artifacts(rows_of(), paths, mic_photos=0)
    copies = []
    for path in paths:
        copies.append(path.with_name(f"copy-{path.name}"))
        copies[-1].write_bytes(path.read_bytes())
    assert (
        artifacts(rows_of(), [*paths, *copies], mic_photos=0).figures["plain"].keys() == alone.figures["plain"].keys()
    )
    assert artifacts(rows_of(), [*paths, *copies], mic_photos=0).names == alone.names


def test_it_can_be_told_again(tmp_path: Path) -> None:
    paths = photos(tmp_path, 6)
    one, other = (artifacts(rows_of(), paths, mic_photos=0, seed=3).as_json() for _ in range(2))
    assert one == other
    assert one["names"] != artifacts(rows_of(), paths, mic_photos=0, seed=4).as_json()["names"]
