"""The paper's linear probe of depth: the head, its loss, its learning rate, and the scores.

Letters: B images, C channels, h x w patches, H x W pixels. Depths are in meters, 0 where there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .segmentation_probe import check_training, warm_up, warmup_steps

NEAREST, FARTHEST = 1e-3, 10.0  # meters
BINS = 256
UPSAMPLE = 4  # the head's depths a side, for each patch's
FLOOR = 0.1  # of a bin's weight
OFFSET = 1e-3  # meters, added to depths before their logarithm
MEAN_WEIGHT = 0.15  # of the squared mean, beside the variance
GRADIENT_WEIGHT = 0.5
FIRST_STEPS = 100  # their loss is without the variance
LEAST_BETA1 = 0.3  # of the steps
STRIDES = (1, 2, 4, 6)  # of the subsampling for the gradient loss
FRAME = (480, 640)  # (height, width) of NYU's images
EIGEN = (slice(45, 471), slice(41, 601))  # rows and columns that are scored


@dataclass(frozen=True)
class DepthConfig:
    """Numbers of the probe's training; the defaults are the authors'.

    Attributes:
        steps: updates of the weights; fewer than 38,400 shorten the warm-up in proportion.
        batch_size: images of one step, over all processes.
        lr: learning rate that the cosine starts from.
        beta1: AdamW's first beta at both ends of the training, and the least one, at three tenths of it.
        beta2: AdamW's second beta.
        weight_decay: AdamW's.
        clip_norm: largest norm of the gradient.
        warmup: steps over which the learning rate rises, of 38,400.
        warmup_from: share of the learning rate that the warm-up begins with.
        floor: share of the learning rate that the cosine ends at.

    Raises:
        ValueError: if one is out of range.
    """

    steps: int = 38_400
    batch_size: int = 16
    lr: float = 5e-3
    beta1: tuple[float, float] = (0.95, 0.85)
    beta2: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 35.0
    warmup: int = 12_800
    warmup_from: float = 1e-3
    floor: float = 1e-8

    def __post_init__(self) -> None:
        check_training(self.steps, self.batch_size, self.lr)

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0: half a cosine over all `steps`, times the warm-up."""
        warmup = warmup_steps(self.warmup, self.steps, DepthConfig.steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * (self.floor + (1 - self.floor) * cosine) * warm_up(step, warmup, self.warmup_from)

    def betas(self, step: int) -> tuple[float, float]:
        """Give AdamW's betas of a step: the first falls and rises by half a cosine, as in the one-cycle policy."""
        turn, end = LEAST_BETA1 * self.steps - 1, self.steps - 1
        way = step / turn if step <= turn else (end - step) / (end - turn)  # 0 at the ends, 1 at the turn
        high, low = self.beta1
        return low + (high - low) * 0.5 * (1 + math.cos(math.pi * way)), self.beta2


class DepthHead(nn.Module):
    """Weigh 256 depths, evenly spaced from .001 to 10 m, linearly by a patch's feature and the class token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(2 * channels, BINS, kernel_size=1)
        self.register_buffer("depths", torch.linspace(NEAREST, FARTHEST, BINS), persistent=False)

    def forward(self, maps: Tensor, class_token: Tensor) -> Tensor:
        """Compute depths.

        Args:
            maps: [B, C, h, w].
            class_token: [B, C], repeated at every patch.

        Returns:
            [B, 1, 4h, 4w] in meters, float32.
        """
        features = torch.cat([maps, class_token[:, :, None, None].expand_as(maps)], dim=1)
        # the authors resize before they convolve: the same numbers, as both are linear and the resizing's weights
        # sum to 1, from 16 times the work
        logits = interpolate(self.weigh(features).float(), scale_factor=UPSAMPLE, mode="bilinear", align_corners=False)
        weights = logits.relu() + FLOOR
        return torch.einsum("bkhw,k->bhw", weights, self.depths.float())[:, None] / weights.sum(dim=1, keepdim=True)


def depth_loss(predicted: Tensor, target: Tensor, step: int, *, as_released: bool) -> Tensor:
    """Compute the scale-invariant loss plus half the gradient loss, of predictions that are resized to the target.

    Args:
        predicted: [B, 1, h, w] in meters.
        target: [B, 1, H, W] in meters, 0 where there is none.
        step: of the training, from 0 on; the first 100 have a loss without the variance.
        as_released: take the authors' gradient loss, which reproduces published figures (see `gradient_loss`).

    Raises:
        ValueError: if fewer than two pixels have a depth.
    """
    predicted = interpolate(predicted.float(), size=target.shape[2:], mode="bilinear", align_corners=False)
    gradient = gradient_loss(predicted, target, as_released=as_released)
    return scale_invariant_loss(predicted, target, step) + GRADIENT_WEIGHT * gradient


def scale_invariant_loss(predicted: Tensor, target: Tensor, step: int) -> Tensor:
    """Compute sqrt(var(g) + .15 mean(g)^2), g = log(predicted + .001) - log(target + .001) where there is a depth.

    The first 100 steps have sqrt(.15 mean(g)^2).

    Args:
        predicted: [B, 1, H, W] in meters.
        target: [B, 1, H, W] in meters, 0 where there is none.
        step: of the training, from 0 on.

    Raises:
        ValueError: if fewer than two pixels have a depth.
    """
    ratio = _log_ratio(predicted, target)[target > 0]
    if len(ratio) < 2:
        raise ValueError(f"{len(ratio)} pixels of the batch have a depth, the loss needs two; 0 means none")
    mean = ratio.mean()
    if step < FIRST_STEPS:
        return math.sqrt(MEAN_WEIGHT) * mean.abs()  # the root of the square, whose gradient at 0 is not finite
    return (ratio.var() + MEAN_WEIGHT * mean.square()).sqrt()


def gradient_loss(predicted: Tensor, target: Tensor, *, as_released: bool) -> Tensor:
    """Compute the mean difference of log ratios two pixels apart, down and across, summed over four subsamplings.

    As released, subsampling and differences act on the first two axes, batch and channel, so that images two apart in
    the batch are compared, and a batch of one or two has the loss 0. The authors' eight processes have two images each.

    Args:
        predicted: [B, 1, H, W] in meters.
        target: [B, 1, H, W] in meters, 0 where there is none.
        as_released: whether the axes are batch and channel; otherwise they are height and width.
    """
    axes = (0, 1, 2, 3) if as_released else (2, 3, 0, 1)
    known = (target > 0).permute(axes)
    ratio = _log_ratio(predicted, target).permute(axes)
    return torch.stack([_differences(ratio[::s, ::s], known[::s, ::s]) for s in STRIDES]).sum()


def _differences(ratio: Tensor, known: Tensor) -> Tensor:
    """Sum the differences along the first two axes between places that both have a depth, over the number of depths."""
    down = (ratio[2:] - ratio[:-2]).abs() * (known[2:] & known[:-2])
    across = (ratio[:, 2:] - ratio[:, :-2]).abs() * (known[:, 2:] & known[:, :-2])
    return (down.sum() + across.sum()) / known.sum().clamp(min=1)


def _log_ratio(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted + OFFSET).log() - (target + OFFSET).log()


@torch.no_grad()
def mirrored_depth(straight: Tensor, mirrored: Tensor, size: tuple[int, ...]) -> Tensor:  # [H, W]
    """Resize the depths of an image and of its mirror image to the image, turn the second back, and average them.

    Args:
        straight: [1, 1, h, w], depths of the image.
        mirrored: [1, 1, h, w], depths of its mirror image.
        size: (H, W) of the image.
    """
    both = interpolate(torch.cat([straight, mirrored]).float(), size=size, mode="bilinear", align_corners=False)
    return (both[0, 0] + both[1, 0].flip(1)) / 2


def check_frame(shape: tuple[int, ...]) -> None:
    """Raise ValueError unless an image has the pixels of NYU's."""
    if shape != FRAME:
        raise ValueError(
            f"NYU's images are {FRAME[0]} x {FRAME[1]} pixels, got {' x '.join(map(str, shape))}; resize it"
        )


def depth_scores(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Score the depths of one image inside the Eigen crop, where the true one is between .001 and 10 m.

    Those of a set are the means over its images, NaN left out.

    Args:
        predicted: [480, 640] in meters; what is nearer or farther than the head's own range counts as its end.
        target: [480, 640] in meters, 0 where there is none.

    Returns:
        "RMSE" in meters, "AbsRel", "a1", "a2", "a3" (shares within a factor of 1.25, its square, its cube) and "log10";
        NaN if no pixel has a depth.

    Raises:
        ValueError: on other shapes.
    """
    if predicted.shape != FRAME or target.shape != FRAME:
        shapes = f"{list(predicted.shape)} and {list(target.shape)}"
        raise ValueError(
            f"the Eigen crop is of {list(FRAME)} pixels, got {shapes}; resize the prediction to the target"
        )
    truth = target[EIGEN]
    known = (truth > NEAREST) & (truth < FARTHEST)
    truth, depth = truth[known].double(), predicted[EIGEN][known].double().clamp(NEAREST, FARTHEST)
    factor = torch.maximum(truth / depth, depth / truth)
    scores = {
        "RMSE": (depth - truth).square().mean().sqrt(),
        "AbsRel": ((depth - truth).abs() / truth).mean(),
        **{f"a{power}": (factor < 1.25**power).double().mean() for power in (1, 2, 3)},
        "log10": factor.log10().mean(),
    }
    return {name: float(score) for name, score in scores.items()}
