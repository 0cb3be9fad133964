"""How much of a patch's position can be read from the maps of a page's photos, in one pass over them."""

from __future__ import annotations

from torch import Tensor

from ..evaluate.leakage import LinearPlaces, errors_of, mean_r2, r2_over
from ..projection import Moments, places

FEWEST = 8  # photos


class Leakage:
    """Position leakage of a row: the first two thirds of the photos fit the probe, the others test it.

    Args:
        count: of the photos that are expected.
    """

    def __init__(self, count: int) -> None:
        self._is_measured, self._left = count >= FEWEST, count * 2 // 3
        self._moments = Moments()
        self._probe: LinearPlaces | None = None
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def add(self, fmap: Tensor) -> None:  # [h, w, C]
        """See the map of the next photo."""
        self._count += 1
        if not self._is_measured:
            return
        if self._left > 0:
            self._left -= 1
            self._moments.add(fmap)
            return
        self._probe = self._probe or LinearPlaces.fit(self._moments)
        self._sums.append(errors_of(self._probe.read(fmap), places(fmap.shape[0], fmap.shape[1])))

    def value(self) -> float | None:
        """Give the mean R2 of the four targets, each at least 0; None of too few photos."""
        if self._count < FEWEST or not self._sums:
            return None
        return float(mean_r2(r2_over(self._sums)).value)
