"""Films of a model's features: position artifacts stand still while the picture moves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import viz
from ._util.images import Preprocessing, preprocessing_of
from ._util.modules import uncompiled
from ._util.video import FPS, LEAST_FPS, MOST_FPS, Frames, film_writer
from .caption import caption_of
from .features import check_patches, feature_maps

SAMPLES = 16  # frames, at most, that the colors are found from


@dataclass(frozen=True)
class Film:
    """What became of a film."""

    frames: int
    raw_locked: float  # of the raw features, the share that is locked to the frames (`viz.LockedShare`); NaN of one
    denoised_locked: float  # of the denoised ones


def film(
    model: Any,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    every: int = 1,
    fps: float | None = None,
    progress: bool = False,
) -> Film:
    """Write a film of a clip's features: the picture, raw and denoised maps, and what was removed, side by side.

    One PCA basis and one scale per kind of map serve the whole film, found from at most 16 frames spread over it. Below
    stands which share of the features' grain is locked to the frame, raw and denoised: `viz.LockedShare`.

    The source is read three times, and the model sees each frame once, and those 16 twice. In memory are 16 frames at
    the model's size and some maps, however long the film is; a temporary file has the colors, 9 bytes a patch.

    Args:
        model: a denoised `VisionTransformer` or `Eva`, by a head or by `positions`, for images of any size.
        source: a clip, a GIF, or a folder of frames in the order of the numbers in their names.
        out: what to write, which must not exist: .mp4, .m4v, .mov or .mkv (H.264; `pip install 'dvt-timm[video]'`),
            .gif, or without a suffix a folder of PNG frames.
        size: pixels of a frame's shorter side, rounded to whole patches; the model's own by default.
        every: take one frame of so many.
        fps: frames a second of what is written, 0.00153 to 240; by default the source's, divided by `every`, 10 for a
            folder.
        progress: whether to show a bar on a terminal.

    Returns:
        How many frames there are, and the shares.

    Raises:
        VideoError: if the source cannot be read, has no frames, or frames of differing size; a ValueError.
        ValueError: if the model does not denoise, a number is out of range, or `out` has another suffix.
        FileExistsError: if `out` exists.
        ImportError: if a clip is to be read or written, and PyAV is not installed.
        OSError: if it cannot be written; nothing is left at `out`.
    """
    inner = uncompiled(model)
    if getattr(inner, "denoiser", None) is None:
        raise ValueError("a film shows raw and denoised features; this model does not denoise, see dvt_timm.denoise")
    if every < 1:
        raise ValueError(f"every must be 1 or more, got {every}")
    if fps is not None and not LEAST_FPS <= fps <= MOST_FPS:
        raise ValueError(f"fps must be {float(LEAST_FPS):.3g} to {MOST_FPS}, got {fps}")
    frames, preprocessing = Frames(Path(source)), preprocessing_of(inner, size)
    check_patches(inner, *preprocessing.size_of(next(iter(frames))))
    rate = Fraction(fps).limit_denominator(1001) if fps else (frames.fps or FPS) / (every if frames.fps else 1)
    with film_writer(Path(out), rate) as write, TemporaryFile() as spool:  # what cannot be written is told at once
        sample, count = _sample(_taken(frames, every), preprocessing)
        some = [_maps(model, preprocessing, frame) for frame in sample]
        colors = viz.FilmColors.of([raw for raw, _ in some], [denoised for _, denoised in some])
        raw_share, denoised_share = viz.LockedShare(count), viz.LockedShare(count)
        hidden = None if progress else True
        for frame in tqdm(_taken(frames, every), "maps", count, unit="frame", disable=hidden):
            raw, denoised = _maps(model, preprocessing, preprocessing.resize(frame))
            raw_share.add(raw)
            denoised_share.add(denoised)
            tiles = colors.tiles(raw, denoised)
            spool.write(tiles.tobytes())
        done = Film(count, raw_share.share, denoised_share.share)
        caption = caption_of(inner, tiles.shape[1:3], [f"colors from {len(sample)} of {count} frames"])
        spool.seek(0)
        for frame in tqdm(_taken(frames, every), "film", count, unit="frame", disable=hidden):
            drawn = np.frombuffer(spool.read(tiles.size), dtype=np.uint8).reshape(tiles.shape)
            write(viz.film_frame(np.asarray(frame), drawn, _labels(done), caption))
    return done


def _taken(frames: Frames, every: int) -> Iterator[Image.Image]:
    return islice(frames, 0, None, every)


def _sample(frames: Iterator[Image.Image], preprocessing: Preprocessing) -> tuple[list[Image.Image], int]:
    """Choose frames evenly, thinning them out whenever there are too many; they, and how many there are in all."""
    kept: list[Image.Image] = []
    i, step = 0, 1
    for i, frame in enumerate(frames):
        if i % step == 0:
            kept.append(preprocessing.resize(frame))
        if len(kept) > SAMPLES:
            kept, step = kept[::2], 2 * step
    return kept, i + 1


def _maps(model: Any, preprocessing: Preprocessing, frame: Image.Image) -> tuple[Tensor, Tensor]:
    """Give a frame's raw and denoised maps, [1, C, h, w] float32 on the CPU."""
    with torch.inference_mode():
        maps = feature_maps(model, preprocessing.to_tensor(frame))
    assert maps.denoised is not None
    return maps.raw.float().cpu(), maps.denoised.float().cpu()


def _labels(done: Film) -> list[str]:
    if done.frames == 1:
        return ["frame", "raw", "denoised", "removed"]
    shares = (f"{100 * share:.3g} % locked to the frame" for share in (done.raw_locked, done.denoised_locked))
    raw, denoised = shares
    return ["frame", f"raw: {raw}", f"denoised: {denoised}", "removed"]
