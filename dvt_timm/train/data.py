"""What stages 2 and 3 read, and in which order: pairs of features from a store or solved on the fly, and images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from .._util.errors import RunError
from .._util.files import sha256_of
from .._util.images import ImageError, Preprocessing, check_aspect, read_hashed, read_image, reason_of
from .._util.threads import made_ahead
from ..offline import Decomposition, ImageFitter, Team, ViewPairs
from ..offline.calibration import UNFIT, calibrated, images_to_calibrate_on, pulling
from ..offline.run import seed_of, settings_of, unique
from ..offline.store import check_index, check_pair

Sample = Any  # a tensor, or a tuple of tensors
Draw = Callable[[int, torch.Generator], Sample]  # index -> its sample as training sees it
Skip = Callable[[int, ImageError], None]  # told of the index of a sample that cannot be read, and why
MOST_HELD_OUT, HELD_OUT_SHARE = 64, 20  # one in 20 samples is held out, at most 64
UNREADABLE = (OSError, ValueError)  # the latter of a name with NUL in it
MOST_IN_A_ROW = 100  # samples that cannot be read: more are no accident


class Samples(Protocol):
    """A map-style dataset of known length."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample: ...

    def path(self, i: int) -> Path:
        """Say which image file a sample is of; it need not exist any more."""


class OnlinePairs:
    """Pairs (raw, clean) [h, w, C] whose targets are solved each time that they are asked for.

    Args:
        paths: of images.
        fitter: model, views and solver.
        calibrate: as `fit_store` takes it; by default 40, or 0, as in a new store.

    Raises:
        ValueError: if `calibrate` does not go with the fitter.
        ImageError: when a pair is asked for whose image cannot be read.
        IndexError: when one is asked for that the image does not have.
    """

    def __init__(self, paths: Sequence[str | PathLike[str]], fitter: ImageFitter, calibrate: int | None = None) -> None:
        self.paths = list(map(Path, paths))
        self.calibrate = images_to_calibrate_on(fitter, len(self.paths)) if calibrate is None else calibrate
        self.fitter = pulling(fitter, self.calibrate)
        self.settings = settings_of(self.fitter, False, self.calibrate)  # a store of them would have the same

    @cached_property
    def contents(self) -> list[tuple[Path, str]]:
        """The images that can be read, each content once, with its SHA-256; it takes a read of each."""
        return unique(self.paths, set(), skip=lambda *_: None)

    def prepare(self, folder: Path, team: Team, progress: bool = False) -> None:
        """Find what the images share, or read it from the folder, and pull to it from now on."""
        if self.calibrate:
            self.fitter = calibrated(self.fitter, self.contents, self.calibrate, folder, team, progress)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        solution, _ = self._fitted(i)
        return solution.raw.float(), solution.semantics.float()

    @property
    def num_pairs(self) -> int:
        """What `FeatureStore.num_pairs` says of a store."""
        return 1 + self.fitter.view_pairs

    @property
    def shape(self) -> tuple[int, int, int]:
        """What `FeatureStore.shape` says of a store, of the first image that can be read; nothing is solved for it."""
        xy = self.fitter.views_of(self._first()).xy  # [V, h, w, 2]
        return xy.shape[1], xy.shape[2], self.fitter.model.embed_dim

    def check(self, i: int) -> None:
        """Raise ImageError unless image i can be read."""
        self._image(i)

    def pair(self, i: int, k: int) -> tuple[Tensor, Tensor]:
        """Solve what `FeatureStore.pair` reads from a store."""
        check_pair(k, self.num_pairs)
        _, pairs = self._fitted(i)
        return pairs.raw[k].float(), pairs.clean[k].float()

    def raw(self, i: int) -> Tensor:
        """Compute what `FeatureStore.raw` reads from a store; nothing is solved for it."""
        return self.fitter.raw(self._image(i))

    def _fitted(self, i: int) -> tuple[Decomposition, ViewPairs]:
        check_index(i)
        path = self.paths[i]
        image, sha256 = read_hashed(path)
        check_aspect(path, image)
        try:
            return self.fitter.with_pairs(image, seed_of(sha256))
        except UNFIT as error:
            raise ImageError(f"{path}: {reason_of(error)}") from error

    def _image(self, i: int) -> Image.Image:
        image = read_image(self.paths[i])
        check_aspect(self.paths[i], image)
        return image

    def _first(self) -> Image.Image:
        errors = []
        for i in range(len(self)):
            try:
                return self._image(i)
            except ImageError as error:
                errors.append(error)
        raise errors[0]

    def path(self, i: int) -> Path:
        """Say which image file pair i is of."""
        return self.paths[i]


class Images:
    """Images [3, H, W], squeezed to one size as in stage 1, normalized.

    Raises:
        ImageError: when an image is asked for that cannot be read.
    """

    def __init__(
        self, paths: Sequence[str | PathLike[str]], preprocessing: Preprocessing, size: tuple[int, int]
    ) -> None:
        """Take `size` as (H, W) in pixels."""
        self.paths, self.preprocessing, self.size = list(map(Path, paths)), preprocessing, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        return self.preprocessing.to_tensor(self.preprocessing.squeeze(self._image(i), self.size))[0]

    def check(self, i: int) -> None:
        """Raise ImageError unless image i can be read."""
        self._image(i)

    def _image(self, i: int) -> Image.Image:
        check_index(i)
        image = read_image(self.paths[i])
        check_aspect(self.paths[i], image)
        return image

    def path(self, i: int) -> Path:
        """Say which file image i is."""
        return self.paths[i]


