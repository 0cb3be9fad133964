"""Panels compare: a constant or a factor alone does not show, what was taken out does, and clusters keep colors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dvt_timm import viz
from dvt_timm.viz import compare
from dvt_timm.viz.panel import Column

IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def columns_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Column]]:
    """The columns of a panel by their title, and the patch that it marks."""

    def columns_of(features: Any, **options: Any) -> dict[str, Any]:
        drawn: dict[str, Any] = {}

        def note(image: Any, rows: Any, columns: list[Column], patch: Any = None, style: Any = None) -> Any:
            drawn.update({column.title: column for column in columns}, patch=patch)

        with monkeypatch.context() as context:
            context.setattr(compare, "draw_panel", note)
            viz.feature_panel(IMAGE, features, **options)
        return drawn

    return columns_of


def test_a_panel_has_a_row_per_map_on_white() -> None:
    one = viz.feature_panel(IMAGE, {"features": noise(4, 6, 8)})
    two = viz.feature_panel(IMAGE, {"raw": noise(4, 6, 8), "denoised": noise(4, 6, 8, seed=1)})
    assert one.dtype == two.dtype == np.uint8
    assert two.shape[1] > one.shape[1]  # what was removed has a column
    assert two.shape[0] > 1.5 * one.shape[0]
    for panel in (one, two):
        border = np.concatenate([panel[:8].ravel(), panel[-8:].ravel(), panel[:, :8].ravel(), panel[:, -8:].ravel()])
        assert (border == 255).all()


def test_patches_stay_sharp() -> None:
    features = noise(4, 6, 8)
    panel = viz.feature_panel(IMAGE, {"a": features, "b": features}, columns=["pca"])
    colors = {tuple(color) for color in (255 * viz.pca_rows([features])[0]).round().reshape(-1, 3)}
    drawn, counts = np.unique(panel.reshape(-1, 3), axis=0, return_counts=True)
    areas = [counts[(drawn == color).all(axis=1)].sum() for color in colors]
    assert min(areas) >= 2 * 40 * 40  # once per row, and every patch a full block of one color


def test_a_factor_and_a_constant_alone_change_nothing(columns_of: Any) -> None:
    features = noise(4, 6, 8)
    scaled, moved = ({"raw": features, "denoised": other} for other in (0.3 * features, features + 9 * noise(8)))
    for title in ("PCA", "clusters", "norm / median", "similarity"):
        np.testing.assert_array_equal(*columns_of(scaled)[title].tiles)
    for title in ("PCA", "similarity"):
        for one, other in zip(*(part.tiles for part in (columns_of(moved)[title], columns_of(scaled)[title]))):  # noqa: B905
            np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)


def test_colors_of_a_row_are_those_of_the_first_rows_axes(columns_of: Any) -> None:
    axes = np.linalg.qr(noise(16, 16))[0]
    raw = noise(8, 9, 16) * [9, 5, 3, *13 * [0.1]] @ axes
    other = noise(8, 9, 16, seed=1) * [0, 0, 0, 9, *12 * [0]] @ axes  # varies where the first row does not
    _, tile = columns_of({"raw": raw, "denoised": raw + other}, columns=["pca"])["PCA"].tiles
    alone = (255 * viz.pca_rows([raw])[0]).round()
    assert np.corrcoef(tile.ravel(), alone.ravel())[0, 1] > 0.9
    assert np.abs(np.corrcoef(viz.pca_rgb([raw + other])[0].ravel(), alone.ravel())[0, 1]) < 0.9


def test_clusters_keep_their_colors_from_row_to_row(columns_of: Any) -> None:
    directions = np.linalg.qr(noise(8, 3))[0].T  # [3, 8]
    labels = np.repeat([0, 1, 2], [12, 8, 4]).reshape(4, 6)
    changed = labels.copy()
    changed[labels == 0] = np.repeat([0, 2], [5, 7])  # the largest cluster is the smallest now
    rows = {"raw": directions[labels], "denoised": directions[changed]}
    column = columns_of(rows, num_clusters=3)["clusters"]
    first, second = column.tiles
    np.testing.assert_array_equal(second[labels == changed], first[labels == changed])
    assert (second[labels != changed] != first[labels != changed]).any(axis=1).all()
    assert column.notes == ["", "71 % of patches as above"]
    assert column.named


def test_four_axes_are_never_mistaken_for_another_layout(columns_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, denoised = (noise(1, 64, 72, 4, seed=seed) for seed in range(2))  # [1, C, h, w], h larger than w and C
    drawn = columns_of({"raw": raw, "denoised": denoised}, patch=(71, 3))
    tiles = [tile for title, column in drawn.items() if title != "patch" for tile in column.tiles]
    assert {tile.shape for tile in tiles} == {(72, 4, 3)}
    assert columns_of({"raw": raw, "denoised": denoised})["patch"] == viz.salient_patch([raw, denoised])
    parts: list[Column] = []
    monkeypatch.setattr(compare, "draw_panel", lambda image, rows, columns, style: parts.extend(columns))
    viz.decomposition_panel(IMAGE, raw, denoised, raw, denoised)
    assert {tile.shape for column in parts for tile in column.tiles} == {(72, 4, 3)}


def test_no_clusters_are_looked_for_unless_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def clusters(*args: Any) -> Any:
        raise AssertionError("k-means ran")

    monkeypatch.setattr(compare, "cluster_labels", clusters)
    rows = {"raw": noise(4, 6, 8), "denoised": noise(4, 6, 8, seed=1)}
    assert viz.feature_panel(IMAGE, rows, columns=["pca", "norm", "similarity", "removed"]).size
    with pytest.raises(AssertionError, match="k-means ran"):
        viz.feature_panel(IMAGE, rows)


def test_norms_are_those_of_their_row(columns_of: Any) -> None:
    features = np.linspace(1, 3, 24).reshape(4, 6, 1) * np.eye(8)[0]
    column = columns_of({"raw": features, "denoised": 10 * features})["norm / median"]
    assert column.notes == ["median 2", "median 20"]
    assert column.ends == ("0.50", "1.50")  # of norms from 1 to 3, over their median 2


def test_similarity_is_to_the_salient_patch_in_every_row(columns_of: Any) -> None:
    features = 0.1 * noise(4, 6, 8)
    features[1, 4] += 5
    drawn = columns_of({"raw": features, "denoised": features})
    assert drawn["patch"] == (1, 4)
    assert drawn["similarity"].marked
    assert columns_of({"raw": features}, patch=(0, 0))["patch"] == (0, 0)
    assert columns_of({"raw": features}, columns=["norm"])["patch"] is None  # nothing refers to it
    brightest = [tile.astype(int).sum(axis=2).argmax() for tile in drawn["similarity"].tiles]
    assert brightest == [1 * 6 + 4] * 2


def test_what_was_removed(columns_of: Any) -> None:
    denoised, artifact = noise(6, 9, 16), np.zeros((6, 9, 16))
    artifact[::2, :, 3] = 2.0
    column = columns_of({"raw": denoised + artifact, "denoised": denoised})["removed"]
    norm, colors = column.tiles
    np.testing.assert_array_equal(norm, np.broadcast_to(norm[0, 0], norm.shape))  # +1 and -1 about the mean
    assert (colors[::2] == colors[0, 0]).all()
    assert (colors[1::2] == colors[1, 0]).all()
    assert (colors[0, 0] != colors[1, 0]).any()
    assert column.notes[0] == "norm 1 to 1"
    raw = denoised + artifact
    share = 100 * 6 * 9 / ((raw - raw.mean(axis=(0, 1))) ** 2).sum()
    assert column.notes[1] == f"PCA, {share:.3g} % of variance"
    three = columns_of({"raw": raw, "target": denoised, "trained": raw})["removed"]
    assert len(three.tiles) == 3
    assert three.notes[2] == "PCA, 0 % of variance"


@pytest.mark.parametrize("features", [np.zeros((3, 4, 8)), np.ones((3, 4, 8)), np.ones((1, 1, 2))])
def test_constant_maps(features: Any) -> None:
    with np.errstate(all="raise"):
        assert viz.feature_panel(IMAGE, {"raw": features, "denoised": features}).size


def with_value(value: float) -> NDArray[np.float64]:
    features = noise(4, 6, 8)
    features[1, 2, 3] = value
    return features


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({}, {}, "no feature maps"),
        ({"raw": with_value(np.nan)}, {}, "1 of 24 patches hold NaN or Inf"),
        ({"raw": with_value(np.inf)}, {}, "NaN or Inf"),
        ({"raw": noise(4, 6, 8), "denoised": noise(4, 6, 9)}, {}, "same channels"),
        ({"raw": noise(4, 6, 8), "denoised": noise(4, 5, 8)}, {}, "share one grid"),
        ({"raw": noise(4, 6, 8)}, {"patch": (4, 0)}, r"patch \(4, 0\) is outside the 4 x 6 grid"),
        ({"raw": noise(4, 6, 8)}, {"patch": (0, -1)}, "outside"),
        ({"raw": noise(4, 6, 8)}, {"num_clusters": 0}, "num_clusters must be 1..24"),
        (
            {"raw": noise(4, 6, 8)},
            {"columns": ["pca", "norms"]},
            "must be some of pca, clusters.*got pca, norms",
        ),
        ({"raw": noise(4, 6, 8)}, {"columns": ["pca", "pca"]}, "each once"),
        ({"raw": noise(4, 6, 8)}, {"columns": []}, "got none"),
        ({"raw": noise(4, 6, 8)}, {"columns": ["removed"]}, "compares maps, and there is one"),
    ],
)
def test_a_panel_refuses(features: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        viz.feature_panel(IMAGE, features, **options)


def test_a_decomposition_shows_its_small_parts_in_scales_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    semantics, artifact, residual = noise(6, 9, 16), 0.1 * noise(6, 9, 16, seed=1), 0.01 * noise(6, 9, 16, seed=2)
    drawn: list[Column] = []
    with monkeypatch.context() as context:
        context.setattr(compare, "draw_panel", lambda image, rows, columns, style: drawn.extend(columns))
        viz.decomposition_panel(IMAGE, semantics + artifact + residual, semantics, artifact, residual)
        viz.decomposition_panel(IMAGE, semantics + 5 + artifact + residual, semantics + 5, artifact, residual)
    pca, norm, moved, _ = drawn
    for one, other in zip(pca.tiles, moved.tiles, strict=True):  # a constant has no color
        np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)
    for column in (pca, norm):
        assert all(np.ptp(tile) > 200 for tile in column.tiles)
    np.testing.assert_array_equal(pca.tiles[2], (255 * viz.pca_rows([artifact])[0]).round())
    assert pca.notes[0] == "100 % of raw's variance"
    raw = semantics + artifact + residual
    share = 100 * residual.var(axis=(0, 1)).sum() / raw.var(axis=(0, 1)).sum()
    assert pca.notes[3] == f"{share:.3g} % of raw's variance"


def test_a_decomposition_panel_refuses() -> None:
    features = noise(6, 9, 16)
    with pytest.raises(ValueError, match="must share one grid"):
        viz.decomposition_panel(IMAGE, features[:3], features, features, features)
    with pytest.raises(ValueError, match="uint8"):
        viz.decomposition_panel(IMAGE.astype(float), features, features, features, features)
    bare, said = (viz.decomposition_panel(IMAGE, *4 * [features], caption=caption) for caption in ("", "of a ViT"))
    assert said.shape[0] > bare.shape[0]
