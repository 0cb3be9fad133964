"""The authors' published files: heads and distilled weights, from the Hub or from a copy on disk."""

from __future__ import annotations

import hashlib
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor

from .._util.files import sha256_of
from .._util.tensors import save_tensors
from ..head import Head, HeadSource
from ..hub import client as hub
from ..manifest import Embedded, Own, Published, Weights, weights_path
from ..names import plain_model
from .heads import head_from_state, load_head, refused, save_head
from .models import save_model
from .tensors import check_finite, kind_of, read_metadata, read_pickle, read_tensors

DIGEST = "sha256_of_tensors"  # of the metadata of kept files

logger = logging.getLogger("dvt_timm")


def convert_checkpoint(source: str | Path, folder: str | Path, *, base: str | None = None) -> Path:
    """Turn an authors' `.pth` file into a folder: a head like `save_head`, distilled weights like `save_model`.

    Args:
        source: a denoiser's file, `{"denoiser": state_dict, ...}` with the keys of `DenoiserHead`, or a distilled
            model's, `{"model": state_dict, ...}` with timm's keys behind "model.".
        folder: made if it does not exist.
        base: timm name of the backbone, "arch.tag"; by default the file's name without its suffix, as the authors
            name their files.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if there is no file at `source`.
        ValueError: if it is none of these files, is damaged, would run code, or does not fit `base`, or if timm knows
            no ViT `base`.
        OSError: if the folder cannot be written.
    """
    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(f"{source} not found; give one of the authors' .pth files")
    base = base or source.name.removesuffix(".pth")
    try:
        plain = plain_model(base)
    except ValueError as error:
        raise ValueError(f"{source}: {error}; name the base of the file: base='arch.tag'") from error
    state = read_pickle(source)
    if kind_of(state) != "head":
        return save_model(_distilled_model(base, _without_classifier(state, base), plain, source), folder)
    head = head_from_state(state, {}, source)
    if head.dim != plain.embed_dim:
        raise ValueError(
            f"{source} holds a head {head.dim} channels wide, {base} has {plain.embed_dim}; name the base it is for"
        )
    return save_head(head, folder, base=base)


def _distilled_model(base: str, state: dict[str, Tensor], plain: Any, source: Path) -> Any:
    """Build a plain model with these weights, at the image size of their position embedding.

    Raises:
        ValueError: if they do not fit, or are not finite.
    """
    check_finite(state, source)
    if "pos_embed" not in state or state["pos_embed"].ndim != 3:
        raise ValueError(f"{source} does not fit {base}: it holds no 'pos_embed' (1, tokens, dim)")
    side = math.isqrt(state["pos_embed"].shape[1] - (0 if plain.no_embed_class else plain.num_prefix_tokens))
    try:
        model = timm.create_model(
            base,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": state, "num_classes": 0},
            img_size=side * plain.patch_embed.patch_size[0],
            dynamic_img_size=True,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{source} does not fit {base}: {error}") from error
    model.pretrained_cfg.pop("state_dict", None)  # timm 1.0.21 would try to write it as JSON
    return model


def _without_classifier(state: dict[str, Tensor], base: str) -> dict[str, Tensor]:
    """Leave out the classifier: distillation trains the features alone, and one in the file is still the base's."""
    prefix = f"{get_pretrained_cfg(base).classifier}."
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


def published_head(weights: Weights, base: str, cache_dir: str | Path | None = None) -> Head:
    """Read a head from the authors' repository, from this package's own files, or from a user's source.

    Args:
        weights: where the head's weights are.
        base: timm name of the backbone that it was trained on, where the source does not say so itself.
        cache_dir: of the Hub client.

    Raises:
        OSError: if it is not to be had.
        ValueError: if it is damaged.
    """
    if isinstance(weights, Own):
        return load_head(weights.source, cache_dir=cache_dir)
    state, source = _tensors_of(weights, base, cache_dir)
    head = head_from_state(state, {}, source.place)
    head.source = source
    return head


def published_weights(weights: Weights, base: str, cache_dir: str | Path | None = None) -> dict[str, Tensor]:
    """Read distilled weights, under timm's keys, without a classifier; arguments and errors are `published_head`'s."""
    if isinstance(weights, Own):
        raise ValueError(f"{weights.source} holds a head, not distilled weights; name another")
    state, source = _tensors_of(weights, base, cache_dir)
    return _without_classifier(check_finite(state, source.place), base)


def _tensors_of(
    weights: Embedded | Published, base: str, cache_dir: str | Path | None
) -> tuple[dict[str, Tensor], HeadSource]:
    """Read the tensors of a file, and say where they come from."""
    if isinstance(weights, Embedded):
        path = weights_path(weights.file)
        source = HeadSource(str(path), sha256=weights.sha256, base=base)
        return {key: value.float() for key, value in read_tensors(path).items()}, source
    fetch = partial(hub.fetch, weights.repo, weights.file, cache_dir=cache_dir, sha256=weights.sha256)
    path = fetch(revision=weights.revision, check_cached=False)
    place, commit = f"{weights.repo}/{weights.file}", hub.commit_of(path)
    kept = _place_beside(path, weights.sha256)
    if (state := _read_kept(kept)) is None:
        path = fetch(revision=commit)
        with refused(f"{hub.HUB_PREFIX}{place}"):
            state = read_pickle(path)
        _keep(state, kept)
    sha256 = weights.sha256 or hub.recorded_sha256(path) or sha256_of(path)
    return state, HeadSource(f"{hub.HUB_PREFIX}{place}", commit, sha256, base)


def _place_beside(path: Path, sha256: str | None) -> Path:
    """Name the file that keeps the tensors of a cached `.pth` as safetensors, so that the `.pth` is read once."""
    version = sha256 or hub.recorded_sha256(path) or hub.commit_of(path)
    return hub.storage_of(path) / "converted" / f"{path.parent.name}-{path.stem}-{version}.safetensors"


def _read_kept(kept: Path) -> dict[str, Tensor] | None:
    """Read the tensors that are kept, None if there are none or they are damaged."""
    if not kept.is_file():
        return None
    try:
        state = read_tensors(kept)
        if read_metadata(kept).get(DIGEST) == _digest_of(state):
            return state
    except ValueError:
        pass
    logger.warning("%s is damaged, or an earlier version's, and is made again", kept)
    return None


def _keep(state: dict[str, Tensor], kept: Path) -> None:
    """Keep tensors if the cache can be written; where it is full or read-only, the weights load all the same."""
    try:
        kept.parent.mkdir(exist_ok=True)
        state = {key: value.contiguous() for key, value in state.items()}
        save_tensors(state, kept, {"format": "pt", DIGEST: _digest_of(state)})
    except OSError as error:
        logger.info("%s is not kept: %s", kept, error)


def _digest_of(state: dict[str, Tensor]) -> str:
    """Hash names and bytes of tensors (SHA-256)."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
