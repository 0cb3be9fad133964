"""What `dvt-timm features` leaves of an image: its maps, what made them, and a panel to look at if it is wanted."""

from __future__ import annotations

import errno
import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import viz
from .._util.files import sha256_of
from .._util.images import ImageError, Preprocessing, preprocessing_of, printable, save_picture
from .._util.tensors import save_tensors
from .._version import __version__
from ..caption import caption_of
from ..extraction import Extracted, extract
from ..features import layers_of
from ..names import name_of
from ..offline.run import fingerprint
from ..positions import PositionViews
from ..viz.arrays import channels_first
from .console import CommandError

MEASURED = ("original_size", "image_size", "grid_size")  # metadata that needs the image decoded


class Recipe:
    """What makes the results of an image, all of it recorded in them.

    Args:
        model: from `load_model`.
        arguments: of the command line.

    Raises:
        CommandError: if only denoised maps are wanted, and the model has none.
        ValueError: if the model has no such layer.
    """

    def __init__(self, model: Any, arguments: Namespace) -> None:
        self.model, self.arguments = model, arguments
        self.layers = layers_of(model, arguments.layers)
        self.panel = panel_options(arguments) if arguments.panels else None
        self.metadata = {
            **_model_metadata(model, arguments.weights),
            **_options_metadata(preprocessing_of(model, arguments.size)),
            "maps": json.dumps(self.names),
            "dtype": "float16" if arguments.half else "float32",
            **({"autocast": arguments.autocast} if arguments.autocast else {}),
        }

    def extract(self, paths: Iterable[Path], skip: Callable[[ImageError], object]) -> Iterator[Extracted]:
        """Compute the features of images; `skip` is called with the error of each that cannot be processed.

        Raises:
            ValueError: if images of that size make more patches than attention can take.
        """
        options = self.arguments
        return extract(
            self.model,
            paths,
            size=options.size,
            layers=self.layers,
            batch_size=options.batch_size,
            half=options.half,
            autocast=getattr(torch, options.autocast) if options.autocast else None,
            on_error=skip,
        )

    def maps(self, features: Extracted) -> dict[str, Tensor]:
        """Name the maps [h, w, C] that are kept; the last block's is not kept twice."""
        layers = {f"layer_{layer}": fmap for layer, fmap in features.layers.items()}
        every = {"features": features.raw, "raw": features.raw, **layers}
        if features.denoised is not None:
            every["denoised"] = features.denoised
        return {name: every[name] for name in self.names}

    @property
    def names(self) -> list[str]:
        """Name the maps that are kept."""
        has_denoiser = hasattr(self.model, "denoiser")
        if self.arguments.denoised_only and not has_denoiser:
            raise CommandError("--denoised-only: the model has no denoiser; leave it out, or name one as --weights")
        last = ["raw", "denoised"][self.arguments.denoised_only :] if has_denoiser else ["features"]
        return last + [f"layer_{layer}" for layer in self.layers if layer < len(self.model.blocks) - 1]


class Results(Protocol):
    """Where results go."""

    def is_done(self, path: Path) -> bool:
        """Whether the results of an image are there, of the same recipe and of the same bytes."""

    def todo(self, missing: Sequence[Path]) -> Sequence[Path]:
        """Say which images are to be done, where some are not; all processes must ask."""

    def add(self, features: Extracted) -> Path | None:
        """Keep the results of an image; give its file, if it has one of its own.

        Raises:
            ImageError: if those of this image cannot be kept.
            CommandError: if they cannot be written.
        """


