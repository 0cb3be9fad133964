"""Directions as components of a byte each: cosines stay near the exact ones, within a photo and between two."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from exploring import maps
from helpers import DEMO, ROOT
from PIL import Image

import dvt_timm
from dvt_timm.explore.encoding import (
    Components,
    cosines_between,
    cosines_within,
    directions,
    encode,
    errors,
    errors_within,
    link,
    principal_axes,
    second_moment,
)
from dvt_timm.viz.arrays import Floats

TOLERANCE = 0.02


def encoded(patches: list[Floats], count: int = 64) -> tuple[list[Components], Floats]:
    """Directions of several maps, encoded, and the dimensions that they share."""
    moments = sum(second_moment(each) for each in patches)
    components = [encode(each, moments / len(patches), count) for each in patches]
    return components, principal_axes(moments, 128)


def test_directions_are_of_length_1_around_the_mean() -> None:
    fmap, _ = maps(0)
    patches = directions(fmap)
    centered = fmap - fmap.mean(axis=(0, 1))
    assert patches.shape == (9 * 12, 96)
    np.testing.assert_allclose(patches[13], centered[1, 1] / np.linalg.norm(centered[1, 1]))


def test_a_map_of_one_feature_has_no_directions() -> None:
    patches = directions(np.ones((2, 3, 64)))
    components = encode(patches, second_moment(patches), 32)
    assert not components.values.any()
    assert not cosines_within(components.values, patches).any()


def test_the_first_axis_explains_most_and_its_sign_is_known() -> None:
    axes = principal_axes(np.diag([1.0, 9.0, 4.0]), 2)
    np.testing.assert_allclose(axes, [[0, 0], [1, 0], [0, 1]], atol=1e-12)


def test_what_fits_into_the_components_is_kept_but_for_rounding() -> None:
    random = np.random.default_rng(0)
    patches = [directions(random.normal(size=(8, 9, 20)) @ random.normal(size=(20, 200))) for _ in range(2)]
    (one, other), shared = encoded(patches, 32)
    assert errors(cosines_within(one.values, patches[0]), patches[0] @ patches[0].T)[1] < 0.015
    found = cosines_between(one, link(one, shared), other, link(other, shared))
    assert errors(found, patches[0] @ patches[1].T)[1] < 0.015


def test_no_more_components_than_channels() -> None:
    patches = directions(np.random.default_rng(0).normal(size=(3, 3, 40)))
    assert encode(patches, second_moment(patches), 64).codes.shape == (9, 40)


def test_errors_of_many_patches_are_measured_on_some() -> None:
    patches = directions(np.random.default_rng(0).normal(size=(70, 70, 40)))  # 4,900: their cosines would take 190 MB
    usual, worst = errors_within(encode(patches, second_moment(patches), 32), patches)
    assert 0 < usual < worst < 1


def test_errors_are_the_usual_and_the_largest() -> None:
    exact = np.zeros(10_000)
    found = exact.copy()
    found[:11] = 0.5
    assert errors(found, exact) == (0.5, 0.5)
    found[9:11] = 0
    assert errors(found, exact) == (0.0, 0.5)


@pytest.mark.parametrize("size", [224, pytest.param(518, marks=pytest.mark.slow)])
def test_similarities_of_photos_are_within_two_hundredths(size: int) -> None:
    """999 of 1,000 are, with the 64 components that are the default."""
    model = timm.create_model(DEMO, pretrained=True).eval()
    photos = [Image.open(ROOT / f"examples/data/{name}.jpg") for name in ("cat", "puppy")]
    with torch.inference_mode():
        seen = [dvt_timm.feature_maps(model, dvt_timm.preprocess(model, photo, size)) for photo in photos]
    for row in ("raw", "denoised"):
        patches = [directions(getattr(each, row)[0].permute(1, 2, 0).double().numpy()) for each in seen]
        components, shared = encoded(patches)
        for each, exact in zip(components, patches, strict=True):
            assert errors(cosines_within(each.values, exact), exact @ exact.T)[0] < TOLERANCE
        links = [link(each, shared) for each in components]
        found = cosines_between(components[0], links[0], components[1], links[1])
        usual, worst = errors(found, patches[0] @ patches[1].T)
        assert usual < TOLERANCE
        assert worst < 3 * TOLERANCE
