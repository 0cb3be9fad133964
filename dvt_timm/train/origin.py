"""Which file of weights the features that a head is trained on come from."""

from __future__ import annotations

from typing import Any

import timm
import torch
from safetensors import SafetensorError

from ..checkpoints.heads import base_at_hand
from ..offline.run import fingerprint


def base_sha256_of(settings: dict[str, Any], base: str) -> str:
    """Hash the file of weights (SHA-256) that features are of; "" if it is not known.

    Args:
        settings: a store's, or those of pairs solved on the fly.
        base: timm name of the backbone, whose own file counts where it is at hand and has the weights of `settings`.
    """
    if own := settings.get("weights_file_sha256"):
        return str(own)
    file, sha256 = base_at_hand(base)
    if file is None or sha256 is None:
        return ""
    options = {"num_classes": 0, "stride": settings["stride"][0], "pretrained_cfg_overlay": {"file": str(file)}}
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn for the new model is not missed in training
            plain = timm.create_model(base, pretrained=True, **options)
    except (SafetensorError, OSError, RuntimeError, ValueError):  # a damaged file is no reason to end a training
        return ""
    return sha256 if fingerprint(plain) == settings["weights_sha256"] else ""
