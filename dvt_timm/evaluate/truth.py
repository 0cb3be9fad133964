"""What a way of denoising leaves of planted artifacts, and what it wins back of the labels that they cost.

Letters: N photos, h x w patches, C channels, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .._util.modules import uncompiled
from ..features import feature_maps, preprocess
from .estimates import Estimate, mean_iou_over, mean_over
from .planting import Kind, artifact_left, distance_to_truth, plant
from .probes import VOID, knn_probe, linear_probe

Method = Callable[[Any, Sequence[Image.Image]], Iterable[Tensor]]  # a model and photos -> their maps [h, w, C]
Probe = Callable[[Tensor, Tensor, Tensor], Tensor]

PROBE_SEEDS = (0, 1, 2)  # of the linear probe
NEIGHBORS = 20
PROBES: dict[str, tuple[Probe, ...]] = {
    "knn": (partial(knn_probe, neighbors=NEIGHBORS),),
    "linear": tuple(partial(linear_probe, seed=seed) for seed in PROBE_SEEDS),
}


@dataclass(frozen=True)
class LabelScores:
    """mIoU of patches in 0..1 by one probe, over all plants.

    Attributes:
        truth: of raw features, nothing planted.
        raw: of raw features with the artifact.
        denoised: of denoised features with the artifact.
        denoised_truth: of denoised features, nothing planted.
    """

    truth: Estimate
    raw: Estimate
    denoised: Estimate
    denoised_truth: Estimate

    @property
    def won_back(self) -> Estimate:
        """Of what the artifact costs, the share that denoising wins back; NaN if it costs nothing."""
        return (self.denoised - self.raw) / (self.truth - self.raw)

    @property
    def gain(self) -> Estimate:
        """Of denoising where nothing is planted, in mIoU: what the network's own artifacts cost, or denoising does."""
        return self.denoised_truth - self.truth


@dataclass(frozen=True)
class Planted:
    """What a way of denoising does to planted artifacts.

    Attributes:
        left: share of the artifact that is left, as `artifact_left` has it.
        distance: squared distance to the truth, as `distance_to_truth` has it.
        labels: scores by probe, "knn" and "linear"; empty without labels.
    """

    left: Estimate
    distance: Estimate
    labels: dict[str, LabelScores] = field(default_factory=dict)


def raw_maps(model: Any, photos: Sequence[Image.Image]) -> Iterable[Tensor]:
    """Compute the raw map [h, w, C] of every photo, its shorter side of the size that the model was built for."""
    size = min(uncompiled(model).patch_embed.img_size)
    for photo in photos:
        with torch.inference_mode():
            yield feature_maps(model, preprocess(model, photo, size)).raw[0].permute(1, 2, 0)


def planted(
    model: Any,
    photos: Sequence[Image.Image],
    methods: Mapping[str, Method],
    *,
    raw: Method = raw_maps,
    labels: Sequence[Tensor] | None = None,
    num_train: int = 0,
    test_stride: int = 1,
    kind: Kind = "plaid",
    strength: float = 3.0,
    seeds: Sequence[int] = (0,),
    finished: Callable[[str, Planted], None] | None = None,
    progress: bool = False,
) -> dict[str, Planted]:
    """Plant artifacts in a model, denoise, and measure against what the model gives without them.

    >>> def positions(model, photos):
    ...     return (offline.fit_image(model, photo, kind="positions", keep_aspect=True).semantics for photo in photos)
    >>> print(f"{planted(model, photos, {'positions': positions})['positions'].left:.2f}")

    Args:
        model: a timm `VisionTransformer` or `Eva` with an absolute position embedding.
        photos: N of them.
        methods: ways of denoising by name: called with the model, planted or not, and the photos, each gives the maps
            [h, w, C] of all in order, as many patches as `raw` has.
        raw: the features before denoising.
        labels: of each photo's patches, [h, w] whole numbers from 0 on, 255 where there is none (`patch_labels`).
        num_train: with labels, the first photos, which train the probes; the others are tested and measured.
        test_stride: of the test photos' patches, in rows, every how many-th is asked its label.
        kind: of the artifact, as in `plant`.
        strength: of the artifact, as in `plant`.
        seeds: of the artifacts; figures are means over them.
        finished: called with the name and the figures of every method that is done.
        progress: whether to show a bar on a terminal.

    Returns:
        The figures of every method, over the photos that train no probe. The same photos make two methods' estimates
        comparable: their difference is paired.

    Raises:
        ValueError: if the model has no absolute position embedding, maps differ in shape or number, or photos are too
            few.
    """
    trial = _Trial(labels, num_train, test_stride)
    trial.check(len(photos))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must name at least one plant, each once, got {list(seeds)}")

    def maps(name: str, method: Method) -> dict[int | None, list[Tensor]]:
        """The maps of all photos by the seed of the plant, None for none."""
        by_seed: dict[int | None, list[Tensor]] = {}
        by_seed[None] = maps_by(method, model, photos, f"{name}, nothing planted", progress)
        for seed in seeds:
            with plant(model, kind, strength, seed):
                by_seed[seed] = maps_by(method, model, photos, f"{name}, plant {seed}", progress)
        return by_seed

    before = maps("raw", raw)
    confusions = {seed: trial.confusions(before[seed]) for seed in before}
    results = {}
    for name, method in methods.items():
        results[name] = trial.judge(before, confusions, maps(name, method))
        if finished is not None:
            finished(name, results[name])
    return results


