"""The published checkpoints: `weights/manifest.json`, one row per name, everything else derived from it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One name that `timm.create_model` knows through this package."""

    name: str  # "arch.tag"
    base: str  # timm name of the backbone whose features it denoises, normalisation and licence included
    dim: int = 0  # channels of the backbone; 0 where a user's own head says it
    file: str | None = None  # the head or the distilled weights: in the repository, or in weights/ without one
    repo: str | None = None  # Hub repository of `file`
    revision: str | None = None  # commit, tag or branch of it
    size: int | None = None  # bytes of `file`, where known
    sha256: str | None = None  # of `file`, where known
    distilled: bool = False  # plain timm weights, no head
    figures: dict[str, float | None] | None = None  # published: voc_miou, ade20k_miou in percent, nyu_rmse in metres
    base_file: str | None = None  # embedded base weights, in weights/
    base_size: int | None = None
    base_sha256: str | None = None
    head: str | Path | None = None  # a user's own head: folder, file or "hf-hub:user/repo"

    @property
    def arch(self) -> str:
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        return self.name.partition(".")[2]

    @property
    def patch_size(self) -> int:
        """Pixels, from the architecture's name."""
        size = named_patch_size(self.arch)
        if size is None:
            raise ValueError(
                f"{self.arch} does not name its patch size (..._patch16_...); pass denoiser=... to it instead"
            )
        return size

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(3, height, width) that the released heads were trained at (METHOD of arXiv 2401.02957)."""
        side = 518 if self.patch_size == 14 else 512
        return 3, side, side

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) in patches of the head's position embedding."""
        side = self.input_size[1] // self.patch_size
        return side, side

    @property
    def has_weights(self) -> bool:
        return self.file is not None or self.head is not None


def named_patch_size(arch: str) -> int | None:
    """Pixels of a patch, as in "vit_small_patch14_dinov2"; None if the name does not say."""
    match = re.search(r"_patch(\d+)", arch)
    return int(match[1]) if match else None


def backbone_of(name: str) -> str:
    """The plain timm name behind a published denoised one; any other name as it is."""
    return next((variant.base for variant in published_variants() if variant.name == name), name)


@cache
def read_manifest() -> dict[str, Any]:
    """The parsed manifest: `bases` (timm name -> channels, published figures, note) and `variants`."""
    manifest: dict[str, Any] = json.loads(weights_path("manifest.json").read_text(encoding="utf-8"))
    return manifest


def published_variants() -> list[Variant]:
    """Every row of the manifest, in its order."""
    manifest = read_manifest()
    return [Variant(dim=manifest["bases"][row["base"]]["dim"], **row) for row in manifest["variants"]]


def weights_path(file: str) -> Path:
    """Where a file of `weights/` lies: in this installation, or in the clone that Python runs in."""
    try:
        folder = Path(str(files("dvt_timm.weights")))
    except ModuleNotFoundError:  # a clone hides the installed package from code that is run in it
        folder = Path(__file__).parents[1] / "weights"
    return folder / file
