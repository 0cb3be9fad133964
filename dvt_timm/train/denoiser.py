"""Stage 2: a denoiser head learns to predict clean features from raw ones (arXiv 2401.02957, section 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import plain_model, save_head
from ..files import CommandError
from ..head import DenoiserHead
from ..offline import FeatureStore
from ..registry import backbone_name
from .data import OnlinePairs, Sample, Transform, digest_of
from .loop import Batch


class DenoiserStage:
    """A new head, and the pairs (raw, clean) that it learns from.

    Args:
        samples: a store, or pairs solved on the fly.
        base: timm name of the backbone whose features they are.
        num_blocks: of the head.
        seed: of the initial weights.

    Raises:
        CommandError: if there are no samples, or they are of another backbone or another block than the last.
        ValueError: if timm knows no ViT `base`.
    """

    transform: Transform | None = None

    def __init__(self, samples: FeatureStore | OnlinePairs, base: str, *, num_blocks: int = 1, seed: int = 0) -> None:
        self.base, self.samples = backbone_name(base), samples
        self.workers = isinstance(samples, FeatureStore)
        self.stride: int = samples.settings["stride"][0]
        dim = self._check_samples()
        h, w, C = samples[0][0].shape
        if dim != C:
            raise CommandError(f"the features are {C} channels wide, {self.base} has {dim}; name the base they are of")
        torch.manual_seed(seed)
        self.module = DenoiserHead(dim, (h, w), num_blocks)

    def _check_samples(self) -> int:
        """The base's width."""
        base, settings = plain_model(self.base), self.samples.settings
        if not len(self.samples):
            raise CommandError("there is no image to train on; fill the store with `dvt-timm fit`, or name images")
        made_of, layer = backbone_name(settings["model"]), settings["views"]["layer"]
        if made_of != self.base:
            raise CommandError(
                f"these are features of {made_of}, not of {self.base}; name that as --base, or fit another store"
            )
        if layer not in (-1, len(base.blocks) - 1):
            raise CommandError(
                f"these are features of block {layer}, and a head denoises the last one's; leave --layer out"
            )
        width: int = base.embed_dim
        return width

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs into one folder must agree on, besides their numbers."""
        samples = self.samples
        names = [e.sha256 for e in samples.entries] if isinstance(samples, FeatureStore) else samples.paths
        return {
            "stage": 2,
            "base": self.base,
            "head": self.module.config,
            "features": samples.settings,
            "images": digest_of(names),
        }

    def batch(self, sample: Sample) -> Batch:
        """Of pairs (raw, clean) [B, h, w, C]."""
        raw, clean = (_at_least_float32(part) for part in sample)
        return Batch(raw, raw, clean)

    def save(self, module: Any, folder: Path) -> None:
        """As `save_head`."""
        save_head(module, folder, base=self.base, stride=self.stride)

    def picture(self, index: int) -> Path:
        """The image that a pair was computed from."""
        if isinstance(self.samples, FeatureStore):
            return Path(self.samples.entries[index].image)
        return self.samples.paths[index]


def _at_least_float32(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
