"""The learning rate that the authors' scripts share."""

from __future__ import annotations

import math


def warmed_up_cosine(step: int, num_steps: int, warm_up: int, peak: float, floor: float) -> float:
    """Linear from 0 to `peak` over `warm_up` steps, then half a cosine to `floor` at `num_steps`."""
    if step < warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / max(num_steps - warm_up, 1)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
