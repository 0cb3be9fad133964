"""The learning rate rises in a line and falls in half a cosine."""

import pytest

from dvt_timm._util.schedule import warmed_up_cosine


def test_warmed_up_cosine() -> None:
    rates = [warmed_up_cosine(step, 100, 20, peak=1.0, floor=0.2) for step in (0, 10, 20, 60, 100)]
    assert rates == pytest.approx([0, 0.5, 1.0, 0.6, 0.2])
    assert warmed_up_cosine(0, 0, 0, peak=1.0, floor=0.2) == 1.0
