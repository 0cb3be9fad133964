"""Classes of patches predicted from their features: k-NN without training, or a linear classifier.

Letters: N images that test, h x w patches, C channels, M patches that train, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..data.masks import Labeled
from ..estimates import Estimate, iou_over, mean_iou_over, ratio_over
from ..probes import VOID, Classifier, fit_knn, fit_linear, patch_labels
from ..report import Measure, Report
from ..rows import Maps, Rows
from .correspondence import part_of, spread_over

Way = Literal["knn", "patch"]
NEIGHBORS, TEMPERATURE = 20, 0.07
MEMORY = 25_000  # patches
FITS: dict[str, Callable[[int, Tensor, Tensor], Classifier]] = {
    "knn": lambda seed, train, labels: fit_knn(train, labels, NEIGHBORS, TEMPERATURE),
    "patch": lambda seed, train, labels: fit_linear(train, labels, seed),
}
NAMES = {"knn": "k-NN mIoU of patches", "patch": "linear mIoU of patches"}
ACCURACY = Measure("patches right", "higher", "%")


class Masks(Protocol):
    """A map-style data set of images with a class for every pixel."""

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Labeled: ...


def segmentation(
    rows: Rows,
    train: Masks,
    test: Masks,
    *,
    protocol: Way = "knn",
    memory: int = MEMORY,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    progress: bool = False,
) -> Report:
    """Predict the class of each patch, which is that of most of its pixels.

    Args:
        rows: the model, and what is to be compared with it.
        train: images whose patches are the memory, or train the classifier.
        test: images whose patches are predicted.
        protocol: "knn": the 20 nearest patches of the memory vote with exp(cosine / .07). "patch": a linear classifier
            on standardized features, ten epochs.
        memory: patches in all that are drawn, evenly from the images that train.
        seeds: of the draws, and of the classifiers; the predictions of all are counted.
        limit: take so many images of both parts, spread evenly, rather than all.
        progress: whether to show a bar.

    Returns:
        mIoU over the classes that occur in the test images, and the share of patches that are right, with intervals
        over test images.

    Raises:
        ValueError: if no image of a part can be read, or none has a class.
    """
    skipped: dict[str, str] = {}
    draws = _Draws(list(seeds), max(memory // max(len(spread_over(len(train), limit)), 1), 1))
    for i, labels, maps in _labeled(rows, train, limit, skipped, "training images", progress):
        draws.add(i, maps, labels)
    draws.drawn = rows.team.gather(draws.drawn)
    classifiers, num_classes = draws.classifiers(FITS[protocol]), len(train.classes)
    counts: dict[int, dict[str, Tensor]] = {}  # of an image: row -> labels by prediction
    for i, labels, maps in _labeled(rows, test, limit, skipped, "test images", progress):
        counts[i] = {row: _counted(fmap, labels, classifiers[row], num_classes) for row, fmap in maps.rows.items()}
    counts, skipped = rows.team.gather(counts), rows.team.gather(skipped)
    if not counts:
        raise ValueError(f"no test image can be read: {next(iter(skipped.values()), 'there is none')}")
    measures = [Measure(NAMES[protocol], "higher", "%"), ACCURACY]
    confusions = {row: torch.stack([of[row] for of in counts.values()]) for row in rows.names}
    figures = {row: dict(zip((m.name for m in measures), _figures(of), strict=True)) for row, of in confusions.items()}
    ious = {row: iou_over(of) for row, of in confusions.items()}
    return Report(
        task=f"segmentation, {protocol}",
        over="images",
        count=len(counts),
        measures=measures,
        figures=figures,
        settings={**rows.settings, "memory": f"{draws.most} patches of each image", "seeds": list(seeds)},
        each={ACCURACY.name: {row: (right_of(of) / of.sum(dim=(1, 2))).tolist() for row, of in confusions.items()}},
        names=[str(test[i].image) for i in counts],
        classes=occurring(train.classes, ious, confusions),
        skipped=skipped,
    )


def _labeled(
    rows: Rows, masks: Masks, limit: int | None, skipped: dict[str, str], title: str, progress: bool
) -> Iterator[tuple[int, Tensor, Maps]]:
    """Give the index, the labels of patches [h, w] and the maps of every image of this process that can be read."""
    coming: list[tuple[int, Tensor]] = []

    def images() -> Iterator[Image.Image]:
        for i in part_of(rows, len(masks), limit, title, progress):
            labeled = masks[i]
            try:
                image, pixels = labeled.read()
            except ValueError as error:
                skipped[str(labeled.image)] = str(error)
                continue
            coming.append((i, patch_labels(Image.fromarray(pixels), rows.grid(image))))
            yield image

    for place, maps in enumerate(rows.over(images())):
        yield *coming[place], maps


@dataclass
class _Draws:
    """Patches of the images that train: as many of each image, for each row and seed."""

    seeds: list[int]
    most: int  # of an image
    drawn: dict[int, tuple[Tensor, dict[str, Tensor]]] = field(default_factory=dict)
    """Of an image: labels [seeds, M of it], and row -> features [seeds, M of it, C]."""

    def add(self, i: int, maps: Maps, labels: Tensor) -> None:
        known = (labels.flatten() != VOID).nonzero()[:, 0]
        if not len(known):
            return
        drawn = torch.stack([known[_permuted(len(known), seed, i)[: self.most]] for seed in self.seeds])
        features = {row: fmap.flatten(0, 1)[drawn] for row, fmap in maps.rows.items()}
        self.drawn[i] = labels.flatten()[drawn], features

    def classifiers(self, fit: Callable[[int, Tensor, Tensor], Classifier]) -> dict[str, list[Classifier]]:
        """Fit one for each row and seed; raise ValueError if there is nothing to fit them to."""
        if not self.drawn:
            raise ValueError("no training image that can be read has a patch with a class")
        every = list(self.drawn.values())
        labels = torch.cat([of_image for of_image, _ in every], dim=1)
        return {
            row: [fit(seed, torch.cat([f[row][s] for _, f in every]), labels[s]) for s, seed in enumerate(self.seeds)]
            for row in every[0][1]
        }


def _permuted(count: int, seed: int, place: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + place))


def _counted(fmap: Tensor, labels: Tensor, classifiers: Sequence[Classifier], K: int) -> Tensor:  # [K, K]
    """Count the patches of a test image by label and prediction."""
    known = labels.flatten() != VOID
    truth = labels.flatten()[known].long()
    count = torch.zeros(K * K, dtype=torch.int64)
    if bool(known.any()):
        for classifier in classifiers:
            count += torch.bincount(truth * K + classifier(fmap.flatten(0, 1)[known]), minlength=K * K)
    return count.reshape(K, K)


def _figures(confusions: Tensor) -> tuple[Estimate, Estimate]:
    return mean_iou_over(confusions), ratio_over(right_of(confusions), confusions.sum(dim=(1, 2)))


def right_of(confusions: Tensor) -> Tensor:  # [N, K, K] -> [N]
    """Count what is right in each image."""
    return confusions.diagonal(dim1=1, dim2=2).sum(dim=1)


def occurring(classes: Sequence[str], ious: dict[str, list[Estimate]], confusions: dict[str, Tensor]) -> dict[str, Any]:
    """Give the IoU of the classes that the test images have, by class and row."""
    occurs = next(iter(confusions.values())).sum(dim=(0, 2)) > 0
    return {name: {row: of[k] for row, of in ious.items()} for k, name in enumerate(classes) if bool(occurs[k])}
