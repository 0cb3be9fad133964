"""The features of many images: read ahead by threads, seen in batches of one size, given one by one.

Letters: h x w patches, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from ._util.errors import warn_caller
from ._util.folders import images_in
from ._util.images import ImageError, as_image, check_aspect, pixels_of, preprocessing_of, read_hashed
from ._util.threads import made_ahead
from .features import FeatureMaps, check_patches, check_size, layers_of, maps_and_layers, vit_of

Photo: TypeAlias = Image.Image | str | os.PathLike[str]
OnError: TypeAlias = Literal["raise", "skip"] | Callable[[ImageError], object]

BATCH_SIZE = 8
WINDOW = 4  # batches: how far the image that waits for others of its size may fall behind
UNFIT = (MemoryError, RuntimeError)  # the CPU's out-of-memory error is a RuntimeError


@dataclass(frozen=True, eq=False)
class Extracted:
    """The features of one image, after the model's final norm, on the CPU.

    Attributes:
        index: its number among the images as given, from 0.
        path: where it was read; None for an image that was given itself.
        sha256: of the file's bytes; None for an image that was given itself.
        original_size: (height, width) in pixels, upright.
        pixels: [H, W, 3] uint8: the image as the model saw it, before normalization.
        raw: [h, w, C], the patch tokens of the backbone.
        denoised: [h, w, C], the same from the denoiser; None for a model without one.
        layers: block -> [h, w, C] of each block that was asked for. That of the last one is `denoised`, or `raw` of a
            plain model; those before it are the backbone's own, or means of a model that averages over positions.
        class_token: [C]; None for a model without one.
    """

    index: int
    path: Path | None
    sha256: str | None
    original_size: tuple[int, int]
    pixels: Tensor
    raw: Tensor
    denoised: Tensor | None
    layers: dict[int, Tensor]
    class_token: Tensor | None


def extract(
    model: Any,
    images: Iterable[Photo] | str | os.PathLike[str],
    *,
    size: int | None = None,
    layers: Sequence[int] = (),
    batch_size: int = BATCH_SIZE,
    half: bool = False,
    autocast: torch.dtype | None = None,
    threads: int | None = None,
    on_error: OnError = "raise",
) -> Iterator[Extracted]:
    """Compute the features of many images, one after the other as they are given.

    >>> for photo in extract(model, "photos/"):
    ...     photo.path, photo.denoised  # [h, w, C]

    Images keep their shapes, as with `preprocess`; those that come out of one size share a pass. At most
    `5 * batch_size` of them are held at a time, so any number may come, from a generator too.

    Args:
        model: a timm `VisionTransformer` or `Eva` in evaluation mode that takes images of any size
            (`dynamic_img_size=True`), denoised, averaged or plain, on any device.
        images: PIL images and paths, in any iterable; or a folder, whose JPEG, PNG and WebP files, also of the folders
            in it, are taken in sorted order.
        size: pixels of the shorter side, rounded to whole patches; the model's own by default.
        layers: blocks whose maps are wanted besides, counted from 0, or from -1 backwards.
        batch_size: images in a pass; where a batch does not fit in memory, it is halved, with a warning.
        half: give float16 rather than float32.
        autocast: dtype of the passes, None for the model's.
        threads: that read images ahead; 0 to read each when it is needed, None for as many as the processor suggests.
        on_error: what becomes of an image that cannot be processed: "raise" its `ImageError`, "skip" it with a warning,
            or a function that is called with the error, which skips it too.

    Returns:
        An iterator of `Extracted`.

    Raises:
        NotADirectoryError: if `images` is a path, and no folder is there.
        ImageError: where an image comes that cannot be read, is too elongated or too large, does not fit in memory, or
            whose features are not finite, and `on_error` is "raise".
        TypeError: if the model has no patch tokens, an argument is of another type, or one of `images` is neither an
            image nor a path.
        ValueError: if an argument is out of range, or images of the size do not fit the model.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number, at least 1, got {batch_size!r}")
    if isinstance(images, Image.Image):
        raise TypeError("images must be several, got one image; pass [image]")
    if isinstance(layers, int):
        raise TypeError(f"layers must be several numbers of blocks, got {layers!r}; pass [{layers!r}]")
    if not (autocast is None or isinstance(autocast, torch.dtype)):
        raise TypeError(f"autocast must be a torch.dtype, torch.bfloat16 say, or None, got {autocast!r}")
    if on_error not in ("raise", "skip") and not callable(on_error):
        raise ValueError(f'on_error must be "raise", "skip" or a function of the error, got {on_error!r}')
    extractor = _Extractor(model, size, layers, torch.float16 if half else torch.float32, autocast)
    if threads is not None and (not isinstance(threads, int) or threads < 0):
        raise ValueError(f"threads must be a whole number, at least 0, or None, got {threads!r}")
    photos = images_in(images) if isinstance(images, str | os.PathLike) else images
    reads = made_ahead(extractor.read, enumerate(photos), threads, most=batch_size)
    return _given(_in_order(extractor, reads, batch_size), on_error)


@dataclass(frozen=True)
class _Read:
    """An image that was read and resized."""

    index: int
    name: str  # in errors
    path: Path | None
    sha256: str | None
    original_size: tuple[int, int]
    pixels: Tensor  # [H, W, 3] uint8


@dataclass(frozen=True)
class _Failed:
    """What became of an image that cannot be processed."""

    index: int
    error: ImageError


