"""Stage 2: a denoiser head learns to predict clean features from raw ones (arXiv 2401.02957, section 4.2)."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._util.errors import warn_caller
from ..checkpoints.heads import load_head, save_head
from ..head import DenoiserHead
from ..names import backbone_of, full_name, plain_model
from ..offline import FeatureStore
from ..offline.run import fingerprint
from .data import OnlinePairs, Sample, digest_of
from .loss import at_least_float32
from .origin import base_sha256_of
from .stage import Batch


class DenoiserStage:
    """A head, and the pairs (raw, clean) that it learns from.

    Args:
        samples: a store, or pairs solved on the fly.
        base: timm name of the backbone whose features they are.
        validation: pairs of other images to measure on; by default some of `samples` are held out.
        initial: a head to start from, which is left as it is; by default a new one.
        num_blocks: blocks of a new head.
        seed: decides its weights.

    Raises:
        ValueError: if timm knows no ViT `base`; if there are no samples, or they are of another backbone or another
            block than the last; if all images of `validation` are trained on (some are told by a warning); if the
            initial head is of another width.
    """

    def __init__(
        self,
        samples: FeatureStore | OnlinePairs,
        base: str,
        *,
        validation: FeatureStore | None = None,
        initial: DenoiserHead | None = None,
        num_blocks: int = 1,
        seed: int = 0,
    ) -> None:
        self.base, self.samples, self.validation = full_name(backbone_of(base)), samples, validation
        self.workers = isinstance(samples, FeatureStore)
        self.stride: int = samples.settings["stride"][0]
        plain = plain_model(self.base)
        for pairs in (samples,) if validation is None else (samples, validation):
            _check_pairs(pairs, self.base, plain)
        if validation is not None:
            _check_alike(samples.settings, validation.settings)
            _check_others(samples, validation)
        if initial is None:
            torch.manual_seed(seed)
            self.module = DenoiserHead(plain.embed_dim, samples.shape[:2], num_blocks)
        elif initial.dim == plain.embed_dim:
            self.module = copy.deepcopy(initial).float().requires_grad_(True)
        else:
            raise ValueError(
                f"the initial head is {initial.dim} channels wide, {self.base} has {plain.embed_dim}; pass another"
            )
        self._initial = None if initial is None else fingerprint(initial, skipped=())

    @property
    def settings(self) -> dict[str, Any]:
        """The settings on which two runs into one folder must agree, besides their numbers."""
        return {
            "stage": 2,
            "base": self.base,
            "head": self.module.config,
            "initial_head_sha256": self._initial,
            "features": self.samples.settings,
            "images": _digest(self.samples),
            "validation": self.validation
            and {
                "features": self.validation.settings,
                "images": _digest(self.validation),
            },
        }

    def draw(self, i: int, generator: torch.Generator) -> Sample:
        """Draw one of the pairs of image i."""
        return self.samples.pair(i, int(torch.randint(self.samples.num_pairs, (), generator=generator)))

    def check(self, i: int) -> None:
        """Raise ImageError if image i is to be read and cannot be."""
        if isinstance(self.samples, OnlinePairs):
            self.samples.check(i)

    @property
    def num_pairs(self) -> int:
        """How many pairs each image has."""
        return self.samples.num_pairs

    def raw(self, i: int) -> Tensor:
        """Read the features of image i [h, w, C]."""
        return self.samples.raw(i).float()

    def batch(self, sample: Sample) -> Batch:
        """Make a batch of pairs (raw, clean) [B, h, w, C]."""
        raw, clean = map(at_least_float32, sample)
        return Batch(raw, raw, clean)

    def load(self, folder: Path) -> nn.Module:
        """Read the head."""
        return load_head(folder)

    def save(self, module: Any, folder: Path) -> None:
        """Write the head with `save_head`."""
        save_head(module, folder, base=self.base, stride=self.stride, base_sha256=self._base_sha256)

    @cached_property
    def _base_sha256(self) -> str:
        return base_sha256_of(self.samples.settings, self.base)


def _check_pairs(pairs: FeatureStore | OnlinePairs, base: str, plain: Any) -> None:
    """Raise ValueError if they are no features of that model."""
    if not len(pairs):
        raise ValueError("there is no image to train on; fill the store with `fit_store`, or pass images")
    made_of, layer = backbone_of(pairs.settings["model"]), pairs.settings["views"]["layer"]
    if made_of != base:
        raise ValueError(f"these are features of {made_of}, not of {base}; pass that as base, or fit another store")
    if layer not in (-1, len(plain.blocks) - 1):
        raise ValueError(f"these are features of block {layer}, and a head denoises the last one's; fit with layer=-1")
    width = pairs.shape[-1]
    if width != plain.embed_dim:
        raise ValueError(
            f"the features are {width} channels wide, {base} has {plain.embed_dim}; pass the base they are of"
        )


def _check_alike(settings: dict[str, Any], validation: dict[str, Any]) -> None:
    """Raise ValueError if the features to measure on are not of the model, or of the stride, that is trained for."""
    for key in ("weights_sha256", "stride"):
        if settings[key] != validation[key]:
            raise ValueError(
                f"{key} of the validation features is {validation[key]}, of those to train on {settings[key]}; fit the "
                "store with the same model"
            )


def _check_others(samples: FeatureStore | OnlinePairs, validation: FeatureStore) -> None:
    """Warn if some of the images to measure on are trained on, raise ValueError if all are."""
    if isinstance(samples, FeatureStore):
        trained = {entry.sha256 for entry in samples.entries}
    else:
        trained = {sha256 for _, sha256 in samples.contents}
    count, shared = len(validation), sum(entry.sha256 in trained for entry in validation.entries)
    if shared == count:
        raise ValueError(f"all {count} validation images are trained on too; fit the store of other images")
    if shared:
        warn_caller(
            f"{shared} of {count} validation images are trained on too, which flatters what is measured; fit the store "
            "of other images"
        )


def _digest(pairs: FeatureStore | OnlinePairs) -> str:
    return digest_of([e.sha256 for e in pairs.entries] if isinstance(pairs, FeatureStore) else pairs.paths)
