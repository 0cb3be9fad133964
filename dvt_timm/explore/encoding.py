"""The directions of a map's patches as a few principal components of a byte each: what the page computes cosines from.

A direction is a patch's feature, the mean of its map taken off, of length 1: the cosine of two patches is the scalar
product of their directions. Each map has components of its own, which keep the cosines within a photo near the exact
ones; a link, their axes in dimensions that all photos share, gives those between photos.

Letters: N patches of a map, C channels, K components, M shared dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..viz.arrays import Floats, unit

Codes = NDArray[np.int8]

MOST = 127  # of a code
QUANTILE = 0.999  # of the errors that are stated


@dataclass(frozen=True)
class Components:
    """The directions of a map, encoded.

    Attributes:
        codes: [N, K] in -127..127; times `steps` they are the components.
        steps: [K].
        axes: [C, K], orthonormal; the first one explains most.
    """

    codes: Codes
    steps: Floats
    axes: Floats

    @cached_property
    def values(self) -> Floats:  # [N, K]
        """The components as the page reads them."""
        return self.codes * self.steps


@dataclass(frozen=True)
class Link:
    """The axes of a map's components in the shared dimensions, encoded: `codes * step` is [M, K]."""

    codes: Codes
    step: float

    @property
    def values(self) -> Floats:  # [M, K]
        """The axes as the page reads them."""
        return self.codes * self.step


def directions(fmap: Floats) -> Floats:  # [h, w, C] -> [N, C]
    """Take a map's mean off, and give its patches length 1; a patch that equals the mean stays 0."""
    tokens = fmap.reshape(-1, fmap.shape[2])
    return unit(tokens - tokens.mean(axis=0))


def principal_axes(second_moment: Floats, count: int) -> Floats:  # [C, C] -> [C, count]
    """Find orthonormal axes, those that explain most first; the largest entry of each is positive."""
    axes = np.linalg.eigh(second_moment)[1][:, : -count - 1 : -1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.asarray(axes * signs)


def encode(patches: Floats, count: int) -> Components:  # patches: [N, C]
    """Encode directions as their first components, at most C of them."""
    axes = principal_axes(patches.T @ patches, min(count, patches.shape[1]))
    components = patches @ axes
    steps = np.maximum(np.abs(components).max(axis=0), 1e-12) / MOST
    return Components(_codes(components / steps), steps, axes)


def link(components: Components, shared: Floats) -> Link:
    """Encode the axes of a map's components in dimensions [C, M] that all photos share."""
    axes = shared.T @ components.axes
    step = max(float(np.abs(axes).max()), 1e-12) / MOST
    return Link(_codes(axes / step), step)


def cosines_within(components: Components, exact: Floats) -> Floats:  # exact: [N, C] -> [N, N]
    """Compute the cosines of a map's patches as the page does, which knows that of a patch with itself."""
    cosines: Floats = components.values @ components.values.T
    np.fill_diagonal(cosines, exact.any(axis=1))
    return cosines


def cosines_between(one: Components, of_one: Link, other: Components, of_other: Link) -> Floats:  # [N, N']
    """Compute the cosines of the patches of two maps as the page does."""
    return (one.values @ of_one.values.T) @ (of_other.values @ other.values.T)


def errors(found: Floats, exact: Floats) -> tuple[float, float]:
    """Compare cosines with the exact ones: the error that 999 of 1,000 stay below, and the largest."""
    differences = np.abs(found - exact)
    return float(np.quantile(differences, QUANTILE)), float(differences.max())


def _codes(values: Floats) -> Codes:
    return values.round().astype(np.int8)
