"""Samples: each is taken once, in an order that follows from the seed; pairs online are those of a store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fitter, photos
from PIL import Image
from torch import Tensor
from training import equal

from dvt_timm._util.errors import RunError
from dvt_timm._util.files import sha256_of
from dvt_timm._util.images import ImageError
from dvt_timm.offline import fit_store, open_store
from dvt_timm.train import OnlinePairs, data
from dvt_timm.train.data import Stream, batches, collate, positions, split


@pytest.mark.parametrize(("accumulation", "num_ranks"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_position_is_taken_once(accumulation: int, num_ranks: int) -> None:
    parts = [list(positions(3, 5, 8, accumulation, rank, num_ranks)) for rank in range(num_ranks)]
    assert all(len(batch) == 8 // (accumulation * num_ranks) for part in parts for batch in part)
    first = [batch for part in parts for batch in part[:accumulation]]
    assert sorted(position for batch in first for position in batch) == list(range(24, 32))
    assert sorted(position for part in parts for batch in part for position in batch) == list(range(24, 40))
    assert len(parts[0]) == 2 * accumulation


def test_a_stream_shuffles_every_epoch_anew() -> None:
    stream = Stream(lambda i, _: i, [2, 3, 5, 7], seed=0)
    epochs = [[stream[4 * epoch + place] for place in range(4)] for epoch in range(6)]
    assert all(sorted(epoch) == [2, 3, 5, 7] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 2
    assert [stream[4 + place] for place in range(4)] == epochs[1]


def test_the_next_sample_takes_the_place_of_one_that_cannot_be_read() -> None:
    """At every position, whatever was read before, with the draws of its own position."""
    broken, told = {3, 7}, list[int]()

    def draw(i: int, generator: torch.Generator) -> tuple[int, float]:
        value = float(torch.rand((), generator=generator))
        if i in broken:
            raise ImageError(f"{i}.png: broken")
        return i, value

    indices = [2, 3, 5, 7, 11]
    stream = Stream(draw, indices, 0, skip=lambda i, error: told.append(i))
    whole = Stream(lambda i, generator: (i, float(torch.rand((), generator=generator))), indices, 0)
    for position in range(20):
        order = [whole[position // 5 * 5 + (position + step) % 5][0] for step in range(5)]
        expected = next(i for i in order if i not in broken), whole[position][1]
        assert stream[position] == Stream(draw, indices, 0)[position] == expected
    assert sorted(told) == [3, 7]
    broken.update(indices)
    for _ in range(2):
        with pytest.raises(RunError, match=r"none of \d images in a row can be read"):
            stream[20]
    with pytest.raises(RunError, match=r"none of 100 images in a row can be read, the last because: \d+.png: broken"):
        Stream(lambda i, _: draw(3, torch.Generator()), range(1000), 0)[0]


def test_what_can_be_read_is_held_out() -> None:
    _, held_out = split(list(range(100)), 4, seed=0)
    broken = set(held_out[:2])
    fewer, others = split(list(range(100)), 4, seed=0, is_readable=lambda i: i not in broken)
    assert len(others) == 4
    assert set(held_out) - broken < set(others)
    assert sorted(fewer + others) == list(range(100))


def test_copies_of_what_is_held_out_are_neither_held_out_nor_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / str(i) for i in range(30)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i % 10]) * (1 + i % 5))  # three of each content, six of each size
    files.append(tmp_path / "none")
    read: list[Path] = []
    monkeypatch.setattr(data, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    trained, held_out = split(files, 3, seed=0, file=files.__getitem__)
    assert len({i % 10 for i in held_out}) == len(held_out) == 3
    assert set(trained) - {30} == {i for i in range(30) if i % 10 not in {j % 10 for j in held_out}}
    assert 30 in trained  # what cannot be read is no copy
    sizes = {1 + i % 5 for i in held_out}
    assert {file.stat().st_size for file in read} == sizes
    for seed in range(4):
        assert len(split(files[-2:], 1, seed, file=files[-2:].__getitem__)[0]) == 1
    with pytest.raises(ValueError, match="30 samples are 10 images and copies of them, too few to hold 10 out and"):
        split(files[:30], 10, seed=0, file=files.__getitem__)


def test_one_sample_at_a_time(tmp_path: Path) -> None:
    pairs = OnlinePairs(photos(tmp_path / "photos", 3), fitter())
    with pytest.raises(TypeError, match="images are read one at a time"):
        pairs[0:2]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_and_not_too_far_ahead(workers: int) -> None:
    read: list[int] = []

    class Counted(list[Tensor]):
        def __getitem__(self, i: Any) -> Any:
            read.append(i)
            return super().__getitem__(i)

    samples = Counted(torch.full((2,), float(i)) for i in range(12))
    stream = Stream(lambda i, _: samples[i], range(12), 0)
    coming = batches(stream, positions(0, 9, 4), workers, pin_memory=False)
    first = next(coming)
    assert len(read) <= 4 * (workers + 1)
    for step, batch in enumerate([first, *coming]):
        assert torch.equal(batch, torch.stack([stream[4 * step + i] for i in range(4)]))
    assert step == 8


def test_an_error_comes_where_its_batch_would_and_threads_end() -> None:
    before = set(threading.enumerate())
    samples = [torch.zeros(1)] * 6 + [torch.zeros(2)]
    coming = batches(Stream(lambda i, _: samples[i], range(7), 0), positions(0, 50, 7), 3, pin_memory=False)
    with pytest.raises(ValueError, match="must have one shape"):
        next(coming)
    assert set(threading.enumerate()) <= before


def test_shapes_of_a_batch() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        collate([torch.zeros(2, 3), torch.zeros(3, 2)])


def test_split() -> None:
    trained, held_out = split(list(range(100)), None, seed=0)
    assert len(held_out) == 5
    assert sorted(trained + held_out) == list(range(100))
    assert split(list(range(100)), None, seed=1)[1] != held_out
    assert len(split(list(range(9999)), None, seed=0)[1]) == 64
    with pytest.raises(ValueError, match="3 samples are too few to hold 3 out"):
        split(list(range(3)), 3, seed=0)


def test_online_pairs_are_those_of_a_store(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 3)
    raw, clean = OnlinePairs(paths, fitter())[1]
    solution = fitter()(Image.open(paths[1]))
    assert torch.equal(raw, solution.raw)
    assert torch.equal(clean, solution.semantics)


def test_view_pairs_online_are_those_of_a_store(tmp_path: Path) -> None:
    paths, fit = photos(tmp_path / "photos", 2), fitter(view_pairs=2)
    fit_store(fit, paths, tmp_path / "store")
    store, online = open_store(tmp_path / "store"), OnlinePairs(paths, fit)
    for k in range(3):
        assert equal(*(dict(zip("ab", pairs.pair(1, k), strict=True)) for pairs in (store, online)))
    for pairs in (store, online):
        for k in (-1, 3):
            with pytest.raises(IndexError, match=rf"pair must be 0\.\.2, got {k}; fit with a larger view_pairs"):
                pairs.pair(1, k)
