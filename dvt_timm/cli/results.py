"""What `dvt-timm features` leaves of an image: its maps, what made them, and a panel to look at."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import viz
from .._util.files import sha256_of
from .._util.images import (
    ImageError,
    Preprocessing,
    check_aspect,
    preprocessing_of,
    printable,
    read_hashed,
    save_picture,
)
from .._util.tensors import save_tensors
from .._version import __version__
from ..caption import caption_of
from ..features import check_patches, feature_maps
from ..names import name_of
from ..offline.run import fingerprint
from ..positions import PositionViews
from .console import CommandError

MEASURED = ("original_size", "image_size", "grid_size")  # metadata that needs the image decoded


@dataclass(frozen=True)
class Look:
    """How the panels look.

    Raises:
        ValueError: if there is no such column.
    """

    columns: tuple[str, ...] | None = None  # of `viz.feature_panel`, None for all
    overlay: bool = False  # on the photo
    smooth: bool = False  # between patches

    def __post_init__(self) -> None:
        if self.columns is not None:
            viz.check_columns(self.columns)


class Recipe:
    """What makes the results of an image, all of it recorded in them.

    Args:
        model: from `load_model`.
        weights: as the command line names it.
        size: pixels of an image's shorter side, None for the model's.
        patch: (row, column) that the panel's similarity refers to, None for one that stands out.
        look: of the panels.

    Raises:
        ValueError: if images of that size make more patches than attention can take.
    """

    def __init__(
        self,
        model: Any,
        weights: str | None,
        size: int | None,
        patch: tuple[int, int] | None,
        look: Look = Look(),
    ) -> None:
        self.model = model
        self.preprocessing = preprocessing_of(model, size)
        check_patches(model, self.preprocessing.size, self.preprocessing.size)
        self.patch, self.look = patch, look
        options = _options_metadata(self.preprocessing, patch, look)
        self.metadata = {**_model_metadata(model, weights), **options}

    def is_done(self, path: Path, target: Path) -> bool:
        """Whether both results are there, made by this recipe of an image of the same bytes."""
        maps, panel = _files(target)
        if not (os.path.isfile(maps) and os.path.isfile(panel)):  # False, too, where the name is too long for a file
            return False
        try:
            with safe_open(maps, framework="pt") as file:
                stored = file.metadata() or {}
            made_of = {**self.metadata, **_file_metadata(path, sha256_of(path))}
        except (OSError, SafetensorError):
            return False
        return {key: value for key, value in stored.items() if key not in MEASURED} == made_of

    def extract(self, path: Path, target: Path) -> Path:
        """Write the maps of an image to `<target>.safetensors` and their panel to `<target>.png`, each whole or not.

        Returns:
            The panel's path.

        Raises:
            ImageError: if the image cannot be read, is too elongated or too large, does not fit in memory or has no
                such patch, or its features are not finite.
            CommandError: if the results cannot be written.
        """
        original, sha256 = read_hashed(path)
        check_aspect(path, original)
        self._check_patches(path, original)
        try:
            image = self.preprocessing.resize(original)
            self._check_patch(path, image)
            maps = maps_of(self.model, self.preprocessing.to_tensor(image))
        except (MemoryError, RuntimeError) as error:  # the CPU's out-of-memory error is a RuntimeError
            reason, size = str(error) or type(error).__name__, self.preprocessing.size
            raise ImageError(f"{path}: {reason} at --size {size}; if memory is short, pass a smaller one") from error
        if not all(torch.isfinite(features).all() for features in maps.values()):
            raise ImageError(f"{path}: the model's features hold NaN or Inf; check its weights")
        caption = caption_of(self.model, next(iter(maps.values())).shape[:2])
        panel = viz.feature_panel(np.asarray(image), maps, patch=self.patch, caption=caption, **asdict(self.look))
        described = {**self.metadata, **_file_metadata(path, sha256), **_measured(original, image, maps)}
        try:
            return _write(target, maps, described, panel, caption)
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.ENAMETOOLONG:
                raise ImageError(f"{path}: its name is too long for a result; rename it") from error
            raise CommandError(f"cannot write {target}: {error}") from error

    def _check_patches(self, path: Path, image: Image.Image) -> None:
        try:
            check_patches(self.model, *self.preprocessing.size_of(image))
        except ValueError as error:
            raise ImageError(f"{path}: {error}") from error

    def _check_patch(self, path: Path, image: Image.Image) -> None:
        height, width = self.model.patch_embed.dynamic_feat_size((image.height, image.width))
        if self.patch is not None and not (self.patch[0] < height and self.patch[1] < width):
            raise ImageError(f"{path}: patch {self.patch} is outside its {height} x {width} grid; pass another --patch")


def maps_of(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Compute the maps of one image.

    Args:
        model: a timm `VisionTransformer` or `Eva`, denoised or not.
        pixels: [1, 3, H, W].

    Returns:
        `raw` and `denoised` of a denoised model, `features` of any other; [h, w, C] float32 on the CPU.
    """
    with torch.inference_mode():
        features = feature_maps(model, pixels)
    if features.denoised is None:
        maps = {"features": features.raw}
    else:
        maps = {"raw": features.raw, "denoised": features.denoised}
    return {name: fmap[0].permute(1, 2, 0).float().cpu().contiguous() for name, fmap in maps.items()}


def _files(target: Path) -> tuple[Path, Path]:
    """Give the paths of the maps and of the panel."""
    return target.with_name(f"{target.name}.safetensors"), target.with_name(f"{target.name}.png")


def _write(
    target: Path, maps: dict[str, Tensor], metadata: dict[str, str], panel: NDArray[np.uint8], caption: str
) -> Path:
    maps_file, panel_file = _files(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    panel_file.unlink(missing_ok=True)  # an older one beside new maps would pass for theirs
    save_tensors(maps, maps_file, metadata)
    save_picture(panel, panel_file, caption)
    return panel_file


def _model_metadata(model: Any, weights: str | None) -> dict[str, str]:
    metadata = {
        "version": __version__,
        "model": name_of(model),
        "weights_sha256": fingerprint(model),
        "stride": json.dumps(model.patch_embed.proj.stride),
    }
    denoiser = getattr(model, "denoiser", None)
    if isinstance(denoiser, PositionViews):
        metadata |= {key: json.dumps(value) for key, value in denoiser.config.items()}
    elif denoiser is not None:
        metadata["head_sha256"] = fingerprint(denoiser, skipped=())
    return metadata if weights is None else {**metadata, "weights": printable(weights)}


def _options_metadata(preprocessing: Preprocessing, patch: tuple[int, int] | None, look: Look) -> dict[str, str]:
    return {
        "size": json.dumps(preprocessing.size),
        "patch": json.dumps(patch),
        **{key: json.dumps(value) for key, value in asdict(look).items()},
        "patch_size": json.dumps(preprocessing.patch_size),
        "mean": json.dumps(preprocessing.mean),
        "std": json.dumps(preprocessing.std),
        "interpolation": preprocessing.interpolation,
    }


def _file_metadata(path: Path, sha256: str) -> dict[str, str]:
    return {"image": printable(path.name), "image_sha256": sha256}


def _measured(original: Image.Image, image: Image.Image, maps: dict[str, Tensor]) -> dict[str, str]:
    """Write sizes as JSON [height, width], upright."""
    return {
        "original_size": json.dumps([original.height, original.width]),
        "image_size": json.dumps([image.height, image.width]),
        "grid_size": json.dumps(next(iter(maps.values())).shape[:2]),
    }
