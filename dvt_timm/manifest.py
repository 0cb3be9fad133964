"""The published names: the rows of weights/manifest.json, and what follows from a row; needs neither timm nor torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Embedded:
    """Weights that ship with this package."""

    file: str  # below weights/
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Published:
    """Weights that the authors published on the Hub, as a `.pth` file."""

    repo: str
    file: str
    revision: str | None = None  # commit, tag or branch
    size: int | None = None  # bytes; None until it is pinned
    sha256: str | None = None  # None until it is pinned


@dataclass(frozen=True)
class Own:
    """A user's own head."""

    source: str | Path  # folder, file or "hf-hub:user/repo[@revision]"


Weights: TypeAlias = Embedded | Published | Own


@dataclass(frozen=True)
class Variant:
    """One name that `timm.create_model` knows through this package."""

    name: str  # "arch.tag"
    base: str  # timm name of the backbone, "arch.tag": normalization, license, and weights but for `backbone`
    weights: Weights | None = None  # of the head, or of the whole model if distilled; None if nobody published any
    distilled: bool = False  # a plain timm model, which needs no head
    backbone: Embedded | None = None  # the backbone's weights, where they are not those of `base`
    dim: int | None = None  # channels of the backbone; None where a user's own head says it
    note: str | None = None  # what to know before use
    figures: dict[str, float | None] | None = None  # published: voc_miou, ade20k_miou in percent, nyu_rmse in meters

    @property
    def arch(self) -> str:
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        return self.name.partition(".")[2]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """The (3, height, width) in pixels that the released heads were trained at (arXiv 2401.02957).

        Raises:
            ValueError: if the architecture's name does not say its patch size.
        """
        patch = named_patch_size(self.arch)
        if patch is None:
            raise ValueError(
                f"{self.arch} does not name its patch size (..._patch16_...); pass denoiser=... to it instead"
            )
        side = 518 if patch == 14 else 512
        return 3, side, side

    @property
    def grid_size(self) -> tuple[int, int]:
        """The (h, w) in patches of the head's position embedding."""
        side = self.input_size[1] // (named_patch_size(self.arch) or 1)
        return side, side


def named_patch_size(arch: str) -> int | None:
    """Read the pixels of a patch from a name like "vit_small_patch14_dinov2"; None if the name does not say."""
    match = re.search(r"_patch(\d+)", arch)
    return int(match[1]) if match else None


@cache
def read_manifest() -> dict[str, Any]:
    """Read the manifest: `bases` (timm name -> channels, license, published figures, note) and `variants`."""
    manifest: dict[str, Any] = json.loads(weights_path("manifest.json").read_text(encoding="utf-8"))
    return manifest


@cache
def published_variants() -> dict[str, Variant]:
    """Give every row of the manifest, in its order, by its name."""
    manifest = read_manifest()
    return {row["name"]: _variant(row, manifest["bases"][row["base"]]) for row in manifest["variants"]}


def weights_path(file: str) -> Path:
    """Find a file of `weights/`, in this installation or in the clone that Python runs in."""
    try:
        folder = Path(str(files("dvt_timm.weights")))
    except ModuleNotFoundError:  # a clone hides the installed package from code that is run in it
        folder = Path(__file__).parents[1] / "weights"
    return folder / file


def _variant(row: dict[str, Any], base: dict[str, Any]) -> Variant:
    backbone = Embedded(row["base_file"], row["base_size"], row["base_sha256"]) if "base_file" in row else None
    return Variant(
        name=row["name"],
        base=row["base"],
        weights=_weights(row),
        distilled=row.get("distilled", False),
        backbone=backbone,
        dim=base["dim"],
        note=row.get("note", base.get("note")),
        figures=row.get("figures"),
    )


def _weights(row: dict[str, Any]) -> Weights | None:
    if row.get("file") is None:
        return None
    if row.get("repo") is None:
        return Embedded(row["file"], row["size"], row["sha256"])
    return Published(row["repo"], row["file"], row["revision"], row["size"], row["sha256"])
