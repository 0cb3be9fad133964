"""What `stage1.py` measures of clean maps: position that is left in them, and probes on CamVid."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from photos import ViewCache, maps_of, mean_artifact, spread
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from dvt_timm._util.folders import images_in
from dvt_timm.evaluate import knn_probe, largest_coefficients, linear_probe, mean_iou, position_leakage
from dvt_timm.offline import open_store

SEEDS = (0, 1, 2)
VOID = 11  # of CamVid's labels
TRAIN_FRAMES, TEST_FRAMES = 60, 40
WINDOW = (0.5, 0.9)  # sides of a random window, relative to the frame


def kinds_of(arguments: argparse.Namespace) -> dict[str, int]:
    return {kind: int(count) for kind, _, count in (item.partition("=") for item in arguments.kinds)}


def leakage(arguments: argparse.Namespace) -> None:
    """R2 of a linear probe of position: fitted on some photos, tested on others."""
    count = arguments.fit + arguments.test
    if arguments.stores:
        maps = maps_in(arguments.stores, count)
    else:
        maps = list(maps_of(spread(arguments.photos, count), ViewCache(arguments.cache), kinds_of(arguments)))
        subtract(maps, mean_artifact(maps[: arguments.fit]))
    position_table(maps, arguments.fit)


def maps_in(stores: Sequence[str], count: int) -> list[dict[str, Tensor]]:
    """Raw and F of images that all stores hold, each NAME=STORE, in the order of their hashes: a random one."""
    opened = {name: open_store(folder) for name, _, folder in (item.partition("=") for item in stores)}
    rows = {name: {entry.sha256: i for i, entry in enumerate(store.entries)} for name, store in opened.items()}
    common = sorted(set.intersection(*map(set, rows.values())))
    assert len(common) >= count, f"the stores share {len(common)} images, {count} are needed"
    first = next(iter(opened))
    return [
        {
            "raw": opened[first].raw(rows[first][sha256]).float(),
            **{f"F {name}": store.clean(rows[name][sha256]).float() for name, store in opened.items()},
        }
        for sha256 in common[:count]
    ]


def position_table(maps: list[dict[str, Tensor]], num_fit: int) -> None:
    """Fitted on the first photos, tested on the others."""
    print(f"R2 of position, fitted on {num_fit} photos, tested on {len(maps) - num_fit}\n")
    rows: dict[str, list[str]] = {}
    for part in maps[0]:
        if not part.startswith("G "):
            features = [of_photo[part] for of_photo in maps]
            scores = position_leakage(features[:num_fit], features[num_fit:])
            rows[part] = [f"{score:.2f}" for score in scores.values()]
    print_places(rows)


def print_places(rows: dict[str, list[str]]) -> None:
    """A table of what is read of a patch's place."""
    print("| features | x | y | x distance | y distance |\n| --- | --- | --- | --- | --- |")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def subtract(maps: list[dict[str, Tensor]], artifact: Tensor) -> None:
    """Adds the baseline to every photo's maps."""
    for of_photo in maps:
        of_photo["raw - mean G"] = of_photo["raw"] - artifact


def information(arguments: argparse.Namespace) -> None:
    """The paper's measure: the largest coefficient of a channel, averaged over x and y and over photos."""
    photos = spread(arguments.photos, arguments.count or 100)
    scores: dict[str, list[float]] = {}
    for maps in maps_of(photos, ViewCache(arguments.cache), kinds_of(arguments)):
        for part in ("raw", "G jitter", "F jitter"):
            scores.setdefault(part, []).append(largest_coefficients(maps[part]).mean().item())
    print(f"maximal information coefficient with x and y, {len(photos)} photos\n")
    print("| features | mean | standard error |\n| --- | --- | --- |")
    for part, values in scores.items():
        print(f"| {part} | {statistics.mean(values):.3f} | {statistics.stdev(values) / len(values) ** 0.5:.3f} |")


def camvid(arguments: argparse.Namespace) -> None:
    """mIoU of patches of random windows of CamVid frames, by nearest neighbors and by a linear probe."""
    train = frames(arguments.camvid, "train", arguments.count or TRAIN_FRAMES)
    test = frames(arguments.camvid, "val", min(arguments.count or TEST_FRAMES, TEST_FRAMES))
    cache = ViewCache(arguments.cache)
    stacks: list[dict[str, Tensor]] = []
    labels: list[Tensor] = []
    artifact = torch.zeros(0)
    for part in (train, test):
        maps = list(maps_of([image for image, _ in part], cache, kinds_of(arguments)))
        artifact = artifact if stacks else mean_artifact(maps)
        subtract(maps, artifact)
        grid = maps[0]["raw"].shape[:2]
        of_patches = torch.stack([patch_labels(mask, grid) for _, mask in part]).flatten()
        labels.append(of_patches[of_patches != VOID])
        stacks.append({name: torch.cat([m[name].flatten(0, 1) for m in maps])[of_patches != VOID] for name in maps[0]})
    print(f"mIoU in percent, {len(train)} and {len(test)} frames\n")
    print("| features | k-NN | linear, seeds | mean |\n| --- | --- | --- | --- |")
    for name in stacks[0]:
        if name.startswith("G "):
            continue
        knn = 100 * mean_iou(knn_probe(stacks[0][name], labels[0], stacks[1][name]), labels[1])
        linear = [
            100 * mean_iou(linear_probe(stacks[0][name], labels[0], stacks[1][name], seed), labels[1]) for seed in SEEDS
        ]
        seeds = " ".join(f"{score:.1f}" for score in linear)
        print(f"| {name} | {knn:.1f} | {seeds} | {statistics.mean(linear):.1f} |", flush=True)


def frames(folder: Path, split: str, count: int, seed: int = 0) -> list[tuple[Image.Image, Image.Image]]:
    """Random windows of evenly spread frames, with their label maps; frame i's window is that of seed + i."""
    paths = images_in(folder / split)
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    windows = []
    for i, path in enumerate(chosen):
        with Image.open(path) as frame, Image.open(folder / f"{split}annot" / f"{path.stem}.png") as mask:
            box = random_window(frame.size, seed + i)
            windows.append((frame.convert("RGB").crop(box), mask.crop(box)))
    return windows


def random_window(size: tuple[int, int], seed: int) -> tuple[int, int, int, int]:
    random = np.random.default_rng(seed)
    side = random.uniform(*WINDOW)
    width, height = (round(side * pixels) for pixels in size)
    left, top = random.integers(size[0] - width + 1), random.integers(size[1] - height + 1)
    return int(left), int(top), int(left + width), int(top + height)


def patch_labels(mask: Image.Image, grid: tuple[int, ...]) -> Tensor:  # [h, w]
    """The most frequent label in each patch."""
    side = 8
    pixels = torch.from_numpy(np.array(mask.resize((grid[1] * side, grid[0] * side), Image.Resampling.NEAREST)))
    cells = pixels.reshape(grid[0], side, grid[1], side).permute(0, 2, 1, 3).flatten(2).long()
    return one_hot(cells, VOID + 1).sum(dim=2).argmax(dim=-1)
