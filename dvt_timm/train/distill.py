"""Stage 3: the whole ViT learns the denoised features, and needs no head any more (arXiv 2401.02957, supplement)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .._util.images import preprocessing_of
from ..attach import undenoise
from ..checkpoints.models import save_model
from ..cleaned import Cleaned
from ..features import feature_maps
from ..head import Head
from ..names import backbone_of, full_name, name_of
from ..offline.run import fingerprint
from ..offline.views import check_fits, check_size, squeezed_size
from .data import Images, Sample, digest_of
from .loss import at_least_float32
from .stage import Batch

DISTILLED = "distilled"  # ends the tag of what is trained: with the base's own, a head would be put on it
LABEL_PARTS = ("head", "fc_norm", "attn_pool")  # a classifier's, which patch features do not reach


class PatchFeatures(nn.Module):
    """A plain ViT as a function from images [B, 3, H, W] to patch features [B, h, w, C] after the final norm."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.vit.forward_features(pixels)[:, self.vit.num_prefix_tokens :]
        grid = self.vit.patch_embed.dynamic_feat_size(tuple(pixels.shape[2:]))
        return patches.reshape(len(pixels), *grid, -1)


class DistillStage:
    """A denoised ViT that teaches, a plain copy of its backbone that learns, and images.

    Args:
        teacher: a denoised model with its weights, of any precision; the copy learns in float32.
        paths: image files.
        base: timm name of the teacher's backbone, where its own tag is none of timm's.
        size: pixels of both sides that images are squeezed to, rounded to whole patches; the model's own by default.
        grad_checkpointing: keep less for the backward pass, and compute it again.
        device: where the teacher runs.

    Raises:
        ValueError: if timm knows neither the teacher's own name nor `base`, or that is of another architecture; if the
            teacher takes images of another size only, or they have fewer than two patches a side, or too many.
    """

    workers = True
    validation = None
    num_pairs = 1

    def __init__(
        self,
        teacher: Cleaned,
        paths: Sequence[str | PathLike[str]],
        *,
        base: str | None = None,
        size: int | None = None,
        grad_checkpointing: bool = False,
        device: torch.device | None = None,
    ) -> None:
        if size is not None:
            check_size(teacher, (size, size))
        pixels = squeezed_size(teacher, size)
        check_fits(teacher, pixels)
        self.base = _base_of(teacher, base)
        student: Any = undenoise(copy.deepcopy(teacher)).float().requires_grad_(True)
        tag = "_".join(filter(None, (self.base.partition(".")[2], DISTILLED)))
        student.pretrained_cfg = student.default_cfg = {**student.pretrained_cfg, "tag": tag}
        student.set_grad_checkpointing(grad_checkpointing)
        for name in LABEL_PARTS:
            if getattr(student, name, None) is not None:
                getattr(student, name).requires_grad_(False)
        self.module = PatchFeatures(student)
        self.teacher = teacher.to(device).eval()
        self.samples = Images(paths, preprocessing_of(teacher, None), pixels)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings on which two runs into one folder must agree, besides their numbers."""
        return {
            "stage": 3,
            "base": self.base,
            "weights_sha256": fingerprint(self.teacher),
            **self._denoiser_settings(),
            "size": list(self.samples.size),
            "images": digest_of(self.samples.paths),
        }

    def _denoiser_settings(self) -> dict[str, Any]:
        denoiser: Any = self.teacher.denoiser
        if isinstance(denoiser, Head):
            return {"head_sha256": fingerprint(denoiser, skipped=())}
        return dict(denoiser.config)

    def draw(self, i: int, generator: torch.Generator) -> Sample:
        """Read image i, mirrored half of the time."""
        pixels = self.samples[i]
        return pixels.flip(-1) if torch.rand((), generator=generator) < 0.5 else pixels

    def check(self, i: int) -> None:
        """Raise ImageError unless image i can be read."""
        self.samples.check(i)

    def raw(self, i: int) -> Tensor:
        """Give the teacher's map [h, w, C] of image i before its denoiser."""
        return self.batch(self.samples[i][None]).raw[0]

    @torch.no_grad()
    def batch(self, sample: Sample) -> Batch:
        """Make a batch of images [B, 3, H, W]."""
        maps = feature_maps(self.teacher, sample.to(self.teacher.patch_embed.proj.weight))
        assert maps.denoised is not None
        raw, clean = (fmap.permute(0, 2, 3, 1) for fmap in (maps.raw, maps.denoised))
        return Batch(sample, at_least_float32(raw), at_least_float32(clean))

    def load(self, folder: Path) -> nn.Module:
        """Read the student."""
        return PatchFeatures(timm.create_model(f"local-dir:{folder}", pretrained=True))

    def save(self, module: Any, folder: Path) -> None:
        """Write the student with `save_model`."""
        save_model(module.vit, folder, base=self.base)


def _base_of(teacher: Any, base: str | None) -> str:
    try:
        return full_name(backbone_of(name_of(teacher)))
    except ValueError as error:
        if base is None:
            raise ValueError(f"the teacher's backbone: {error}, as its base") from error
    arch, name = teacher.pretrained_cfg["architecture"], full_name(backbone_of(base))
    if name.partition(".")[0] != arch:
        raise ValueError(f"the teacher is a {arch}, its base cannot be {name}; pass one of {arch}")
    return name
