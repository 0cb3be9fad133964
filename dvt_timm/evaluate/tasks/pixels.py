"""The paper's linear probe of segmentation: a class for every pixel, BatchNorm and a 1 x 1 convolution trained on maps.

Letters: N images that test, K classes, R rows, h x w patches, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from ..._util.images import pixels_of
from ..augment import segmentation_sample
from ..data.masks import AdeMasks, VocMasks
from ..estimates import iou_over, mean_iou_over, ratio_over
from ..published import published_of
from ..report import Measure, Report
from ..rows import Features, Rows
from ..segmentation_probe import (
    SegmentationConfig,
    SegmentationHead,
    confusion_matrix,
    labels_at,
    pad_to_patches,
    segmentation_loss,
    slide,
    test_size,
)
from .correspondence import part_of
from .segmentation import Masks, occurring, right_of
from .training import alike, train_probes

MIOU, ACCURACY = Measure("mIoU", "higher", "%"), Measure("pixels right", "higher", "%")


def linear_segmentation(
    rows: Rows,
    train: Masks,
    test: Masks,
    *,
    config: SegmentationConfig | None = None,
    folder: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = False,
) -> Report:
    """Train the paper's linear probe for each row on the same batches, and test it by windows.

    Args:
        rows: the model, and what is to be compared with it.
        train: images that train.
        test: images that test.
        config: numbers of the training; the authors' by default, 40,000 steps of 16 images.
        folder: where a checkpoint is kept, so that a run that was stopped goes on.
        seed: of the probes, the order of images and their augmentation.
        limit: test on so many images, spread evenly, rather than on all.
        progress: whether to show a bar.

    Returns:
        mIoU over the classes that occur in the test images, and the share of pixels that are right, with intervals over
        test images. Published figures stand beside those of names that have them.

    Raises:
        RunError: as `train_probes`.
        ValueError: if the processes cannot share a batch evenly, or no test image can be read.
        ImportError: without torchvision.
    """
    config, skipped = config or SegmentationConfig(), dict[str, str]()
    num_classes = len(train.classes)
    heads = alike(rows, seed, lambda width: SegmentationHead(width, num_classes))
    mean, std = rows.normalization

    def sample(index: int, generator: Generator) -> tuple[Tensor, Tensor]:
        return segmentation_sample(*train[index].read(), generator, mean=mean, std=std)

    train_probes(
        rows,
        heads,
        _loss,
        sample,
        [str(train[i].image) for i in range(len(train))],
        config,
        task=f"segmentation of {', '.join(train.classes)}",
        folder=folder,
        seed=seed,
        skipped=skipped,
        progress=progress,
    )
    names, confusions = _tested(rows, heads, test, limit, num_classes, skipped, progress)
    ious = {row: iou_over(of) for row, of in confusions.items()}
    return Report(
        task="segmentation, paper",
        over="images",
        count=len(names),
        measures=[MIOU, ACCURACY],
        figures={
            row: {MIOU.name: mean_iou_over(of), ACCURACY.name: ratio_over(right_of(of), of.sum(dim=(1, 2)))}
            for row, of in confusions.items()
        },
        settings={
            **rows.settings,
            "pixels": "crops of 512 train, windows of 512 every 341 test",
            "training": repr(config),
            "seed": seed,
        },
        each={ACCURACY.name: {row: (right_of(of) / of.sum(dim=(1, 2))).tolist() for row, of in confusions.items()}},
        names=names,
        classes=occurring(train.classes, ious, confusions),
        published={row: {MIOU.name: value / 100} for row, value in published_of(rows, _figure_of(test)).items()},
        skipped=skipped,
    )


def _figure_of(test: Masks) -> str:
    """Name the published figure of a data set; "" if there is none."""
    known = {VocMasks: "voc_miou", AdeMasks: "ade20k_miou"}
    return next((figure for kind, figure in known.items() if isinstance(test, kind)), "")


def _loss(head: SegmentationHead, features: Features, labels: Tensor, step: int) -> Tensor:
    return segmentation_loss(head(features.map), labels)


def _tested(
    rows: Rows,
    heads: dict[str, SegmentationHead],
    test: Masks,
    limit: int | None,
    num_classes: int,
    skipped: dict[str, str],
    progress: bool,
) -> tuple[list[str], dict[str, Tensor]]:
    """Count labels by prediction of every test image: its files, and row -> [N, K, K]."""
    counts: dict[int, dict[str, Tensor]] = {}  # of an image: row -> [K, K]
    for i in part_of(rows, len(test), limit, "test images", progress):
        try:
            image, labels = test[i].read()
        except ValueError as error:
            skipped[str(test[i].image)] = str(error)
            continue
        resized = pixels_of(image.resize(test_size(*image.size), resample=2)).permute(2, 0, 1).float()  # bilinear
        mean, std = (resized.new_tensor(values)[:, None, None] for values in rows.normalization)
        logits = slide((resized / 255 - mean) / std, lambda window: _logits(rows, heads, window))
        truth = torch.from_numpy(labels).long()
        by_row = zip(rows.names, logits.split(num_classes), strict=True)
        counts[i] = {row: confusion_matrix(labels_at(of, *truth.shape), truth, num_classes) for row, of in by_row}
    counts = rows.team.gather(counts)
    skipped.update(rows.team.gather(skipped))
    if not counts:
        raise ValueError(f"no test image can be read: {next(iter(skipped.values()), 'there is none')}")
    names = [str(test[i].image) for i in counts]
    return names, {row: torch.stack([of[row] for of in counts.values()]) for row in rows.names}


@torch.no_grad()
def _logits(rows: Rows, heads: dict[str, SegmentationHead], window: Tensor) -> Tensor:
    """Give the logits of all rows, one after the other, at the pixels of a window: [1, 3, H, W] -> [1, R K, H, W]."""
    padded, _ = pad_to_patches(window, rows.model.patch_embed.patch_size)
    seen = rows.features(padded)
    logits = torch.cat([head(seen[name].map) for name, head in heads.items()], dim=1)
    return interpolate(logits, size=window.shape[2:], mode="bilinear", align_corners=False).cpu()
