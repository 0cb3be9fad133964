"""Training-free and linear probes on patch features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

CHUNK = 2048  # patches at a time
NEIGHBORS = 10
VOID = 255  # label of pixels and patches that have none
PIXELS = 8  # a side, of the labels that a patch is judged by
Classifier = Callable[[Tensor], Tensor]  # [M, C] -> [M] labels
EPOCHS, BATCH, RATE, DECAY = 10, 1024, 1e-2, 1e-4  # of the linear probe


def knn_probe(
    train: Tensor, labels: Tensor, test: Tensor, neighbors: int = NEIGHBORS, temperature: float | None = None
) -> Tensor:
    """Predict the label that the nearest training patches vote for.

    Args:
        train: [N, C], features of the training patches.
        labels: [N], theirs, from 0 on.
        test: [M, C].
        neighbors: how many patches vote.
        temperature: T of a vote's weight, exp(cosine / T); by default the cosine itself.

    Returns:
        [M] labels.
    """
    return fit_knn(train, labels, neighbors, temperature)(test)


def fit_knn(train: Tensor, labels: Tensor, neighbors: int = NEIGHBORS, temperature: float | None = None) -> Classifier:
    """Remember patches, for `knn_probe` of many tests."""
    keys, labels = normalize(train.float(), dim=1), labels.long()
    num_labels = int(labels.max()) + 1

    def predict(test: Tensor) -> Tensor:
        votes = []
        for queries in normalize(test.float(), dim=1).split(CHUNK):
            cosine, index = (queries @ keys.T).topk(min(neighbors, len(keys)), dim=1)
            weight = cosine if temperature is None else (cosine / temperature).softmax(dim=1)
            voted = torch.zeros(len(queries), num_labels, dtype=torch.bool, device=cosine.device)
            voted.scatter_(1, labels[index], True)
            tally = cosine.new_zeros(len(queries), num_labels).scatter_add_(1, labels[index], weight)
            votes.append(tally.masked_fill_(~voted, -torch.inf).argmax(dim=1))  # cosines below 0 are votes, too
        return torch.cat(votes)

    return predict


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, seed: int = 0) -> Tensor:
    """Predict the label with a linear classifier on standardized features: AdamW, ten epochs, cosine schedule.

    Args:
        train: [N, C], features of the training patches.
        labels: [N], theirs, from 0 on.
        test: [M, C].
        seed: of the initial weights and the order of the patches.

    Returns:
        [M] labels.
    """
    return fit_linear(train, labels, seed)(test)


@torch.inference_mode(False)
@torch.enable_grad()
def fit_linear(train: Tensor, labels: Tensor, seed: int = 0) -> Classifier:
    """Train the classifier of `linear_probe`, for many tests."""
    mean, scale = train.float().mean(dim=0), train.float().std(dim=0).clamp(min=1e-12)
    features = (train.float() - mean) / scale
    generator = torch.Generator().manual_seed(seed)
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(probe.bias)
    nn.init.normal_(probe.weight, std=0.01, generator=generator)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * -(-len(features) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(features), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(probe(features[batch]), labels[batch].long()).backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def predict(test: Tensor) -> Tensor:
        return torch.cat([probe((part.float() - mean) / scale).argmax(dim=1) for part in test.split(CHUNK)])

    return predict


def mean_iou(predicted: Tensor, labels: Tensor) -> float:
    """Average the intersection over union, in 0..1, over the classes that occur in the labels.

    Args:
        predicted: [M].
        labels: [M].
    """
    scores = []
    for label in labels.unique():
        both, either = (predicted == label) & (labels == label), (predicted == label) | (labels == label)
        scores.append((both.sum() / either.sum()).item())
    return sum(scores) / len(scores)


def patch_labels(mask: Image.Image, grid: tuple[int, int], void: int = VOID) -> Tensor:
    """Find the most frequent label in each patch of an image that was squeezed into a grid.

    Args:
        mask: the labels of the image's pixels, whole numbers 0..255.
        grid: (h, w) patches.
        void: of pixels without a label.

    Returns:
        [h, w] int64; 255 where pixels without a label are the most frequent.
    """
    size = (grid[1] * PIXELS, grid[0] * PIXELS)
    pixels = torch.from_numpy(np.array(mask.resize(size, Image.Resampling.NEAREST))).long()
    cells = pixels.reshape(grid[0], PIXELS, grid[1], PIXELS).permute(0, 2, 1, 3).reshape(grid[0] * grid[1], -1)
    counts = torch.zeros(len(cells), VOID + 1).scatter_add_(1, cells, torch.ones(cells.shape))
    labels = counts.argmax(dim=1).reshape(grid)
    return labels.where(labels != void, VOID)
