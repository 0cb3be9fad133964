"""The paper's linear probe of depth: NYU depth v2.

Letters: N images that test, h x w patches, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from ..._util.images import pixels_of
from ..augment import depth_sample
from ..data.nyu import Frame
from ..depth_probe import DepthConfig, DepthHead, check_frame, depth_loss, depth_scores, mirrored_depth
from ..estimates import mean_over
from ..published import published_of
from ..report import Measure, Report
from ..rows import Features, Rows
from ..segmentation_probe import pad_to_patches
from .correspondence import part_of
from .training import alike, train_probes

RMSE = Measure("RMSE", "lower")
MEASURES = [
    RMSE,
    Measure("AbsRel", "lower"),
    *(Measure(f"a{power}", "higher", "%") for power in (1, 2, 3)),
    Measure("log10", "lower"),
]
UNCOVERED = 255.0  # meters, where a rotation of the authors' leaves no depth
GROUP = 2  # images of one of the authors' processes, over which they take the loss


class Frames(Protocol):
    """A map-style data set of images with depths."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...


def depth(
    rows: Rows,
    train: Frames,
    test: Frames,
    *,
    config: DepthConfig | None = None,
    as_released: bool = False,
    folder: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = False,
) -> Report:
    """Train the paper's linear probe for each row on the same batches, and test it inside the Eigen crop.

    Args:
        rows: the model, which needs a class token, and what is to be compared with it.
        train: frames that train, of 480 x 640 pixels.
        test: frames that test.
        config: numbers of the training; the authors' by default, 38,400 steps of 16 images.
        as_released: train as the authors' code does: the loss is taken over two images at a time, its gradient part
            along batch and channel, which makes that part 0; where a rotation leaves no depth it is 255 m.
        folder: where a checkpoint is kept, so that a run that was stopped goes on.
        seed: of the probes, the order of frames and their augmentation.
        limit: test on so many frames, spread evenly, rather than on all.
        progress: whether to show a bar.

    Returns:
        RMSE in meters, AbsRel, the shares within a factor of 1.25, its square and its cube, and log10: means over test
        images, with intervals. Published figures stand beside those of names that have them.

    Raises:
        RunError: as `train_probes`.
        ValueError: if the model has no class token, the processes cannot share a batch evenly, or no test image can be
            read.
        ImportError: without torchvision.
    """
    config, skipped = config or DepthConfig(), dict[str, str]()
    heads = alike(rows, seed, DepthHead)
    mean, std = rows.normalization
    uncovered = UNCOVERED if as_released else 0.0

    def sample(index: int, generator: Generator) -> tuple[Tensor, Tensor]:
        return depth_sample(*train[index].read(), generator, mean=mean, std=std, uncovered=uncovered)

    def loss(head: DepthHead, features: Features, target: Tensor, step: int) -> Tensor:
        predicted = head(features.map, _token(features))
        if not as_released:
            return depth_loss(predicted, target, step, as_released=False)
        groups = zip(predicted.split(GROUP), target.split(GROUP), strict=True)
        return torch.stack([depth_loss(*group, step, as_released=True) for group in groups]).mean()

    train_probes(
        rows,
        heads,
        loss,
        sample,
        [str(train[i].image) for i in range(len(train))],
        config,
        task=f"depth, as released: {as_released}",
        folder=folder,
        seed=seed,
        clip_norm=config.clip_norm,
        skipped=skipped,
        progress=progress,
    )
    names, scores = _tested(rows, heads, test, limit, skipped, progress)
    return Report(
        task="depth",
        over="images",
        count=len(names),
        measures=MEASURES,
        figures={
            row: {m.name: mean_over(torch.tensor([each[m.name] for each in of])) for m in MEASURES}
            for row, of in scores.items()
        },
        settings={
            **rows.settings,
            "pixels": "crops of 416 x 544 train, whole images test",
            "training": repr(config),
            "loss": "as released" if as_released else "gradients along height and width",
            "seed": seed,
        },
        each={RMSE.name: {row: [each[RMSE.name] for each in of] for row, of in scores.items()}},
        names=names,
        published={row: {RMSE.name: value} for row, value in published_of(rows, "nyu_rmse").items()},
        skipped=skipped,
    )


def _token(features: Features) -> Tensor:
    if features.class_token is None:
        raise ValueError("the depth probe reads the class token, and this model has none; evaluate another task")
    return features.class_token


@torch.no_grad()
def _tested(
    rows: Rows,
    heads: dict[str, DepthHead],
    test: Frames,
    limit: int | None,
    skipped: dict[str, str],
    progress: bool,
) -> tuple[list[str], dict[str, list[dict[str, float]]]]:
    """Score every test image that has depths: its files, and row -> scores."""
    scores: dict[int, dict[str, dict[str, float]]] = {}  # of an image: row -> scores
    for i in part_of(rows, len(test), limit, "test images", progress):
        try:
            image, depths = test[i].read()
            check_frame(depths.shape)
        except ValueError as error:
            skipped[str(test[i].image)] = str(error)
            continue
        pixels = pixels_of(image).permute(2, 0, 1).float() / 255
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in rows.normalization)
        pixels, truth = (pixels - mean) / std, torch.from_numpy(depths)
        views = [
            rows.features(pad_to_patches(view[None], rows.model.patch_embed.patch_size)[0])
            for view in (pixels, pixels.flip(2))
        ]
        found = {}
        for name, head in heads.items():
            straight, mirrored = (head(view[name].map, _token(view[name])).cpu() for view in views)
            found[name] = depth_scores(mirrored_depth(straight, mirrored, truth.shape), truth)
        if found[rows.names[0]][RMSE.name] == found[rows.names[0]][RMSE.name]:  # not NaN: some pixel has a depth
            scores[i] = found
    scores = rows.team.gather(scores)
    skipped.update(rows.team.gather(skipped))
    if not scores:
        raise ValueError(f"no test image with depths can be read: {next(iter(skipped.values()), 'there is none')}")
    names = [str(test[i].image) for i in scores]
    return names, {row: [of[row] for of in scores.values()] for row in rows.names}
