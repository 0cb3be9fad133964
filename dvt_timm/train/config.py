"""How to train: numbers that stages 2 and 3 share, and where they come from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .._util.schedule import warmed_up_cosine

Precision = Literal["no", "bf16", "fp16"]
BASE_RATE, BASE_BATCH = 2e-4, 256  # the authors scale the peak by the root of the batch size
FLOOR_RATE = 1e-6
BETAS = (0.9, 0.999)
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"  # of the environment: accelerate puts it over what it is told
MOST_PASSES = 1_000.0  # the released script goes 640 times through 10,000 images


@dataclass(frozen=True)
class TrainConfig:
    """Numbers of one training run; the defaults are those of the released stage-2 script.

    The result depends on `batch_size`, not on how it is divided among processes and accumulated batches, up to
    rounding.

    Attributes:
        steps: updates of the weights.
        most_passes: how often they may go through the pairs; more are refused, they only cost time.
        batch_size: samples of one step, over all processes and accumulated batches.
        accumulation: batches, one after the other, that make up a step.
        lr: peak of the learning rate; None for 2e-4 * sqrt(batch_size / 256).
        warmup: share of the steps over which the learning rate rises, 0 <= warmup < 1.
        weight_decay: AdamW's.
        precision: what forward and backward passes run in; weights and loss are float32.
        seed: decides the initial weights, the order of samples and the flips.
        workers: threads of each process that read samples ahead, each a batch; 0 for none. None for one where the CPU
            trains, which has other things to do, and four elsewhere.
        held_out: samples kept from training for evaluation; None for a twentieth, at most 64.
        eval_every, checkpoint_every: steps.

    Raises:
        ValueError: if one is out of range.
    """

    steps: int = 50_000
    most_passes: float = MOST_PASSES
    batch_size: int = 128
    accumulation: int = 1
    lr: float | None = None
    warmup: float = 0.15
    weight_decay: float = 1e-5
    precision: Precision = "no"
    seed: int = 0
    workers: int | None = None
    held_out: int | None = None
    eval_every: int = 500
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.most_passes > 0:
            raise ValueError(f"most_passes must be positive, got {self.most_passes}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulation {self.accumulation}")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps, 0 <= warmup < 1, got {self.warmup}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, got {self.precision!r}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if self.held_out is not None and self.held_out < 1:
            raise ValueError(f"held_out must be at least 1, got {self.held_out}")

    @property
    def peak_lr(self) -> float:
        """`lr`, or what the batch size makes of the authors' base rate."""
        return BASE_RATE * math.sqrt(self.batch_size / BASE_BATCH) if self.lr is None else self.lr

    def passes(self, num_pairs: int) -> float:
        """Say how often the steps go through so many pairs."""
        return self.steps * self.batch_size / num_pairs

    def check_passes(self, num_pairs: int) -> None:
        """Raise ValueError if the steps go through so many pairs more often than `most_passes`."""
        if self.passes(num_pairs) > self.most_passes:
            most = int(self.most_passes * num_pairs / self.batch_size)
            raise ValueError(
                f"{self.steps:,} steps of {self.batch_size} go {self.passes(num_pairs):,.0f} times through "
                f"{num_pairs:,} pairs, and more than {self.most_passes:,.0f} times only cost time; give more images, "
                f"take at most {most:,} steps, or raise most_passes"
            )

    def check_accelerator(self, accelerator: Any) -> None:
        """Raise ValueError if the batch cannot be divided among its processes, or it accumulates another number."""
        parts = self.accumulation * accelerator.num_processes
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of {parts}: {self.accumulation} accumulated batches "
                f"of {accelerator.num_processes} processes"
            )
        if accelerator.gradient_accumulation_steps != self.accumulation:
            raise ValueError(
                f"the accelerator accumulates {accelerator.gradient_accumulation_steps} batches a step, the config "
                f"says {self.accumulation}; pass make_accelerator(config), and leave {ACCUMULATION} unset"
            )

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        return warmed_up_cosine(step, self.steps, round(self.warmup * self.steps), self.peak_lr, FLOOR_RATE)


@dataclass(frozen=True)
class Preset:
    """A named recipe: so many steps, but no more passes through the pairs than allowed, or so many passes."""

    batch_size: int
    steps: int | None = None
    epochs: int | None = None

    def config(self, num_pairs: int, **given: Any) -> TrainConfig:
        """Make the numbers for so many pairs; what is given takes the place of the recipe's."""
        batch_size = given.get("batch_size", self.batch_size)
        passes = self.epochs or given.get("most_passes", MOST_PASSES)
        steps = int(passes * num_pairs / batch_size)
        return replace(TrainConfig(steps=max(min(steps, self.steps or steps), 1), batch_size=batch_size), **given)


TRAIN_PRESETS = {
    "released": Preset(batch_size=128, steps=50_000),  # the authors' script: 16 pairs on each of 8 GPUs
    "paper": Preset(batch_size=64, epochs=10),  # section 5, with 10,000 VOC images
    "quick": Preset(batch_size=8, steps=2_000),  # shows that all is well
}
DISTILL_PRESETS = {
    "paper": Preset(batch_size=512, epochs=5),  # ImageNet-1k, 64 images on each of 8 GPUs
    "quick": Preset(batch_size=8, steps=2_000),
}
