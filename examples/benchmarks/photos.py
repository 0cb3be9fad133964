"""Real photos through the embedded DINOv2: views, and maps of each photo kept on disk, so that a run can go on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import dvt_timm  # noqa: F401  adds the name
from dvt_timm.files import replacing
from dvt_timm.images import images_in, read_image
from dvt_timm.offline import LeastSquaresSolver, Views, sample_views
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.grid_field import Basis
from dvt_timm.offline.run import fingerprint
from dvt_timm.offline.solution import collect
from dvt_timm.offline.views import sample_windows

MODEL = "vit_small_patch14_dinov2.dvt_demo"
STEP = 37  # at least: photos are taken in steps, so that any number of them is spread over the folder
HELD_OUT_SEED = 1000
HELD_OUT = {"zoom": (0.75, 1.2), "shift": 0.2}  # METHOD's held-out views


def embedded_model() -> Any:
    return timm.create_model(MODEL, pretrained=True, num_classes=0).eval()


def spread(folder: Path, count: int) -> list[Path]:
    """Some photos of a folder, always the same for a number, and those of a smaller number first."""
    paths = images_in(folder)
    assert len(paths) >= count, f"{folder} holds {len(paths)} photos, {count} are needed"
    step = next(step for step in range(STEP, STEP + len(paths)) if math.gcd(step, len(paths)) == 1)
    return [paths[i * step % len(paths)] for i in range(count)]


def take(model: Any, image: Image.Image, kind: str, num_views: int, seed: int = 0) -> Views:
    """All views at once; the last one is the whole image."""
    return collect(sample_views(model, image, kind=kind, num_views=num_views, seed=seed))


def held_out(model: Any, image: Image.Image, kind: str, num_views: int = 8) -> Views:
    """Views that no fit sees, without the whole image."""
    stream = sample_views(model, image, num_views=1)
    options = HELD_OUT if kind == "jitter" else {}
    windows = sample_windows(num_views, kind, HELD_OUT_SEED, stream.size, **options)
    embed = model.patch_embed
    xy = patch_xy(windows, *PatchGrid(stream.size, embed.patch_size, embed.proj.stride).centres())
    views = collect(replace(stream, windows=windows, xy=xy))
    return Views(views.features[:-1], views.xy[:-1])


def subset(views: Views, count: int) -> Views:
    """The first views, and the whole image."""
    index = [*range(count), len(views) - 1]
    return Views(views.features[index], views.xy[index])


def aligned_mean(views: Views) -> Tensor:  # [h, w, C]
    """The baseline without a model: the mean of what all views show at a place, at the whole image's patches."""
    h, w, C = views.features.shape[1:]
    nodes = (2 * h + 1, 2 * w + 1)
    basis = Basis.at(views.xy.reshape(-1, 2), nodes, torch.float32)
    values = torch.cat([views.features.reshape(-1, C), torch.ones(basis.index.shape[0], 1)], dim=1)
    sums = Basis.at(views.xy[-1].reshape(-1, 2), nodes, torch.float32).read(basis.scatter(values))
    return (sums[:, :-1] / sums[:, -1:]).reshape(h, w, C)


def cached_maps(
    model: Any, images: Sequence[Image.Image | Path], cache: Path, kinds: dict[str, int]
) -> Iterator[dict[str, Tensor]]:
    """For every image its maps [h, w, C]: raw, F and G of each kind of views, and the mean of the aligned views.

    Args:
        images: or their paths.
        kinds: number of views by kind.
    """
    cache.mkdir(parents=True, exist_ok=True)
    fitters = {kind: Fitter(model, kind, count) for kind, count in kinds.items()}
    for image in tqdm(images, unit="image", disable=None):
        picture = read_image(image) if isinstance(image, Path) else image
        maps: dict[str, Tensor] = {}
        for fitter in fitters.values():
            file = cache / f"{fitter.key(picture)}.safetensors"
            if not file.exists():
                with replacing(file) as scratch:
                    save_file({part: tensor.half().contiguous() for part, tensor in fitter(picture).items()}, scratch)
            maps |= {part: tensor.float() for part, tensor in load_file(file).items()}
        yield maps


class Fitter:
    """The closed form with one factorisation for all images."""

    def __init__(self, model: Any, kind: str, num_views: int) -> None:
        self.model, self.kind, self.num_views = model, kind, num_views
        self.solver, self.prepared = LeastSquaresSolver(), None
        self.weights = fingerprint(model)

    def key(self, image: Image.Image) -> str:
        """What the maps of an image depend on: its pixels, the places of the views, the solver, the weights."""
        stream = sample_views(self.model, image, kind=self.kind, num_views=self.num_views)
        digest = hashlib.sha256(f"{image.size} {self.solver} {self.weights}".encode())
        digest.update(image.tobytes())
        digest.update(stream.xy.numpy().tobytes())
        return digest.hexdigest()[:16]

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        views = take(self.model, image, self.kind, self.num_views)
        if self.prepared is None:
            self.prepared = self.solver.prepare(views.xy)
        solution = self.prepared.fit(views)
        return {
            "raw": solution.raw,
            f"F {self.kind}": solution.semantics,
            f"G {self.kind}": solution.artifact,
            f"mean {self.kind}": aligned_mean(views),
        }