class Files:
    """A file of maps for every image, and a panel if it is wanted.

    Args:
        recipe: of the results.
        targets: image -> path of its results without a suffix.
    """

    def __init__(self, recipe: Recipe, targets: Mapping[Path, Path]) -> None:
        self.recipe, self.targets = recipe, targets
        self._panel_metadata = {key: json.dumps(value) for key, value in (recipe.panel or {}).items()}

    def is_done(self, path: Path) -> bool:
        """Whether the results are there, made by this recipe of an image of the same bytes; with a panel if wanted."""
        maps, panel = _files(self.targets[path])
        wants_panel = self.recipe.panel is not None
        if not os.path.isfile(maps) or (wants_panel and not os.path.isfile(panel)):  # False, too, for too long a name
            return False
        try:
            with safe_open(maps, framework="pt") as file:
                stored = file.metadata() or {}
            made_of = {**self.recipe.metadata, **self._panel_metadata, **_file_metadata(path, sha256_of(path))}
        except (OSError, SafetensorError):
            return False
        ignored = MEASURED if wants_panel else (*MEASURED, *PANEL_OPTIONS)
        return {key: value for key, value in stored.items() if key not in ignored} == made_of

    def todo(self, missing: Sequence[Path]) -> Sequence[Path]:
        """Say which images are to be done: those that are not."""
        return missing

    def add(self, features: Extracted) -> Path:
        """Write the maps of an image to `<target>.safetensors` and its panel to `<target>.png`, each whole or not."""
        assert features.path is not None
        target, maps = self.targets[features.path], self.recipe.maps(features)
        about = _file_metadata(features.path, features.sha256) | _measured(features)
        panel = None if self.recipe.panel is None else panel_of(self.recipe.model, features, self.recipe.panel)
        try:
            return _write(target, maps, {**self.recipe.metadata, **self._panel_metadata, **about}, panel)
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.ENAMETOOLONG:
                raise ImageError(f"{features.path}: its name is too long for a result; rename it") from error
            raise CommandError(
                f"cannot write {target}: {error}; finished images are kept, run the same again"
            ) from error


PANEL_OPTIONS = ("patch", "columns", "overlay", "smooth")  # of the command line: what a panel shows


def panel_options(arguments: Namespace) -> dict[str, Any]:
    """Give the arguments of `panel_of`, all of which are recorded beside the maps.

    Raises:
        ValueError: if there is no such column.
    """
    if arguments.columns is not None:
        viz.check_columns(arguments.columns)
    return {name: getattr(arguments, name) for name in PANEL_OPTIONS}


class Panel(NamedTuple):
    """A picture of the features of an image, and the line below it."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    caption: str


def panel_of(model: Any, features: Extracted, options: Mapping[str, Any]) -> Panel:
    """Draw the panel of an image.

    Args:
        model: that computed the features.
        features: of the image.
        options: from `panel_options`.

    Raises:
        ImageError: if the image has no such patch.
    """
    patch, (height, width) = options["patch"], features.raw.shape[:2]
    if patch is not None and not (patch[0] < height and patch[1] < width):
        raise ImageError(f"{features.path}: patch {patch} is outside its {height} x {width} grid; pass another --patch")
    maps = {"features": features.raw}
    if features.denoised is not None:
        maps = {"raw": features.raw, "denoised": features.denoised}
    maps = {name: channels_first(fmap.float()) for name, fmap in maps.items()}
    caption = caption_of(model, (height, width))
    return Panel(viz.feature_panel(features.pixels.numpy(), maps, caption=caption, **options), caption)


def _files(target: Path) -> tuple[Path, Path]:
    """Give the paths of the maps and of the panel."""
    return target.with_name(f"{target.name}.safetensors"), target.with_name(f"{target.name}.png")


def _write(target: Path, maps: dict[str, Tensor], metadata: dict[str, str], panel: Panel | None) -> Path:
    maps_file, panel_file = _files(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    panel_file.unlink(missing_ok=True)  # an older one beside new maps would pass for theirs
    save_tensors(maps, maps_file, metadata)
    if panel is None:
        return maps_file
    save_picture(panel.pixels, panel_file, panel.caption)
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


def _options_metadata(preprocessing: Preprocessing) -> dict[str, str]:
    return {
        "size": json.dumps(preprocessing.size),
        "patch_size": json.dumps(preprocessing.patch_size),
        "mean": json.dumps(preprocessing.mean),
        "std": json.dumps(preprocessing.std),
        "interpolation": preprocessing.interpolation,
    }


def _file_metadata(path: Path, sha256: str | None) -> dict[str, str]:
    return {"image": printable(path.name), "image_sha256": str(sha256)}


def _measured(features: Extracted) -> dict[str, str]:
    """Write sizes as JSON [height, width], upright."""
    sizes = (features.original_size, features.pixels.shape[:2], features.raw.shape[:2])
    return {key: json.dumps(size) for key, size in zip(MEASURED, sizes, strict=True)}
