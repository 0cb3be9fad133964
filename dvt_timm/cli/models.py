"""The model that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError

from ..checkpoints.tensors import kind_of
from ..hub.client import is_source
from ..names import takes_denoiser
from .console import CommandError

UNBUILDABLE = (OSError, RuntimeError, ValueError, TypeError, AssertionError, SafetensorError)  # what timm raises


def load_model(name: str, weights: str | None, device: str | None, positions: int | None = None) -> Any:
    """Build a timm model with its weights, for images of any size.

    Args:
        name: of `timm.create_model`.
        weights: a head (folder, `.safetensors` file, `hf-hub:user/repo`), the weights of the model in a file, or the
            folder of a saved model, which takes the place of `name`; None for the published weights.
        device: of PyTorch; None for the GPU if there is one.
        positions: how many views move the positions, in the place of a head.

    Raises:
        CommandError: if the name, the weights or the device are not to be had.
    """
    device = usable(device)
    _check_architecture(name)
    try:
        name, options = _request(name, weights)
        if positions is not None:
            options = _without_head(options, positions)
        model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True, **options)
    except UNBUILDABLE as error:
        raise CommandError(f"cannot build {weights or name}: {error}") from error
    try:
        return model.to(device).eval()
    except RuntimeError as error:  # it may be full
        raise CommandError(f"cannot use device {device!r}: {error}; pass another as --device, cpu say") from error


def usable(device: str | None) -> str:
    """Give a device back, or choose one for None.

    Raises:
        CommandError: if a number cannot be put there and read again: there is no such device, or none that computes.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise CommandError(f"cannot use device {device!r}: {reason}; pass another as --device, cpu say") from error
    return device


def _check_architecture(name: str) -> None:
    arch = name.partition(".")[0]
    if ":" not in name and not timm.is_model(arch):
        raise CommandError(f"timm has no model {name}; `dvt-timm list` names those of this package")
    if timm.is_model(arch) and not takes_denoiser(arch):
        raise CommandError(
            f"{name} is no timm VisionTransformer or Eva, the classes that take a head by name; in Python, "
            "dvt_timm.DenoiserHead denoises a map (B, H, W, C) of any model"
        )


def _request(name: str, weights: str | None) -> tuple[str, dict[str, Any]]:
    """Say name and weights as `timm.create_model` wants them."""
    if weights is None:
        return name, {}
    if kind_of(weights) not in ("model", "denoised"):
        return name, {"denoiser": weights}
    if is_source(weights):
        return weights, {}
    if Path(weights).is_dir():
        return f"local-dir:{weights}", {}
    return name, {"pretrained_cfg_overlay": {"file": weights}}


def _without_head(options: dict[str, Any], positions: int) -> dict[str, Any]:
    if "denoiser" in options:
        raise CommandError(f"--positions takes the place of a head, and {options['denoiser']} is one; leave one out")
    return {**options, "denoiser": {"positions": positions}}
