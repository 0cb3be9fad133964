"""The schedule of learning rates that the authors' scripts share."""

from __future__ import annotations

import math


def warmed_up_cosine(step: int, num_steps: int, warm_up: int, peak: float, floor: float) -> float:
    """Give a rate that rises linearly from 0 to `peak` over `warm_up` steps, then falls in half a cosine to `floor`."""
    if step < warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / max(num_steps - warm_up, 1)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
