"""An outside referee: the segmentation probe of visbench beside ours, on the same pixels, plain and denoised.

    pip install visbench '.[evaluate]'
    python examples/visbench_referee.py DATA [--size 224] [--limit N] [--epochs 10] [--seeds 3]

DATA is what `dvt-timm evaluate segmentation` takes. visbench (0.27) wraps the embedded model as it is, without and with
its head, in a `CustomBackbone`, and trains a 1 x 1 convolution without normalization, on pixels. Ours are those of
`--protocol patch` and `knn`. Nothing is fetched. Ten minutes of processor time for 300 images that train and 150 that
test; docs/evaluate.md has what came out.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import visbench
from PIL import Image
from torch import Tensor
from visbench.backbones.custom import CustomBackbone
from visbench.cache import FeatureCache
from visbench.data.base import BaseDataset

import dvt_timm
from dvt_timm import evaluate
from dvt_timm.evaluate.data import Labeled, open_masks

NAME = "vit_small_patch14_dinov2.dvt_demo"
PLAIN, DENOISED = "plain", "denoised"
VOID, IGNORED = 255, -1  # ours, visbench's
GIGABYTE = 1 << 30


class Part(list[Labeled]):
    """At most so many images of a data set, spread evenly."""

    def __init__(self, masks: evaluate.data.FolderMasks, limit: int | None) -> None:
        self.classes = masks.classes
        step = max(len(masks) // limit, 1) if limit else 1
        super().__init__([masks[i] for i in range(0, len(masks), step)][:limit])


class Squeezed(BaseDataset):
    """A part as visbench takes it: squares, to which our tasks squeeze images too, and their labels."""

    def __init__(self, part: Part, split: str, size: int) -> None:
        self.name, self.split = "squeezed", split
        self.images, self.targets = [], []
        for labeled in part:
            image, labels = labeled.read()
            self.images.append(image.resize((size, size), Image.Resampling.BICUBIC))
            squeezed = np.array(Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST))
            target = torch.from_numpy(squeezed).long()  # [size, size]
            self.targets.append(target.where(target != VOID, IGNORED))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        return self.images[index], self.targets[index]

    def target(self, index: int) -> Tensor:
        return self.targets[index]


def backbones(size: int) -> dict[str, CustomBackbone]:
    """The model without and with its head, in visbench's wrapper, which calls it and reads its tokens."""
    wrapped = {}
    for name in (PLAIN, DENOISED):
        model = timm.create_model(NAME, pretrained=True, num_classes=0, global_pool="").eval()
        if name == PLAIN:
            dvt_timm.undenoise(model)
        wrapped[name] = CustomBackbone(
            model,
            preprocess=lambda image, model=model: dvt_timm.preprocess(model, image, size)[0],
            name=name,
            has_cls_token=True,
            patch_size=model.patch_embed.patch_size[0],
            image_size=size,
        )
    return wrapped


def theirs(train: Part, test: Part, arguments: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """visbench's mIoU of pixels by row, of each seed."""
    train_set, test_set = Squeezed(train, "train", arguments.size), Squeezed(test, "val", arguments.size)
    cache = FeatureCache(folder)
    figures: dict[str, list[float]] = {}
    for name, backbone in backbones(arguments.size).items():
        for seed in range(arguments.seeds):
            found = visbench.run(
                backbone,
                "semantic_segmentation",
                test_set,
                train_set,
                cache=cache,
                seed=seed,
                num_classes=len(train.classes),
                epochs=arguments.epochs,
            )
            figures.setdefault(name, []).append(found.metrics["miou"])
            loss = found.record.training["train_loss"]
            print(f"visbench, {name}, seed {seed}: mIoU {100 * figures[name][-1]:.1f} %, loss {loss:.3f}", flush=True)
    return figures


def ours(train: Part, test: Part, arguments: argparse.Namespace, folder: Path) -> dict[str, evaluate.Report]:
    """Our reports by protocol."""
    model = timm.create_model(NAME, pretrained=True, num_classes=0).eval()
    rows = evaluate.Rows(model, size=arguments.size, cache=evaluate.MapCache(folder, 20 * GIGABYTE))
    seeds = range(arguments.seeds)
    return {way: evaluate.segmentation(rows, train, test, protocol=way, seeds=seeds) for way in ("patch", "knn")}


def agreement(difference: float, report: evaluate.Report) -> str:
    """Whether visbench's difference, in mIoU, is what ours says."""
    own = report.difference(DENOISED)
    low, high = own.interval
    return (
        f"{'the same direction' if difference * own.value > 0 else 'opposite directions'}, "
        f"{100 * abs(difference - own.value):.1f} points apart; visbench's difference is "
        f"{'in' if low <= difference <= high else 'out'}side our 95 % interval, "
        f"which {'holds' if low <= 0 <= high else 'leaves out'} 0"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--size", type=int, default=224, help="pixels, whole patches of 14 (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="images of each part at most (default: all)")
    parser.add_argument("--epochs", type=int, default=10, help="of visbench's head (default: 10, its own)")
    parser.add_argument("--seeds", type=int, default=3, help="of all probes (default: %(default)s)")
    arguments = parser.parse_args()
    train, test = (Part(masks, arguments.limit) for masks in open_masks(arguments.data))
    print(f"visbench {visbench.__version__}: {len(train)} images train, {len(test)} test, {arguments.size} pixels")
    with tempfile.TemporaryDirectory() as folder:
        figures = theirs(train, test, arguments, Path(folder) / "theirs")
        reports = ours(train, test, arguments, Path(folder) / "ours")

    differences = [after - before for before, after in zip(figures[PLAIN], figures[DENOISED], strict=True)]
    mean = {name: sum(of) / len(of) for name, of in figures.items()}
    difference = mean[DENOISED] - mean[PLAIN]
    print("\n| mIoU, % | plain | denoised | difference |\n| --- | --- | --- | --- |")
    print(
        f"| visbench, linear head, {arguments.epochs} epochs | {100 * mean[PLAIN]:.1f} | {100 * mean[DENOISED]:.1f} | "
        f"{100 * difference:+.1f} ({100 * min(differences):+.1f} to {100 * max(differences):+.1f} over the seeds) |"
    )
    for way, report in reports.items():
        measure = report.measures[0]
        before, after = (100 * report.figures[row][measure.name].value for row in (PLAIN, DENOISED))
        low, high = (100 * end for end in report.difference(DENOISED).interval)
        print(f"| ours, {way} | {before:.1f} | {after:.1f} | {after - before:+.1f} [{low:+.1f}, {high:+.1f}] |")
    for way, report in reports.items():
        print(f"\nvisbench and {way}: {agreement(difference, report)}.")


if __name__ == "__main__":
    main()
