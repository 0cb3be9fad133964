"""The paper's linear probe of segmentation: the head, its loss, its learning rate, and the test by windows.

Letters: B images, C channels, K classes, h x w patches, H x W pixels. Images are normalized; label 255 is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad

from .probes import VOID

WINDOW, STRIDE = 512, 341  # pixels, of the test
ASPECT = 4  # the longer side is at most so many times the size that the shorter one is resized to: 2048 x 512


@dataclass(frozen=True)
class SegmentationConfig:
    """Numbers of the probe's training; the defaults are the authors'.

    Attributes:
        steps: updates of the weights; fewer than 40,000 shorten the warm-up in proportion.
        batch_size: images of one step, over all processes.
        lr: learning rate that the polynomial starts from.
        beta1: AdamW's.
        beta2: AdamW's.
        weight_decay: AdamW's.
        warmup: steps over which the learning rate rises, of 40,000.
        warmup_from: share of the learning rate that the warm-up begins with.

    Raises:
        ValueError: if one is out of range.
    """

    steps: int = 40_000
    batch_size: int = 16
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4
    warmup: int = 1_500
    warmup_from: float = 1e-6

    def __post_init__(self) -> None:
        check_training(self.steps, self.batch_size, self.lr)

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0: a line from `lr` to 0 at `steps`, times the warm-up."""
        warmup = warmup_steps(self.warmup, self.steps, SegmentationConfig.steps)
        return self.lr * (1 - step / self.steps) * warm_up(step, warmup, self.warmup_from)

    def betas(self, step: int) -> tuple[float, float]:
        """Give AdamW's betas, the same at all steps."""
        return self.beta1, self.beta2


def check_training(steps: int, batch_size: int, lr: float) -> None:
    """Raise ValueError for numbers that no probe can be trained with."""
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be positive, got {lr}")


def warmup_steps(warmup: int, steps: int, usual: int) -> int:
    """Shorten a warm-up in proportion where there are fewer steps than usual."""
    return round(warmup * min(1, steps / usual))


def warm_up(step: int, warmup: int, start: float) -> float:
    """Give the share of the learning rate that a linear warm-up allows: `start` at step 0, 1 from step `warmup` on.

    As in the authors' mmcv the warm-up multiplies a schedule that falls from step 0 on, so its peak is below `lr`.
    """
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup


class SegmentationHead(nn.Module):
    """Normalize the channels over the batch, then classify each patch linearly."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:  # [B, C, h, w] -> [B, K, h, w]
        return self.classify(self.norm(maps))


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of logits that are resized to the labels.

    As the authors' mmsegmentation has it, the mean is over all pixels, and those to ignore count as 0; PyTorch's own
    mean leaves them out.

    Args:
        logits: [B, K, h, w].
        labels: [B, H, W] int64, 255 to ignore.
    """
    return cross_entropy(_resized(logits, labels.shape[1:]), labels, ignore_index=VOID, reduction="none").mean()


def labels_at(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize logits [K, h, w] to an image and take the best class of each pixel: [H, W] int64."""
    return _resized(logits[None], (height, width))[0].argmax(dim=0)


def _resized(logits: Tensor, size: tuple[int, ...]) -> Tensor:  # [B, K, h, w] -> [B, K, H, W] float32
    return interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def test_size(width: int, height: int) -> tuple[int, int]:
    """Give the (width, height) of an image in the test: the shorter side is 512, or less where the longer is 2048."""
    return fitted(width, height, ASPECT * WINDOW, WINDOW)


test_size.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test where it is imported


def fitted(width: int, height: int, longer: int, shorter: int) -> tuple[int, int]:
    """Scale (width, height) until the longer side is at most `longer` and the shorter one at most `shorter`."""
    scale = min(longer / max(width, height), shorter / min(width, height))
    return max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)


def slide_windows(height: int, width: int, window: int = WINDOW, stride: int = STRIDE) -> list[tuple[int, int]]:
    """List the (top, left) pixels of windows that cover an image; the last of a row or column is shifted back inside.

    A side shorter than the window has one window, from 0 on, that ends with the image.
    """
    return [(top, left) for top in _starts(height, window, stride) for left in _starts(width, window, stride)]


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(length - window, 0)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def slide(
    image: Tensor, predict: Callable[[Tensor], Tensor], window: int = WINDOW, stride: int = STRIDE
) -> Tensor:  # [K, H, W]
    """Predict an image window by window, and average the logits where windows overlap.

    Args:
        image: [3, H, W].
        predict: logits [1, K, h, w] of a window [1, 3, h, w], at the window's resolution.
        window: pixels of a window's side.
        stride: pixels from window to window.

    Raises:
        ValueError: if `predict` gives logits of another resolution.
    """
    height, width = image.shape[1:]
    total = image.new_zeros(1, height, width)
    times = image.new_zeros(height, width)
    for top, left in slide_windows(height, width, window, stride):
        rows, columns = slice(top, top + window), slice(left, left + window)
        logits = predict(image[None, :, rows, columns])[0]
        if logits.shape[1:] != times[rows, columns].shape:
            expected = list(times[rows, columns].shape)
            raise ValueError(f"predict gave logits of {list(logits.shape[1:])} for a window of {expected}; resize them")
        if len(total) != len(logits):
            total = logits.new_zeros(len(logits), height, width)
        total[:, rows, columns] += logits
        times[rows, columns] += 1
    return total / times


def pad_to_patches(image: Tensor, patch: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Pad an image with zeros, evenly on all sides, to whole patches.

    The authors resize the logits of the padded image to the image without cutting the padding off, up to half a patch
    on a side; whoever wants it cut off finds the image at the offsets.

    Args:
        image: [..., H, W].
        patch: (height, width) in pixels.

    Returns:
        The padded image, and the (top, left) pixel of the image in it.
    """
    height, width = (-side % of_patch for side, of_patch in zip(image.shape[-2:], patch, strict=True))
    top, left = height // 2, width // 2
    return pad(image, (left, width - left, top, height - top)), (top, left)


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count an image's pixels by label and prediction; those with label 255 are left out.

    The sum over images makes the mIoU of a set; `estimates.mean_iou_over` takes the matrices of all images, stacked.

    Args:
        predicted: [H, W], classes from 0 on.
        labels: [H, W], classes from 0 on, or 255.
        num_classes: K.

    Returns:
        [K, K] int64, label by prediction.

    Raises:
        ValueError: on other classes, or other shapes.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"{list(predicted.shape)} predictions for {list(labels.shape)} labels; resize the logits")
    known = labels != VOID
    row, column = labels[known].long(), predicted[known].long()
    if len(row) and max(int(row.max()), int(column.max())) >= num_classes:
        found = max(int(row.max()), int(column.max()))
        raise ValueError(f"class {found} of {num_classes}, which are 0 to {num_classes - 1}; pixels to ignore have 255")
    return torch.bincount(row * num_classes + column, minlength=num_classes**2).reshape(num_classes, num_classes)
