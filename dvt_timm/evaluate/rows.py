"""The rows of a table: what a model gives of an image as it is, and what denoisers make of it, from one pass.

Letters: h x w patches, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .._util.images import preprocessing_of
from .._util.modules import uncompiled
from .._util.tensors import save_tensors
from ..cleaned import as_plain, plain_intermediates
from ..features import feature_maps
from ..head import Head
from ..names import name_of
from ..offline.run import fingerprint
from ..offline.views import squeezed_size
from ..projection import RANK, Moments, PositionProjection

PLAIN, PROJECTION = "plain", "projection"
MOST_BYTES = 20 << 30  # of a cache
MAP, CLASS_TOKEN = "map", "class_token"


class MapCache:
    """A folder of maps in half precision, up to a size; what is damaged is made again.

    Args:
        folder: made if it does not exist.
        most_bytes: beyond them nothing more is kept.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.most_bytes = folder, most_bytes
        self._bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Read the tensors of a key, float32; None if there are none."""
        try:
            return {name: value.float() for name, value in load_file(self._file(key)).items()}
        except (FileNotFoundError, SafetensorError):
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep tensors while there is room; give them as they would be read, so that a second run has the same."""
        halves = {name: value.half().contiguous().cpu() for name, value in tensors.items()}
        if self._bytes < self.most_bytes:
            save_tensors(halves, self._file(key))
            self._bytes += self._file(key).stat().st_size
        return {name: value.float() for name, value in halves.items()}

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


@dataclass(frozen=True)
class Maps:
    """The maps of one image.

    Attributes:
        rows: name of a row -> [h, w, C] float32 on the CPU.
        class_token: [C] of the plain model; None if it has none.
    """

    rows: dict[str, Tensor]
    class_token: Tensor | None


class Features(NamedTuple):
    """The features of B images.

    Attributes:
        map: [B, C, h, w] float32.
        class_token: [B, C] float32; None if the model has none.
    """

    map: Tensor
    class_token: Tensor | None