def split(
    samples: Samples,
    held_out: int | None,
    seed: int,
    is_readable: Callable[[int], bool] = lambda i: True,
    file: Callable[[int], Path] | None = None,
) -> tuple[list[int], list[int]]:
    """Draw at random the indices to train on, and those to hold out, of samples that can be read.

    Where samples are read from files, a copy of one that is held out is in neither.

    Raises:
        ValueError: if nothing is left to train on.
    """
    count = held_out or min(max(len(samples) // HELD_OUT_SHARE, 1), MOST_HELD_OUT)
    if len(samples) <= count:
        raise ValueError(
            f"{len(samples)} samples are too few to hold {count} out and train on the rest; give more images"
        )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    readable, originals = filter(is_readable, order), _Originals(file)
    kept = list(islice(filter(originals.add, readable), count))
    trained = sorted(i for i in set(order) - set(kept) if not originals.has_copy(i))
    if not trained:
        raise ValueError(
            f"{len(samples)} samples are {len(kept)} images and copies of them, too few to hold {count} out and train "
            "on the rest; give more images"
        )
    return trained, sorted(kept)


class _Originals:
    """Files, and which others hold the same to the byte: of those only such of their sizes are read."""

    def __init__(self, file: Callable[[int], Path] | None) -> None:
        self._file, self._sizes, self._hashes = file, set[int](), set[str]()

    def add(self, i: int) -> bool:
        """Take a file, unless it is a copy of one taken before: then False."""
        if self._file is None:
            return True
        if self.has_copy(i):
            return False
        with suppress(*UNREADABLE):
            self._sizes.add(self._file(i).stat().st_size)
            self._hashes.add(sha256_of(self._file(i)))
        return True

    def has_copy(self, i: int) -> bool:
        """Say whether a file is a copy of one that was taken; one that cannot be read is none."""
        if self._file is None:
            return False
        path = self._file(i)
        try:
            return path.stat().st_size in self._sizes and sha256_of(path) in self._hashes
        except UNREADABLE:
            return False


class Stream:
    """Goes through samples again and again, each time in another order; a position always holds the same sample.

    Where that is of an image that cannot be read, it holds the next one of its order that can.

    Several threads may read it at once if they may read the samples.

    Args:
        draw: reads a sample.
        indices: of the samples.
        seed: decides their orders.
        skip: called when an image cannot be read, once in each thread that meets it first.

    Raises:
        RunError: if no image can be read, or many in a row cannot.
    """

    def __init__(self, draw: Draw, indices: Sequence[int], seed: int, skip: Skip = lambda i, error: None) -> None:
        self.draw, self.indices, self.seed, self.skip = draw, indices, seed, skip
        self._broken: set[int] = set()
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, position: int) -> Sample:
        epoch, place = divmod(position, len(self.indices))
        order, errors = self._order(epoch), list[ImageError]()
        for step in range(len(order)):
            index = self.indices[order[(place + step) % len(order)]]
            if index in self._broken:
                continue
            try:
                return self.draw(index, torch.Generator().manual_seed(derived_seed(self.seed, epoch, place)))
            except ImageError as error:
                self._broken.add(index)
                self.skip(index, error)
                errors.append(error)
            if len(errors) == MOST_IN_A_ROW:
                break
        said = f", the last because: {errors[-1]}" if errors else ""
        raise RunError(f"none of {len(errors) or len(order)} images in a row can be read{said}")

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        return torch.randperm(len(self.indices), generator=generator).tolist()


def positions(
    first: int, last: int, batch_size: int, accumulation: int = 1, rank: int = 0, num_ranks: int = 1
) -> Iterator[range]:
    """Give one process's batches, from a step on; together the processes take the positions of every step once.

    Args:
        first, last: steps, the latter not included.
        batch_size: samples of one step, over all processes and accumulated batches.
    """
    size = batch_size // (accumulation * num_ranks)
    for step in range(first, last):
        for part in range(accumulation):
            start = step * batch_size + (part * num_ranks + rank) * size
            yield range(start, start + size)


def batches(stream: Stream, places: Iterable[range], workers: int, pin_memory: bool) -> Iterator[Sample]:
    """Give the stream's batches in order; each worker is a thread that makes one ahead.

    They are threads since reading is copying and decoding, which need no interpreter: processes would copy once more.
    """

    def batch(of: range) -> Sample:
        return collate([stream[position] for position in of], pin_memory)

    return made_ahead(batch, places, workers, most=workers)


def collate(samples: Sequence[Sample], pin_memory: bool = False) -> Sample:
    """Stack samples, part by part; `pin_memory` puts those on the CPU into page-locked memory.

    Raises:
        ValueError: if their shapes differ.
    """
    if isinstance(samples[0], tuple):
        return tuple(collate(parts, pin_memory) for parts in zip(*samples, strict=True))
    shapes = sorted({tuple(sample.shape) for sample in samples})
    if len(shapes) > 1:
        raise ValueError(f"the samples of a batch must have one shape, got {shapes}; fit with keep_aspect=False")
    if not (pin_memory and samples[0].device.type == "cpu"):
        return torch.stack(list(samples))
    stacked = torch.empty((len(samples), *shapes[0]), dtype=samples[0].dtype, pin_memory=True)
    return torch.stack(list(samples), out=stacked)


def digest_of(names: Iterable[object]) -> str:
    """Hash a list of names (SHA-256)."""
    return hashlib.sha256("\n".join(map(str, names)).encode(errors="surrogateescape")).hexdigest()


def derived_seed(*numbers: int) -> int:
    """Make a seed of its own for every combination of whole numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 0x9E3779B97F4A7C15 + number + 1) & (2**63 - 1)
    return seed
