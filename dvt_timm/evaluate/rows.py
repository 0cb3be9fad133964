"""The rows of a table: what a model gives of an image as it is, and what denoisers make of it, from one pass.

Letters: h x w patches, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .._util.images import preprocessing_of
from .._util.modules import architecture_of, uncompiled
from .._util.team import Alone, Team
from ..cleaned import as_plain, plain_intermediates
from ..features import check_patches, feature_maps
from ..head import Head
from ..names import name_of
from ..offline.run import fingerprint
from ..offline.views import squeezed_size
from ..positions import PositionViews
from ..projection import RANK, Moments, PositionProjection
from .cache import MapCache

PLAIN, DENOISED, POSITIONS, PROJECTION = "plain", "denoised", "positions", "projection"  # rows that are not named
MAP, CLASS_TOKEN = "map", "class_token"


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
        team: the processes that share the work of a task, which all of them call; this one alone by default.

    Raises:
        ValueError: if a denoiser is not as wide as the model, or the layer is not the last one and there are denoisers;
            if two rows have one name; if another model has other patches, strides or colors than the model.
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
        team: Team | None = None,
    ) -> None:
        self.model = uncompiled(model)
        self.size = size or min(self.model.patch_embed.img_size)
        self._squeezed = squeezed_size(self.model, size) if squeeze else None  # (H, W) of every image
        self.squeeze, self.layer, self.batch_size = squeeze, layer, batch_size
        self.autocast, self.cache, self.team = autocast, cache, team or Alone()
        self.notes: dict[str, Any] = {}  # more of the settings
        self.is_last = self._check_layer(bool(denoisers or others))
        own = getattr(self.model, "denoiser", None) if self.is_last else None
        head = {DENOISED: own} if isinstance(own, Head) else {}
        mean = {POSITIONS: self.model} if own is not None and not head else {}
        self.denoisers: dict[str, Head] = _joined(head, denoisers or {})
        self.others: dict[str, Any] = _joined(mean, others or {})
        self._models = {PLAIN: as_plain(self.model), **self.others}
        self._weights = {name: fingerprint(each, skipped=("head.",)) for name, each in self._models.items()}
        self._architectures = {name: architecture_of(each) for name, each in self._models.items()}
        self._check()

    @property
    def names(self) -> list[str]:
        """Name the rows, the plain one first."""
        return [PLAIN, *self.denoisers, *self.others]

    def add_projection(self, images: Iterable[Image.Image], rank: int = RANK) -> None:
        """Fit a `PositionProjection` to the plain maps of some RGB images; it becomes the row "projection".

        Of several processes each gives images of its own, and the projection is that of all.

        Raises:
            ValueError: if there is no image, or the rank is out of range.
        """
        moments, count = Moments(), 0
        for maps in self.over(images):
            moments.add(maps.rows[PLAIN])
            count += 1
        parts = self.team.gather({self.team.rank: (moments, count)}).values()
        moments, count = Moments.joined(part for part, _ in parts), sum(of_part for _, of_part in parts)
        self.add({PROJECTION: PositionProjection.of(moments, rank)})
        self.notes[PROJECTION] = f"{rank} dimensions, found on {count} images of this data, without their labels"

    def add(self, denoisers: Mapping[str, Head]) -> None:
        """Add rows; raise ValueError as the class does."""
        self.denoisers = _joined(self.denoisers, denoisers)
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
            **{f"views of {name}": len(views.windows) - 1 for name, views in self._averages()},
            "pixels": _pixels_in_words(self.size, self._squeezed),
            "block": self.layer,
            "precision": str(self.autocast or "the weights' own").removeprefix("torch."),
            "maps": "rounded to float16" if self.cache else "float32",
            **self.notes,
        }

    def _averages(self) -> Iterator[tuple[str, PositionViews]]:
        """Give the windows of the other models that average over views of their positions."""
        for name, other in self.others.items():
            if isinstance(views := getattr(other, "denoiser", None), PositionViews):
                yield name, views

    def width(self, name: str) -> int:
        """Give the channels of a row."""
        return int(self._models.get(name, self.model).embed_dim)

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
        grid: tuple[int, int] = self.model.patch_embed.dynamic_feat_size(self._pixels(image))
        return grid

    def _check_layer(self, has_more: bool) -> bool:
        """Say whether the block to read is the last one; raise ValueError if there is none, or it is not to be read."""
        depth = len(self.model.blocks)
        if not -depth <= self.layer < depth:
            raise ValueError(f"layer must be {-depth}..{depth - 1} (the model has {depth} blocks), got {self.layer}")
        is_last = self.layer in (-1, depth - 1)
        if has_more and not is_last:
            raise ValueError(f"denoisers are for the last block, not for block {self.layer}; leave them or layer out")
        return is_last

    def _check(self) -> None:
        width = self.model.embed_dim
        for name, head in self.denoisers.items():
            if head.dim != width:
                raise ValueError(f"{name} is {head.dim} channels wide, the model {width}; name a head of this model")
            head.to(self.model.patch_embed.proj.weight.device)
        if len(set(self.names)) < len(self.names) or any(set(name) & set("|$\n") for name in self.names):
            raise ValueError(f"rows need names of their own, without | and $, got {self.names}")
        seen = {name: self._sees(each) for name, each in self._models.items()}
        for name, other in seen.items():
            if other != seen[PLAIN]:
                raise ValueError(
                    f"{name} sees images otherwise than the model (patch, stride, mean, std): {other}, not "
                    f"{seen[PLAIN]}; evaluate it in a report of its own"
                )

    @staticmethod
    def _sees(model: Any) -> tuple[Any, ...]:
        preprocessing = preprocessing_of(model, None)
        stride = tuple(model.patch_embed.proj.stride)
        return tuple(model.patch_embed.patch_size), stride, preprocessing.mean, preprocessing.std

    def _pixels(self, image: Image.Image) -> tuple[int, int]:
        """Give (height, width) in pixels of an image as models see it; raise ValueError if that is too large."""
        pixels = self._squeezed or preprocessing_of(self.model, self.size).size_of(image)
        check_patches(self.model, *pixels)
        return pixels

    def _batch(self, images: Sequence[Image.Image]) -> list[Maps]:
        each = {name: self._raw(name, images) for name in self._models}
        return [self._denoised({name: maps[i] for name, maps in each.items()}) for i in range(len(images))]

    @torch.inference_mode()
    def _denoised(self, raw: dict[str, dict[str, Tensor]]) -> Maps:
        plain = raw[PLAIN][MAP]
        heads = {}
        for name, head in self.denoisers.items():
            heads[name] = _finite(name, head(plain[None].to(next(head.parameters())))[0].float().cpu())
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
        maps = [{MAP: _finite(name, fmap)} for fmap in seen.map.permute(0, 2, 3, 1).cpu()]
        if seen.class_token is None:
            return maps
        return [{**each, CLASS_TOKEN: token} for each, token in zip(maps, seen.class_token.cpu(), strict=True)]

    def _see(self, name: str, pixels: Tensor) -> Features:
        """Let a model see images [B, 3, height, width]."""
        model = self._models[name]
        pixels = pixels.to(model.patch_embed.proj.weight)
        with torch.autocast(pixels.device.type, self.autocast, enabled=self.autocast is not None):
            if not self.is_last:
                return Features(plain_intermediates(model, pixels, self.layer).float(), None)
            maps = feature_maps(model, pixels)
        fmap = maps.raw if maps.denoised is None else maps.denoised
        return Features(fmap.float(), None if maps.class_token is None else maps.class_token.float())

    def _key(self, name: str, image: Image.Image) -> str:
        """Hash what a map depends on: weights, architecture, positions as they are now, size and pixels."""
        model = self._models[name]
        seen = (*self._sees(model), preprocessing_of(model, None).interpolation)
        settings = (seen, self._pixels(image), self.layer, self.autocast, image.size)
        digest = hashlib.sha256(f"{self._weights[name]} {self._architectures[name]} {settings}".encode())
        if model.pos_embed is not None:  # moves where an artifact is planted
            digest.update(model.pos_embed.detach().float().cpu().numpy().tobytes())
        digest.update(image.tobytes())
        return digest.hexdigest()


def _pixels_in_words(size: int, squeezed: tuple[int, int] | None) -> str:
    if squeezed is None:
        return f"{size}, the shorter side"
    return f"{size}, squeezed to a square" if squeezed[0] == squeezed[1] else f"{squeezed[0]} x {squeezed[1]}, squeezed"


def _joined(some: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Join rows; raise ValueError if a name is in both."""
    if twice := some.keys() & others.keys():
        raise ValueError(f"rows need names of their own, there are two of {', '.join(sorted(twice))}; rename one")
    return {**some, **others}


def _finite(name: str, fmap: Tensor) -> Tensor:
    """Give a map back; raise ValueError if a value of it is not finite."""
    if not bool(fmap.isfinite().all()):
        raise ValueError(f"the maps of {name} hold NaN or Inf; check its weights, or leave half precision out")
    return fmap