class _Extractor:
    """Reads an image, and lets the model see a batch of them."""

    def __init__(
        self, model: Any, size: int | None, layers: Sequence[int], dtype: torch.dtype, autocast: torch.dtype | None
    ) -> None:
        check_size(size)
        self.model = vit_of(model, "extract")
        self.layers, self.dtype, self.autocast = layers_of(self.model, layers), dtype, autocast
        self.preprocessing = preprocessing_of(self.model, size)
        check_patches(self.model, self.preprocessing.size, self.preprocessing.size)

    def read(self, numbered: tuple[int, Photo]) -> _Read | _Failed:
        """Read an image; several threads may do so at once."""
        index, photo = numbered
        try:
            return self._read(index, photo)
        except ImageError as error:
            return _Failed(index, error)

    def _read(self, index: int, photo: Photo) -> _Read:
        path = Path(photo) if isinstance(photo, str | os.PathLike) else None
        name = f"image {index}" if path is None else str(path)
        try:
            image, sha256 = (as_image(photo), None) if path is None else read_hashed(path)
            check_aspect(name, image)
            check_patches(self.model, *self.preprocessing.size_of(image))
            pixels = pixels_of(self.preprocessing.resize(image))
        except ImageError:
            raise
        except MemoryError as error:
            raise self._unfit(name, error) from error
        except ValueError as error:
            raise ImageError(f"{name}: {error}") from error
        return _Read(index, name, path, sha256, (image.height, image.width), pixels)

    def see(self, batch: list[_Read]) -> dict[int, Extracted | _Failed]:
        """Compute the features of images of one size, by their indices; of a batch that does not fit, in halves."""
        try:
            return self._pass(batch)
        except UNFIT as error:
            unfit = self._unfit(batch[0].name, error)
        if len(batch) == 1:
            return {batch[0].index: _Failed(batch[0].index, unfit)}
        warn_caller(f"a batch of {len(batch)} images does not fit and is halved; pass a smaller batch_size")
        middle = len(batch) // 2
        return self.see(batch[:middle]) | self.see(batch[middle:])

    def _unfit(self, name: str, error: BaseException) -> ImageError:
        reason, size = str(error) or type(error).__name__, self.preprocessing.size
        return ImageError(f"{name}: {reason} at size {size}; if memory is short, pass a smaller one")

    def _pass(self, batch: list[_Read]) -> dict[int, Extracted | _Failed]:
        device = self.model.patch_embed.proj.weight.device
        pixels = torch.stack([read.pixels for read in batch]).to(device)
        passing = nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)
        with torch.inference_mode(), passing:
            maps, layers = maps_and_layers(self.model, self.preprocessing.normalize(pixels), self.layers)
        return {read.index: self._result(i, read, maps, layers) for i, read in enumerate(batch)}

    def _result(self, i: int, read: _Read, maps: FeatureMaps, layers: dict[int, Tensor]) -> Extracted | _Failed:
        """Take image i out of what a batch gave."""
        raw = self._copy(maps.raw[i])
        denoised = None if maps.denoised is None else self._copy(maps.denoised[i])
        last = {len(self.model.blocks) - 1: raw if denoised is None else denoised}
        by_layer = {layer: last[layer] if layer in last else self._copy(fmap[i]) for layer, fmap in layers.items()}
        if not all(bool(fmap.isfinite().all()) for fmap in (raw, *last.values(), *by_layer.values())):
            return _Failed(read.index, self._not_finite(read.name))
        token = None if maps.class_token is None else self._copy(maps.class_token[i])
        about = (read.index, read.path, read.sha256, read.original_size, read.pixels)
        return Extracted(*about, raw, denoised, by_layer, token)

    def _copy(self, features: Tensor) -> Tensor:  # [C, h, w] -> [h, w, C]; [C] -> [C]
        """Copy features to the CPU, as tensors that may take part in training."""
        if features.ndim == 3:
            features = features.permute(1, 2, 0)
        return features.to("cpu", self.dtype, copy=True).contiguous()

    def _not_finite(self, name: str) -> ImageError:
        out = ", or leave half precision out" if self.dtype == torch.float16 or self.autocast is not None else ""
        return ImageError(f"{name}: the model's features hold NaN or Inf; check its weights{out}")


def _in_order(
    extractor: _Extractor, reads: Iterable[_Read | _Failed], batch_size: int
) -> Generator[Extracted | _Failed, None, None]:
    """Give what becomes of every image, in their order."""
    ready: dict[int, Extracted | _Failed] = {}
    first = 0  # the next to give
    for batch in _batches(reads, batch_size):
        ready |= {batch.index: batch} if isinstance(batch, _Failed) else extractor.see(batch)
        while first in ready:
            yield ready.pop(first)
            first += 1


def _batches(reads: Iterable[_Read | _Failed], batch_size: int) -> Iterator[list[_Read] | _Failed]:
    """Put images of one size together.

    They wait until a batch is full, or the one that has waited longest is `WINDOW` batches behind.
    """
    waiting: dict[torch.Size, list[_Read]] = {}  # by size, that of the image that has waited longest first
    for read in reads:
        if isinstance(read, _Failed):
            yield read
        else:
            waiting.setdefault(read.pixels.shape, []).append(read)
            if len(waiting[read.pixels.shape]) == batch_size:
                yield waiting.pop(read.pixels.shape)
        if waiting and read.index - next(iter(waiting.values()))[0].index + 1 >= WINDOW * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _given(found: Generator[Extracted | _Failed, None, None], on_error: OnError) -> Iterator[Extracted]:
    """Give the features, and do with the errors what was wished."""
    with closing(found):  # an error may outlive it, the threads should not
        for each in found:
            if isinstance(each, Extracted):
                yield each
            elif callable(on_error):
                on_error(each.error)
            elif on_error == "skip":
                warn_caller(f"skipped {each.error}")
            else:
                raise each.error
