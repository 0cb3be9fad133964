"""Clusters tokens by direction, and gives alike clusters one number: k-means and matching, without scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .arrays import FeatureMap, Floats, as_maps, split, tokens_of, unit

RESTARTS, ITERATIONS = 4, 100


def kmeans_labels(maps: Sequence[FeatureMap], num_clusters: int = 6, seed: int = 0) -> list[NDArray[np.int64]]:
    """Cluster the tokens of all maps by direction: Lloyd's k-means on unit tokens, k-means++ starts.

    Args:
        maps: feature maps of one model; grids may differ.
        num_clusters: 1..N, where N is the number of patches in all maps.
        seed: decides the starts; the same arguments give the same labels.

    Returns:
        For each map, labels [h_i, w_i] in 0..num_clusters-1, 0 for the largest cluster.

    Raises:
        ValueError: if there is no map, or a map is not finite or of another shape or number of channels; if the number
            of clusters is not 1..N.
    """
    return cluster_labels(as_maps(maps), num_clusters, seed)


def cluster_labels(arrays: list[Floats], num_clusters: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Do what `kmeans_labels` does, with maps [h_i, w_i, C] that were read; raise ValueError as it does."""
    tokens = unit(tokens_of(arrays))
    if not 1 <= num_clusters <= len(tokens):
        raise ValueError(f"num_clusters must be 1..{len(tokens)} (the number of patches), got {num_clusters}")
    random = np.random.default_rng(seed)
    runs = [_lloyd(tokens, _plus_plus(tokens, num_clusters, random)) for _ in range(RESTARTS)]
    labels = min(runs, key=lambda run: run[1])[0]
    order = np.argsort(-np.bincount(labels, minlength=num_clusters), kind="stable")
    return split(np.argsort(order)[labels], arrays)


def matched_labels(labels: NDArray[np.int64], reference: NDArray[np.int64], num_clusters: int) -> NDArray[np.int64]:
    """Renumber clusters such that as many patches as can be have the label that they have in a reference.

    Args:
        labels: [h, w] in 0..num_clusters-1.
        reference: [h, w] in 0..num_clusters-1.
        num_clusters: of both.

    Returns:
        [h, w], the same clusters under other numbers in 0..num_clusters-1.

    Raises:
        ValueError: if the shapes differ, or a label is none of these.
    """
    if labels.shape != reference.shape:
        raise ValueError(
            f"labels must have one shape, got {labels.shape} and {reference.shape}; match maps of one image"
        )
    both = np.stack([labels, reference])
    if both.min() < 0 or both.max() >= num_clusters:
        raise ValueError(f"labels must be 0..{num_clusters - 1}, got {both.min()}..{both.max()}")
    shared = np.zeros((num_clusters, num_clusters))
    np.add.at(shared, (labels, reference), 1)
    return best_assignment(shared)[labels]


def best_assignment(gain: Floats) -> NDArray[np.int64]:  # [k, k] -> [k]
    """Give every row a column of its own such that the sum of what they gain is largest.

    The Hungarian method: rows come in one by one, each by the cheapest path of columns that change their rows (Kuhn,
    1955, with the potentials of Jonker and Volgenant); O(k^3).
    """
    size = len(gain)
    cost, prices = -gain, np.zeros(size)  # a column's price, paid by its row
    row_of, rents = np.full(size, -1), np.zeros(size)  # of each column; of each row
    for new in range(size):
        shortest, previous = np.full(size, np.inf), np.full(size, -1)
        done = np.zeros(size, dtype=bool)
        row, column, length = new, -1, 0.0
        while row >= 0:
            reached = length + cost[row] - rents[row] - prices
            closer = ~done & (reached < shortest)
            shortest[closer], previous[closer] = reached[closer], column
            column = int(np.where(done, np.inf, shortest).argmin())
            done[column], length, row = True, shortest[column], row_of[column]
        rents[new] += length
        passed = done & (row_of >= 0)
        rents[row_of[passed]] += length - shortest[passed]
        prices[done] -= length - shortest[done]
        while column >= 0:
            row_of[column] = new if previous[column] < 0 else row_of[previous[column]]
            column = int(previous[column])
    return np.argsort(row_of)


def _plus_plus(tokens: Floats, num_clusters: int, random: np.random.Generator) -> Floats:  # [N, C] -> [k, C]
    """Draw each next center by its squared distance to the nearest one so far."""
    centers = [tokens[random.integers(len(tokens))]]
    nearest = np.full(len(tokens), np.inf)
    while len(centers) < num_clusters:
        nearest = np.minimum(nearest, ((tokens - centers[-1]) ** 2).sum(axis=1))
        total = nearest.sum()
        centers.append(tokens[random.choice(len(tokens), p=nearest / total if total > 0 else None)])
    return np.stack(centers)


def _lloyd(tokens: Floats, centers: Floats) -> tuple[NDArray[np.intp], float]:  # [N, C], [k, C] -> [N], inertia
    """Assign and average until nothing moves; a center without tokens stays where it is."""
    labels = np.full(len(tokens), -1)
    for _ in range(ITERATIONS):
        distances = (centers**2).sum(axis=1) - 2 * tokens @ centers.T  # [N, k], squared, less the token's own norm
        previous, labels = labels, distances.argmin(axis=1)
        if np.array_equal(labels, previous):
            break
        members = np.eye(len(centers))[labels]  # [N, k]
        counts = members.sum(axis=0)[:, None]
        centers = np.where(counts > 0, members.T @ tokens / np.maximum(counts, 1), centers)
    return labels, float(distances.min(axis=1).sum())
