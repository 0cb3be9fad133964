"""What the loop needs to know of stage 2 or 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .data import Sample, Samples


class Batch(NamedTuple):
    """What a step learns from; maps are [B, h, w, C]."""

    inputs: Tensor  # what the module takes: raw maps, or images [B, 3, H, W]
    raw: Tensor  # maps of the backbone without a denoiser
    target: Tensor  # maps without artifacts


class Stage(Protocol):
    """What differs between stages 2 and 3."""

    workers: bool  # whether several threads may read samples
    base: str  # timm name of the backbone

    @property
    def module(self) -> nn.Module:
        """The module that is trained: Batch.inputs -> predicted maps."""

    @property
    def samples(self) -> Samples:
        """The samples to train on; without a validation set some of them are held out."""

    @property
    def num_pairs(self) -> int:
        """How many pairs to learn from each sample has."""

    @property
    def validation(self) -> Samples | None:
        """Other samples to measure on, None to hold some of `samples` out."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings on which two runs into one folder must agree, besides their numbers."""

    def draw(self, i: int, generator: torch.Generator) -> Sample:
        """Read sample i as training sees it."""

    def check(self, i: int) -> None:
        """Raise ImageError if sample i is an image that cannot be read."""

    def batch(self, sample: Sample) -> Batch:
        """Make a batch of collated samples, on the device."""

    def raw(self, i: int) -> Tensor:
        """Give the map [h, w, C] of sample i without a denoiser."""

    def load(self, folder: Path) -> nn.Module:
        """Read what `save` wrote."""

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write a trained module."""
