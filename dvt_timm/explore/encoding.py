"""The directions of a map's patches as a few principal components of a byte each: what the page computes cosines from.

A direction is a patch's feature, the mean of its map taken off, of length 1: the cosine of two patches is the scalar
product of their directions. Each map has components of its own, which keep the cosines within a photo near the exact
ones; a link, their axes in dimensions that all photos share, gives those between photos.

Letters: N patches of a map, C channels, K components, M shared dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..viz.arrays import Floats, centered, unit

Codes = NDArray[np.int8]

MOST = 127  # of a code
OTHERS = 0.1  # weight of all photos beside the map's own: a map's axes are a little theirs, too
QUANTILE = 0.999  # of the errors that are stated
MEASURED = 2048  # patches of a map, at most, whose cosines are compared with the exact ones


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

    @property
    def values(self) -> Floats:  # [N, K]
        """The components as the page reads them."""
        return self.codes * self.steps


@dataclass(frozen=True)
class Link:
    """The axes of a map's components in the shared dimensions, encoded: `codes * steps` is [M, K]."""

    codes: Codes
    steps: Floats  # [K]

    @property
    def values(self) -> Floats:  # [M, K]
        """The axes as the page reads them."""
        return self.codes * self.steps


def directions(fmap: Floats) -> Floats:  # [h, w, C] -> [N, C]
    """Take a map's mean off, and give its patches length 1; a patch that equals the mean stays 0."""
    return unit(centered(fmap).reshape(-1, fmap.shape[2]))


def principal_axes(moment: Floats, count: int) -> Floats:  # [C, C] -> [C, count]
    """Find orthonormal axes, those that explain most first; the largest entry of each is positive."""
    axes: Floats = np.linalg.eigh(moment)[1][:, : -count - 1 : -1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.asarray(axes * signs)


def second_moment(patches: Floats) -> Floats:  # [N, C] -> [C, C]
    """Average the products of the channels of directions."""
    moment: Floats = patches.T @ patches / len(patches)
    return moment


def encode(patches: Floats, of_all: Floats, count: int) -> Components:
    """Encode directions as their first components, at most C of them.

    Args:
        patches: [N, C].
        of_all: [C, C], the second moment of the directions of all photos.
        count: of components.
    """
    axes = principal_axes(second_moment(patches) + OTHERS * of_all, min(count, patches.shape[1]))
    components = patches @ axes
    steps = _steps(components)
    return Components(_codes(components / steps), steps, axes)


def link(components: Components, shared: Floats) -> Link:
    """Encode the axes of a map's components in dimensions [C, M] that all photos share."""
    axes = shared.T @ components.axes
    steps = _steps(axes)
    return Link(_codes(axes / steps), steps)


def cosines_within(values: Floats, exact: Floats) -> Floats:  # [n, K], [n, C] -> [n, n]
    """Compute the cosines of patches of a map as the page does, which knows that of a patch with itself."""
    cosines: Floats = values @ values.T
    np.fill_diagonal(cosines, exact.any(axis=1))
    return cosines


def errors_within(components: Components, exact: Floats) -> tuple[float, float]:  # exact: [N, C]
    """Measure the errors of the cosines within a map, of a sample of its patches if it has many."""
    drawn = np.random.default_rng(0).permutation(len(exact))[:MEASURED]
    patches = exact[drawn]
    return errors(cosines_within(components.values[drawn], patches), patches @ patches.T)


def cosines_between(one: Components, of_one: Link, other: Components, of_other: Link) -> Floats:  # [N, N']
    """Compute the cosines of the patches of two maps as the page does."""
    return (one.values @ of_one.values.T) @ (of_other.values @ other.values.T)


def errors(found: Floats, exact: Floats) -> tuple[float, float]:
    """Compare cosines with the exact ones: the error that 999 of 1,000 stay below, and the largest."""
    differences = np.abs(found - exact)
    return float(np.quantile(differences, QUANTILE)), float(differences.max())


def _steps(columns: Floats) -> Floats:  # [n, K] -> [K]
    steps: Floats = np.maximum(np.abs(columns).max(axis=0), 1e-12) / MOST
    return steps


def _codes(values: Floats) -> Codes:
    return values.round().astype(np.int8)