def maps_by(
    method: Method, model: Any, photos: Sequence[Image.Image], name: str, progress: bool = False
) -> list[Tensor]:
    """Compute the maps of all photos by a method: [h, w, C] each, float32 on the CPU.

    Raises:
        ValueError: if it gives more or fewer maps than there are photos, or one that is no map.
    """
    bar = tqdm(method(model, photos), name, len(photos), leave=False, disable=None if progress else True)
    maps = [fmap.detach().float().cpu() for fmap in bar]
    if len(maps) != len(photos):
        raise ValueError(f"{name}: {len(maps)} maps of {len(photos)} photos; the method must give one of each")
    if any(fmap.ndim != 3 for fmap in maps):
        raise ValueError(f"{name}: maps must be [h, w, C], got {sorted({tuple(fmap.shape) for fmap in maps})[:3]}")
    return maps


Confusions = dict[str, Tensor]  # probe -> [N, K, K]


@dataclass(frozen=True)
class _Trial:
    """Which photos train, and how maps are scored."""

    labels: Sequence[Tensor] | None
    num_train: int
    test_stride: int

    def check(self, num_photos: int) -> None:
        if self.test_stride < 1:
            raise ValueError(f"test_stride must be at least 1, got {self.test_stride}")
        if num_photos - self.num_train < 1:
            raise ValueError(f"{num_photos} photos with num_train={self.num_train} leave none to test; pass more")
        if self.labels is None:
            if self.num_train:
                raise ValueError("num_train is of labels, and there are none; pass labels, or leave it out")
            return
        if self.num_train < 1:
            raise ValueError("labels need photos that train the probes; pass num_train")
        if len(self.labels) != num_photos:
            raise ValueError(f"there are {num_photos} photos and labels of {len(self.labels)}; pass those of each")

    def judge(
        self,
        before: dict[int | None, list[Tensor]],
        raw: dict[int | None, Confusions],
        after: dict[int | None, list[Tensor]],
    ) -> Planted:
        """Compare maps before and after denoising, by the seed of the plant."""
        truth, clean = before[None][self.num_train :], after[None][self.num_train :]
        left, distance = [], []
        for seed in list(before)[1:]:
            spoiled, denoised = before[seed][self.num_train :], after[seed][self.num_train :]
            left.append([artifact_left(*four) for four in zip(denoised, clean, spoiled, truth, strict=True)])
            distance.append([distance_to_truth(*two) for two in zip(denoised, truth, strict=True)])
        denoised_confusions = {seed: self.confusions(after[seed]) for seed in after}
        labels = {
            probe: LabelScores(
                truth=mean_iou_over(raw[None][probe]),
                raw=_mean_over_plants(raw, probe),
                denoised=_mean_over_plants(denoised_confusions, probe),
                denoised_truth=mean_iou_over(denoised_confusions[None][probe]),
            )
            for probe in raw[None]
        }
        return Planted(mean_over(torch.tensor(left).mean(dim=0)), mean_over(torch.tensor(distance).mean(dim=0)), labels)

    def confusions(self, maps: list[Tensor]) -> Confusions:
        """Count labels by prediction, of every test photo; nothing without labels."""
        if self.labels is None:
            return {}
        train = _stacked(maps[: self.num_train], self.labels[: self.num_train], 1)
        test = _stacked(maps[self.num_train :], self.labels[self.num_train :], self.test_stride)
        num_labels = int(max(train.labels.max(), test.labels.max())) + 1
        shape = (len(maps) - self.num_train, num_labels, num_labels)
        return {
            name: sum(_counted(shape, test, probe(train.features, train.labels, test.features)) for probe in probes)  # type: ignore[misc]
            for name, probes in PROBES.items()
        }


@dataclass(frozen=True)
class _Patches:
    features: Tensor  # [M, C]
    labels: Tensor  # [M]
    photo: Tensor  # [M]


def _stacked(maps: Sequence[Tensor], labels: Sequence[Tensor], stride: int) -> _Patches:
    """Put patches with a label in one row."""
    features, of_patches, photo = [], [], []
    for i, (fmap, of_photo) in enumerate(zip(maps, labels, strict=True)):
        if fmap.shape[:2] != of_photo.shape:
            raise ValueError(f"photo {i} has {list(fmap.shape[:2])} patches and labels of {list(of_photo.shape)}")
        kept = of_photo.flatten() != VOID
        kept &= torch.arange(len(kept)) % stride == 0
        features.append(fmap.flatten(0, 1)[kept])
        of_patches.append(of_photo.flatten()[kept].long())
        photo.append(torch.full_like(of_patches[-1], i))
    if not sum(map(len, of_patches)):
        raise ValueError(f"no patch has a label: all are {VOID}")
    return _Patches(torch.cat(features), torch.cat(of_patches), torch.cat(photo))


def _counted(shape: tuple[int, int, int], test: _Patches, predicted: Tensor) -> Tensor:
    """Count labels by prediction of every photo: [N, K, K]."""
    num_labels = shape[1]
    cell = (test.photo * num_labels + test.labels) * num_labels + predicted
    return torch.bincount(cell, minlength=shape[0] * num_labels**2).reshape(shape)


def _mean_over_plants(confusions: dict[int | None, Confusions], probe: str) -> Estimate:
    scores = [mean_iou_over(of_seed[probe]) for seed, of_seed in confusions.items() if seed is not None]
    return Estimate.mean(scores)
