"""Image files -> raw and denoised feature maps on disk, with a panel to look at; what `dvt-timm features` does."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import viz
from .._util.files import CommandError, replacing
from .._util.images import ImageError, Preprocessing, check_aspect, images_in, printable, read_image
from .._version import __version__
from ..checkpoints.models import holds_backbone, is_saved_model
from ..hub.client import HUB_PREFIX
from ..names import takes_denoiser

UNBUILDABLE = (OSError, RuntimeError, ValueError, TypeError, AssertionError, SafetensorError)  # what timm raises


def find_images(paths: Iterable[Path], out: Path) -> list[tuple[Path, Path]]:
    """The images at files and in folders, each with the path of its results.

    Folders are searched recursively, in sorted order, for JPEG, PNG and WebP files, `out` itself left aside. A result
    keeps the image's place within its folder; where two would get the same name, or an image would be overwritten,
    the later one gets a number. A PNG without a safetensors file beside it is an image, no result of an earlier run.

    Args:
        paths: existing files and folders.
        out: folder of the results.

    Returns:
        (image, path of its results without a suffix), each image once.

    Raises:
        CommandError: if `out` is one of the folders: its panels would be taken for images.
    """
    found: dict[Path, Path] = {}  # resolved image -> name relative to out
    shown: dict[Path, Path] = {}  # resolved image -> path as given
    for path in paths:
        if path.is_dir() and path.resolve() == out.resolve():
            raise CommandError(f"{out} is a folder of images and the folder of the results; choose another --out")
        for image in _images_in(path, out) if path.is_dir() else [path]:
            relative = image.relative_to(path) if path.is_dir() else Path(image.name)
            stem = relative.stem if relative.stem.strip(".") else "image"
            found.setdefault(image.resolve(), Path(printable(relative.parent / stem)))
            shown.setdefault(image.resolve(), image)
    stems = _distinct(found, out)
    return [(shown[image], out / stems[image]) for image in found]


def load_model(name: str, checkpoint: str | None, device: str | None) -> Any:
    """Build a timm model with its weights, for images of any size.

    Args:
        name: of `timm.create_model`.
        checkpoint: a head (folder, `.safetensors` file, `hf-hub:user/repo`), the weights of the model in a file, or the
            folder of a saved model, which takes the place of `name`; None for the published weights.
        device: of PyTorch; None for the GPU if there is one.

    Raises:
        CommandError: if the name, the weights or the device are not to be had.
    """
    arch = name.partition(".")[0]
    if timm.is_model(arch) and not takes_denoiser(arch):
        raise CommandError(f"{name} is no timm VisionTransformer or Eva: it has no patch tokens")
    options: dict[str, Any] = {}
    try:
        if checkpoint is not None and is_saved_model(checkpoint):
            name = checkpoint if checkpoint.startswith(HUB_PREFIX) else f"local-dir:{checkpoint}"
        elif checkpoint is not None and holds_backbone(checkpoint):
            options["pretrained_cfg_overlay"] = {"file": checkpoint}
        elif checkpoint is not None:
            options["denoiser"] = checkpoint
        model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True, **options)
    except UNBUILDABLE as error:
        raise CommandError(f"cannot build {checkpoint or name}: {error}") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"cannot use device {device!r}: {error}") from error


@torch.inference_mode()
def feature_maps(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    """The last map of an image after the final norm, from one forward pass.

    Args:
        model: a timm `VisionTransformer` or `Eva`, denoised or not.
        pixels: [1, 3, H, W].

    Returns:
        `raw` and `denoised` of a denoised model, `features` of any other; [h, w, C] float32 on the CPU.
    """
    maps: dict[str, Tensor] = {}
    pixels = pixels.to(model.patch_embed.proj.weight.device)
    if hasattr(model, "denoiser"):
        hook = model.denoiser.register_forward_hook(
            lambda _, inputs, output: maps.update(raw=inputs[0], denoised=output)
        )
        try:
            model.forward_features(pixels)
        finally:
            hook.remove()
    else:
        tokens = model.forward_features(pixels)[:, model.num_prefix_tokens :]
        grid = model.patch_embed.dynamic_feat_size(tuple(pixels.shape[2:]))
        maps["features"] = tokens.reshape(1, *grid, -1)
    return {name: features[0].float().cpu().contiguous() for name, features in maps.items()}


def extract(
    model: Any,
    preprocessing: Preprocessing,
    path: Path,
    target: Path,
    metadata: dict[str, str],
    patch: tuple[int, int] | None = None,
) -> Path:
    """Write the maps of an image to `<target>.safetensors` and their panel to `<target>.png`.

    Each file appears whole or not at all, and replaces an older one.

    Args:
        model: from `load_model`.
        preprocessing: from `preprocessing_of`.
        path: the image.
        target: path of the results without a suffix.
        metadata: of the model; that of the image is added.
        patch: (row, column) that the panel's similarity refers to, the centre by default.

    Returns:
        The panel's path.

    Raises:
        ImageError: if the image cannot be read, is too elongated, does not fit in memory or has no such patch, or its
            features are not finite.
        CommandError: if the results cannot be written.
    """
    original = read_image(path)
    check_aspect(path, original)
    try:
        image = preprocessing.resize(original)
        _check_patch(path, patch, model.patch_embed.dynamic_feat_size((image.height, image.width)))
        maps = feature_maps(model, preprocessing.to_tensor(image))
    except (MemoryError, RuntimeError) as error:  # the CPU's out-of-memory error is a RuntimeError
        reason = str(error) or type(error).__name__
        size = preprocessing.size
        raise ImageError(f"{path}: {reason} at --size {size}; if memory is short, pass a smaller one") from error
    if not all(torch.isfinite(features).all() for features in maps.values()):
        raise ImageError(f"{path}: the model's features hold NaN or Inf; check its weights")
    panel = viz.feature_panel(np.asarray(image), maps, patch=patch)
    described = {**metadata, **_image_metadata(path, original, image, maps)}
    try:
        return _write(target, maps, described, panel)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise ImageError(f"{path}: its name is too long for a result; rename it") from error
        raise CommandError(f"cannot write {target}: {error}") from error


def model_metadata(checkpoint: str | None, model: Any, preprocessing: Preprocessing) -> dict[str, str]:
    """What a result says of its model; everything but names and the version is JSON."""
    cfg = model.pretrained_cfg
    metadata = {
        "version": __version__,
        "model": ".".join(part for part in (cfg["architecture"], cfg.get("tag")) if part),
        "patch_size": json.dumps(preprocessing.patch_size),
        "stride": json.dumps(model.patch_embed.proj.stride),
        "mean": json.dumps(preprocessing.mean),
        "std": json.dumps(preprocessing.std),
        "interpolation": preprocessing.interpolation,
    }
    return metadata if checkpoint is None else {**metadata, "checkpoint": checkpoint}


def _image_metadata(path: Path, original: Image.Image, image: Image.Image, maps: dict[str, Tensor]) -> dict[str, str]:
    """What a result says of its image; sizes are JSON [height, width], upright."""
    return {
        "image": printable(path.name),
        "original_size": json.dumps([original.height, original.width]),
        "image_size": json.dumps([image.height, image.width]),
        "grid_size": json.dumps(next(iter(maps.values())).shape[:2]),
    }


def _write(target: Path, maps: dict[str, Tensor], metadata: dict[str, str], panel: viz.Pixels) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target.with_name(f"{target.name}.safetensors")) as path:
        save_file(maps, path, metadata)
    result = target.with_name(f"{target.name}.png")
    with replacing(result) as path:
        Image.fromarray(panel).save(path)
    return result


def _images_in(folder: Path, out: Path) -> list[Path]:
    inner = folder.resolve() in out.resolve().parents
    return [path for path in images_in(folder) if not (inner and out.resolve() in path.resolve().parents)]


def _check_patch(path: Path, patch: tuple[int, int] | None, grid: tuple[int, int]) -> None:
    if patch is not None and not (patch[0] < grid[0] and patch[1] < grid[1]):
        raise ImageError(f"{path}: patch {patch} is outside its {grid[0]} x {grid[1]} grid; pass another --patch")


def _distinct(stems: dict[Path, Path], out: Path) -> dict[Path, Path]:
    """The same images, each with a name of its own whose panel is no image; letter case does not count."""
    taken = {str(image).casefold() for image in stems}
    distinct = {}
    for image, stem in stems.items():
        candidate, number = stem, 1
        while (panel := str(out.resolve() / f"{candidate}.png").casefold()) in taken or _is_image(out / candidate):
            number += 1
            candidate = stem.with_name(f"{stem.name}-{number}")
        taken.add(panel)
        distinct[image] = candidate
    return distinct


def _is_image(target: Path) -> bool:
    """Whether a PNG lies in the place of a panel that no earlier run made."""
    panel, maps = (os.path.lexists(f"{target}.{suffix}") for suffix in ("png", "safetensors"))
    return panel and not maps