class Rows:
    """A plain model, what denoisers make of its maps, and other models, side by side.

    >>> rows = Rows(model, {"head": load_head("my-head")})
    >>> rows.maps(photo).rows["head"]  # [h, w, C]

    The plain model passes once over an image, whatever the number of denoisers; each other model passes once.

    Args:
        model: a timm `VisionTransformer` or `Eva`; the denoiser of one that has it is the row "denoised".
        denoisers: name -> a head as wide as the model.
        others: name -> a model whose own maps are a row: distilled, or a mean over positions.
        size: pixels of an image's shorter side, rounded to whole patches; the model's own by default.
        squeeze: whether images are squeezed to squares, as stage 1 sees them, or keep their aspect.
        layer: block to read, through the final norm; denoisers are for the last one.
        batch_size: images in a pass.
        autocast: dtype of the passes, None for the model's.
        cache: where maps are kept, None for nowhere.

    Raises:
        ValueError: if a denoiser is not as wide as the model, or the layer is not the last one and there are denoisers;
            if two rows have one name.
    """

    def __init__(
        self,
        model: Any,
        denoisers: Mapping[str, Head] | None = None,
        *,
        others: Mapping[str, Any] | None = None,
        size: int | None = None,
        squeeze: bool = True,
        layer: int = -1,
        batch_size: int = 8,
        autocast: torch.dtype | None = None,
        cache: MapCache | None = None,
    ) -> None:
        self.model = uncompiled(model)
        own = getattr(self.model, "denoiser", None)
        self.denoisers = {**({"denoised": own} if isinstance(own, Head) else {}), **(denoisers or {})}
        self.others = {**({} if own is None or isinstance(own, Head) else {"positions": self.model}), **(others or {})}
        self._models = {PLAIN: as_plain(self.model), **self.others}
        self.size = size or min(self.model.patch_embed.img_size)
        self.squeeze, self.layer, self.batch_size = squeeze, layer, batch_size
        self.autocast, self.cache = autocast, cache
        self._weights = {name: fingerprint(each, skipped=("head.",)) for name, each in self._models.items()}
        self._check()

    @property
    def names(self) -> list[str]:
        """Name the rows, the plain one first."""
        return [PLAIN, *self.denoisers, *self.others]

    def add_projection(self, images: Iterable[Image.Image], rank: int = RANK) -> None:
        """Fit a `PositionProjection` to the plain maps of some RGB images; it becomes the row "projection"."""
        moments = Moments()
        for maps in self.over(images):
            moments.add(maps.rows[PLAIN])
        self.add({PROJECTION: PositionProjection.of(moments, rank)})

    def add(self, denoisers: Mapping[str, Head]) -> None:
        """Add rows; raise ValueError as the class does."""
        self.denoisers |= denoisers
        self._check()

    @property
    def settings(self) -> dict[str, Any]:
        """Say what the maps are of, JSON-friendly, for a report."""
        cfg = getattr(self.model, "pretrained_cfg", None) or {"architecture": type(self.model).__name__}
        places = {name: head.source.place for name, head in self.denoisers.items() if head.source is not None}
        weights = {**self._weights, **{name: fingerprint(head, skipped=()) for name, head in self.denoisers.items()}}
        return {
            "model": name_of(cfg),
            **{f"source of {name}": place for name, place in places.items()},
            **{f"SHA-256 of {name}": sha256 for name, sha256 in weights.items()},
            "pixels": f"{self.size}, {'squeezed to a square' if self.squeeze else 'the shorter side'}",
            "block": self.layer,
            "precision": str(self.autocast or "the weights' own").removeprefix("torch."),
            "maps": "rounded to float16" if self.cache else "float32",
        }

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of R, G, B in 0..1 that the model wants."""
        preprocessing = preprocessing_of(self.model, None)
        return preprocessing.mean, preprocessing.std

    def shares_positions(self, name: str) -> bool:
        """Say whether an artifact that is planted in the model is one of a row, too."""
        return self._models.get(name, self.model).pos_embed is self.model.pos_embed

    def maps(self, image: Image.Image) -> Maps:
        """Compute the maps of an RGB image by every row, or read them."""
        return next(self.over([image]))

    def over(self, images: Iterable[Image.Image]) -> Iterator[Maps]:
        """Compute the maps of RGB images, batch by batch, in their order."""
        coming = iter(images)
        while batch := list(islice(coming, self.batch_size)):
            yield from self._batch(batch)

    def grid(self, image: Image.Image) -> tuple[int, int]:
        """Give the patches (h, w) of an image."""
        height, width = self._pixels(image)
        patch = self.model.patch_embed.patch_size
        return height // patch[0], width // patch[1]

    def _check(self) -> None:
        width = self.model.embed_dim
        for name, head in self.denoisers.items():
            if head.dim != width:
                raise ValueError(f"{name} is {head.dim} channels wide, the model {width}; name a head of this model")
        depth = len(self.model.blocks)
        if not -depth <= self.layer < depth:
            raise ValueError(f"layer must be {-depth}..{depth - 1} (the model has {depth} blocks), got {self.layer}")
        if self.layer not in (-1, depth - 1) and (self.denoisers or self.others):
            raise ValueError(f"denoisers are for the last block, not for block {self.layer}; leave them or layer out")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"rows need names of their own, got {self.names}")

    def _pixels(self, image: Image.Image) -> tuple[int, int]:
        if self.squeeze:
            return squeezed_size(self.model, self.size)
        return preprocessing_of(self.model, self.size).size_of(image)

    def _batch(self, images: Sequence[Image.Image]) -> list[Maps]:
        each = {name: self._raw(name, images) for name in self._models}
        return [self._denoised({name: maps[i] for name, maps in each.items()}) for i in range(len(images))]

    @torch.inference_mode()
    def _denoised(self, raw: dict[str, dict[str, Tensor]]) -> Maps:
        plain = raw[PLAIN][MAP]
        heads = {}
        for name, head in self.denoisers.items():
            heads[name] = head(plain[None].to(next(head.parameters())))[0].float().cpu()
        others = {name: raw[name][MAP] for name in self.others}
        return Maps({PLAIN: plain, **heads, **others}, raw[PLAIN].get(CLASS_TOKEN))

    def _raw(self, name: str, images: Sequence[Image.Image]) -> list[dict[str, Tensor]]:
        """Give the maps of one model, from the cache where they are in it."""
        keys = [self._key(name, image) for image in images] if self.cache else []
        found: list[dict[str, Tensor] | None] = [None] * len(images)
        if self.cache:
            found = [self.cache.read(key) for key in keys]
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, known in enumerate(found):
            if known is None:
                by_size.setdefault(self._pixels(images[i]), []).append(i)
        for size, indices in by_size.items():
            for i, tensors in zip(indices, self._pass(name, [images[i] for i in indices], size), strict=True):
                found[i] = self.cache.write(keys[i], tensors) if self.cache else tensors
        return [tensors for tensors in found if tensors is not None]

    @torch.no_grad()
    def features(self, pixels: Tensor) -> dict[str, Features]:
        """Compute the features of images by every row, where the model is, for probes that are trained on them.

        Args:
            pixels: [B, 3, height, width], normalized, whole patches.
        """
        found = {name: self._see(name, pixels) for name in self._models}
        plain = found[PLAIN]
        for name, head in self.denoisers.items():
            clean = head(plain.map.permute(0, 2, 3, 1).to(next(head.parameters()))).permute(0, 3, 1, 2)
            found[name] = Features(clean.float(), plain.class_token)
        return {name: found[name] for name in self.names}

    @torch.inference_mode()
    def _pass(self, name: str, images: Sequence[Image.Image], size: tuple[int, int]) -> list[dict[str, Tensor]]:
        """Let a model see images, squeezed to one size in pixels."""
        preprocessing = preprocessing_of(self._models[name], self.size)
        pixels = [preprocessing.to_tensor(preprocessing.squeeze(image, size)) for image in images]
        seen = self._see(name, torch.cat(pixels))
        maps = [{MAP: fmap} for fmap in seen.map.permute(0, 2, 3, 1).cpu()]
        if seen.class_token is None:
            return maps
        return [{**each, CLASS_TOKEN: token} for each, token in zip(maps, seen.class_token.cpu(), strict=True)]

    def _see(self, name: str, pixels: Tensor) -> Features:
        """Let a model see images [B, 3, height, width]."""
        model = self._models[name]
        pixels = pixels.to(model.patch_embed.proj.weight)
        with torch.autocast(pixels.device.type, self.autocast, enabled=self.autocast is not None):
            if self.layer not in (-1, len(model.blocks) - 1):
                return Features(plain_intermediates(model, pixels, self.layer).float(), None)
            maps = feature_maps(model, pixels)
        fmap = maps.raw if maps.denoised is None else maps.denoised
        return Features(fmap.float(), None if maps.class_token is None else maps.class_token.float())

    def _key(self, name: str, image: Image.Image) -> str:
        """Hash what a map depends on: weights, positions as they are now, size and pixels."""
        model = self._models[name]
        denoiser = getattr(getattr(model, "denoiser", None), "config", None)
        settings = (denoiser, self._pixels(image), self.layer, self.autocast, image.size)
        digest = hashlib.sha256(f"{self._weights[name]} {settings}".encode())
        if model.pos_embed is not None:  # moves where an artifact is planted
            digest.update(model.pos_embed.detach().float().cpu().numpy().tobytes())
        digest.update(image.tobytes())
        return digest.hexdigest()
