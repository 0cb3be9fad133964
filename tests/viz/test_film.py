"""Films: colors that hold for all frames, and the part of the features that stands still, planted and found again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dvt_timm import viz
from dvt_timm.viz import film

PHOTO = np.full((40, 60, 3), (200, 10, 60), np.uint8)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def share_of(maps: list[NDArray[np.float64]]) -> float:
    share = viz.LockedShare(len(maps))
    for each in maps:
        share.add(each)
    return share.share


def test_a_planted_share_is_found() -> None:
    artifact, content = noise(5, 6, 16), [2 * noise(5, 6, 16, seed=seed) for seed in range(1, 41)]
    assert share_of([each + artifact for each in content]) == pytest.approx(1 / (1 + 4), abs=0.02)
    assert share_of(content) < 0.02
    assert share_of([3 * each + noise(16) for each in [c + artifact for c in content]]) == pytest.approx(0.2, abs=0.02)


def test_the_share_in_closed_form() -> None:
    artifact, content = noise(4, 5, 8), noise(4, 5, 8, seed=1)
    power = [sum((np.diff(each, axis=axis) ** 2).sum() for axis in (0, 1)) for each in (artifact, content)]
    swinging = [artifact + sign * content for sign in (1, -1, 1, -1)]  # means over halves are the artifact
    assert share_of(swinging) == pytest.approx(power[0] / (power[0] + power[1]))


def test_what_stands_still_is_locked_and_a_scene_that_moves_is_not() -> None:
    scene = noise(6, 40, 8)
    assert share_of([scene[:, :6]] * 7) == pytest.approx(1)
    assert share_of([scene[:, 3 * i : 3 * i + 6] for i in range(11)]) < 0.1
    layout = np.linspace(0, 9, 6)[:, None, None] * noise(8)  # sky above, ground below
    moving = [scene[:, 3 * i : 3 * i + 6] for i in range(11)]
    assert share_of([each + layout for each in moving]) > share_of(moving)
    assert share_of([each + each.mean() for each in moving]) == pytest.approx(share_of(moving))


@pytest.mark.parametrize(
    ("maps", "share"), [([noise(3, 4, 8)], np.nan), ([np.ones((3, 4, 8))] * 3, 0), ([noise(1, 1, 8)] * 2, 0)]
)
def test_short_and_flat_films(maps: list[NDArray[np.float64]], share: float) -> None:
    assert share_of(maps) == pytest.approx(share, nan_ok=True)


def test_frames_that_contradict_each_other_share_nothing() -> None:
    assert share_of([noise(3, 4, 8), -noise(3, 4, 8)]) == 0


def test_a_share_refuses() -> None:
    share = viz.LockedShare(2)
    share.add(noise(3, 4, 8))
    with pytest.raises(ValueError, match="2 maps were to be added, 1 were"):
        _ = share.share
    with pytest.raises(ValueError, match="one shape"):
        share.add(noise(4, 4, 8))
    with pytest.raises(ValueError, match="NaN"):
        share.add(np.full((3, 4, 8), np.nan))


def test_a_feature_has_one_color_in_all_frames() -> None:
    raw = [noise(4, 6, 8, seed=seed) for seed in range(3)]
    denoised = [0.5 * each + 3 for each in raw]
    colors = viz.FilmColors.of(raw[:2], denoised[:2])
    new = raw[2].copy()
    new[0, 0] = raw[0][3, 5]
    first, last = colors.tiles(raw[0], denoised[0]), colors.tiles(new, 0.5 * new + 3)
    assert first.shape == (3, 4, 6, 3)
    np.testing.assert_array_equal(last[:, 0, 0], first[:, 3, 5])
    np.testing.assert_allclose(first[0].astype(int), first[1].astype(int), atol=1)  # each kind has its own scale
    with pytest.raises(ValueError, match="share one grid"):
        viz.FilmColors.of([raw[0], raw[1][:3]], denoised[:2])


def test_a_frame_has_the_picture_its_tiles_and_their_labels() -> None:
    tiles = np.zeros((3, 4, 6, 3), np.uint8)
    tiles[0, ..., 1] = tiles[1, ..., 2] = 255
    frame = viz.film_frame(PHOTO, tiles, ["frame", "raw", "denoised", "removed"], "of a ViT")
    areas = [(frame == color).all(axis=2).sum() for color in ((200, 10, 60), (0, 255, 0), (0, 0, 255))]
    assert areas[0] == areas[1] == areas[2] > 300 * 200
    other = viz.film_frame(PHOTO, tiles, ["frame", "raw 3 %", "denoised", "removed"], "of a ViT")
    assert other.shape == frame.shape
    assert (other != frame).any()


def test_colors_are_found_from_some_of_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = [noise(10, 12, 8, seed=seed) * [9, 5, 3, *5 * [0.1]] for seed in range(4)]
    whole = viz.FilmColors.of(raw, raw).tiles(raw[0], raw[0])
    monkeypatch.setattr(film, "MOST_TOKENS", 240)
    half = viz.FilmColors.of(raw, raw).tiles(raw[0], raw[0])
    assert (half != whole).any()
    assert np.abs(half[0].astype(int) - whole[0]).mean() < 15
