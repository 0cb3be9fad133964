"""The authors' figures stand beside what they were measured of: the last block of a model with their weights."""

from __future__ import annotations

from helpers import FAMILIES, VIT, create

from dvt_timm.evaluate import Rows
from dvt_timm.evaluate.published import published_of


def test_figures_are_those_of_the_last_block() -> None:
    model = create(VIT)
    expected = {"plain": 81.78, "denoised": 82.78}
    assert published_of(Rows(model), "voc_miou") == expected
    assert published_of(Rows(model, layer=2), "voc_miou") == expected
    assert published_of(Rows(model, layer=0), "voc_miou") == {}
    assert published_of(Rows(create(FAMILIES[VIT], dynamic_img_size=True)), "nyu_rmse") == {"plain": 0.434}
