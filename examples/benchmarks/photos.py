"""Real photos through the embedded backbone: views of each, kept on disk, and what the closed form makes of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import dvt_timm
from dvt_timm._util.files import replacing
from dvt_timm._util.folders import images_in
from dvt_timm._util.images import preprocessing_of, read_image
from dvt_timm.offline import Decomposition, LeastSquaresSolver, Views, sample_views
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.grid_field import Basis
from dvt_timm.offline.run import fingerprint
from dvt_timm.offline.solution import collect
from dvt_timm.offline.views import ViewStream
from dvt_timm.offline.windows import sample_windows

MODEL = "vit_small_patch14_dinov2.dvt_demo"
STEP = 37  # at least: photos are taken in steps, so that any number of them is spread over the folder
HELD_OUT_SEED = 1000
HELD_OUT_VIEWS = 8
HELD_OUT = {"zoom": (0.75, 1.2), "shift": 0.2}  # METHOD's held-out views


def spread(folder: Path, count: int) -> list[Path]:
    """Some photos of a folder, always the same for a number, and those of a smaller number first."""
    paths = images_in(folder)
    assert len(paths) >= count, f"{folder} holds {len(paths)} photos, {count} are needed"
    step = next(step for step in range(STEP, STEP + len(paths)) if math.gcd(step, len(paths)) == 1)
    return [paths[i * step % len(paths)] for i in range(count)]


def turned(image: Image.Image, upside_down: bool) -> list[Image.Image]:
    """The image, and its upside-down copy if asked for."""
    return [image, ImageOps.flip(image)] if upside_down else [image]


class ViewCache:
    """Views of images, and raw maps, float16 on disk: whichever measure needs them first computes them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.model = timm.create_model(MODEL, pretrained=True, num_classes=0).eval()
        self.weights = fingerprint(self.model)
        self.preprocessing = preprocessing_of(self.model, None)

    @torch.inference_mode()
    def raw(self, image: Image.Image) -> Tensor:  # [h, w, C]
        """The backbone's map of an image."""
        squeezed = self.preprocessing.squeeze(image, self.model.patch_embed.img_size)
        pixels = self.preprocessing.to_tensor(squeezed)
        digest = hashlib.sha256(self.weights.encode() + pixels.numpy().tobytes()).hexdigest()
        file = self.folder / f"raw-{digest[:16]}.safetensors"
        return kept(file, lambda: dvt_timm.feature_maps(self.model, pixels).raw[0].permute(1, 2, 0))

    def take(self, image: Image.Image, kind: str, num_views: int) -> Views:
        """What a fit sees; the last view is the whole image."""
        stream = sample_views(self.model, image, kind=kind, num_views=num_views)
        return self._views(stream, stream)

    def held_out(self, image: Image.Image, kind: str) -> Views:
        """Views that no fit sees, without the whole image."""
        stream = sample_views(self.model, image, num_views=1, batch_size=HELD_OUT_VIEWS)
        options = HELD_OUT if kind == "jitter" else {}
        windows = sample_windows(HELD_OUT_VIEWS, kind, HELD_OUT_SEED, stream.size, **options)
        embed = self.model.patch_embed
        xy = patch_xy(windows, *PatchGrid(stream.size, embed.patch_size, embed.proj.stride).centers())
        stream = replace(stream, windows=windows, xy=xy)
        return self._views(stream, islice(stream, 1))

    def _views(self, stream: ViewStream, batches: Iterable[Views]) -> Views:
        """Batches of a stream."""
        features = kept(self.folder / f"{self._key(stream)}.safetensors", lambda: collect(batches).features)
        return Views(features, stream.xy[: len(features)])

    def _key(self, stream: ViewStream) -> str:
        """What views depend on: the weights, the image's pixels, their places."""
        digest = hashlib.sha256(f"{self.weights} {stream.image.size} {stream.batch_size}".encode())
        digest.update(stream.image.tobytes())
        digest.update(stream.xy.numpy().tobytes())
        return digest.hexdigest()[:16]


def kept(file: Path, compute: Callable[[], Tensor]) -> Tensor:
    """Features from the disk, put there if they were not yet."""
    if not file.exists():
        with replacing(file) as scratch:
            save_file({"features": compute().half().contiguous()}, scratch)
    return load_file(file)["features"].float()


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


class ClosedForm:
    """The closed form, with one factorization for all images whose views lie at the same places."""

    def __init__(self, smoothness: float = 1.0) -> None:
        self.solver, self.prepared = LeastSquaresSolver(smoothness=smoothness), None

    def fit(self, views: Views) -> Decomposition:
        if self.prepared is None:
            self.prepared = self.solver.prepare(views.xy)
        return self.prepared.fit(views)


def maps_of(
    images: Sequence[Image.Image | Path], cache: ViewCache, kinds: dict[str, int]
) -> Iterator[dict[str, Tensor]]:
    """For every image its maps [h, w, C]: raw, F and G of each kind of views, and the mean of the aligned views.

    Args:
        images: or their paths.
        cache: of their views.
        kinds: number of views by kind.
    """
    solvers = {kind: ClosedForm() for kind in kinds}
    for image in tqdm(images, unit="image", disable=None):
        picture = read_image(image) if isinstance(image, Path) else image
        maps: dict[str, Tensor] = {}
        for kind, num_views in kinds.items():
            views = cache.take(picture, kind, num_views)
            solution = solvers[kind].fit(views)
            maps["raw"] = solution.raw
            maps[f"F {kind}"], maps[f"G {kind}"] = solution.semantics, solution.artifact
            maps[f"mean {kind}"] = aligned_mean(views)
        yield maps


def mean_artifact(maps: Sequence[dict[str, Tensor]]) -> Tensor:  # [h, w, C]
    """Of a data set: the mean of its photos' G."""
    return torch.stack([of_photo["G jitter"] for of_photo in maps]).mean(dim=0)
