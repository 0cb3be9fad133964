"""What varies on a featureless ground is measured, and nothing near the object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import photo
from torch import Tensor

from dvt_timm.evaluate import backdrops, far_patches, on_backdrop

MASK = np.zeros((60, 80), dtype=bool)
MASK[20:30, 10:20] = True
PHOTOS = [photo(seed).resize((80, 60)) for seed in range(3)]


def test_an_object_on_a_ground() -> None:
    image = PHOTOS[0]
    plain, noisy = (np.asarray(on_backdrop(image, MASK, ground, seed=1), dtype=float) for ground in ("plain", "noise"))
    for pasted in (plain, noisy):
        assert (pasted[MASK] == np.asarray(image)[MASK]).all()
    assert plain[~MASK].std(axis=0).max() == 0
    assert noisy[~MASK].std(axis=0) == pytest.approx(8, rel=0.1)
    assert (plain == np.asarray(on_backdrop(image, MASK, seed=1))).all()
    assert (plain[0, 0] != np.asarray(on_backdrop(image, MASK, seed=2))[0, 0]).any()
    with pytest.raises(ValueError, match="ground must be one of"):
        on_backdrop(image, MASK, "sand")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the mask is \[80, 60\], the image \[60, 80\]"):
        on_backdrop(image, MASK.T)


def test_far_patches() -> None:
    far = far_patches(MASK, (6, 8))  # the object fills patch (2, 1)
    expected = torch.ones(6, 8, dtype=torch.bool)
    expected[:5, :4] = False
    assert torch.equal(far, expected)
    assert (~far_patches(MASK, (6, 8), patches=1)).sum() == 1


def test_variance_over_that_of_photos() -> None:
    """Planted: maps of 1, 0 and noise of a known spread on the ground, whatever they are near the object."""
    generator = torch.Generator().manual_seed(0)

    def raw(_: Any, photos: Any) -> list[Tensor]:
        return [2 * torch.randn(30, 40, 5, generator=generator) for _ in photos]

    def flat(_: Any, photos: Any) -> list[Tensor]:
        maps = [torch.ones(30, 40, 5) for _ in photos]
        for fmap in maps:
            fmap[~far_patches(MASK, (30, 40))] = 1000
        return maps

    results = backdrops(None, PHOTOS, [MASK] * 3, {"flat": flat}, raw=raw)
    assert list(results) == ["raw", "flat"]
    assert results["raw"].value == pytest.approx(1, rel=0.1)
    assert results["flat"].value == 0


def test_a_method_has_a_name_of_its_own() -> None:
    with pytest.raises(ValueError, match='"raw" is the name'):
        backdrops(None, PHOTOS, [MASK] * 3, {"raw": lambda *_: []})


def test_too_large_an_object() -> None:
    maps = [torch.zeros(6, 8, 2)] * 3
    with pytest.raises(ValueError, match="photo 1 has 0 patches 3 and more away from its object"):
        backdrops(None, PHOTOS, [MASK, ~MASK, MASK], {}, raw=lambda *_: maps)
