"""Images with a class for every pixel: PASCAL VOC, ADE20k, and folders of one's own."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..._util.images import SUFFIXES, read_image
from ..probes import VOID
from .encoding import Encoding, found_classes, read_classes
from .listed import check_present, check_same_size, inside, read_list

Split = Literal["train", "val"]

SPLITS: tuple[Split, Split] = ("train", "val")
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
ADE_CLASSES = 150
LAYOUTS = """the layouts that are known:
  VOC:    JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/{train,val}.txt
  ADE20k: images/{training,validation}/*.jpg, annotations/{training,validation}/*.png
  others: images/*, masks/*.png; with or without classes.txt, train.txt and val.txt"""


@dataclass(frozen=True)
class Labeled:
    """An image and its mask, not yet read.

    Attributes:
        name: its stem.
        image: a file.
        mask: a PNG.
        encoding: what the mask's pixels mean.
    """

    name: str
    image: Path
    mask: Path
    encoding: Encoding = field(repr=False)

    def read_image(self) -> Image.Image:
        """Read the image, RGB and upright."""
        return read_image(self.image)

    def read_labels(self) -> NDArray[np.uint8]:
        """Read the labels: [H, W], classes 0..K-1, 255 to ignore.

        Raises:
            ValueError: if a pixel has no class.
        """
        return self.encoding.decode(self.mask)

    def read(self) -> tuple[Image.Image, NDArray[np.uint8]]:
        """Read both.

        Raises:
            ValueError: if they differ in shape, or a pixel has no class.
        """
        image, labels = self.read_image(), self.read_labels()
        check_same_size(self.image, self.mask, image.size, labels.shape)
        return image, labels


class Masks:
    """Images with masks, in a fixed order: a map-style data set.

    Attributes:
        classes: K names, by label.
    """

    def __init__(self, classes: list[str], samples: list[Labeled], source: Path) -> None:
        check_present([path for sample in samples for path in (sample.image, sample.mask)], source)
        self.classes = classes
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Labeled:
        return self._samples[index]


class VocMasks(Masks):
    """PASCAL VOC 2012: 21 classes, the border of objects ignored.

    Args:
        folder: VOC2012, or one that holds it or VOCdevkit.
        split: "train" or "val".

    Raises:
        ValueError: if files are missing, or a list leads out of the folder.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        root = _root_of_voc(folder) or _not_found(folder)
        source = root / "ImageSets" / "Segmentation" / f"{_checked(split)}.txt"
        encoding = Encoding.of_indices(len(VOC_CLASSES))
        samples = [
            Labeled(
                stem,
                inside(root / "JPEGImages", f"{stem}.jpg", source),
                inside(root / "SegmentationClass", f"{stem}.png", source),
                encoding,
            )
            for stem in read_list(source)
        ]
        super().__init__(list(VOC_CLASSES), samples, source)


class AdeMasks(Masks):
    """ADE20k: 150 classes, label 0 ignored.

    The names are those of `objectInfo150.txt`, numbers without it.

    Args:
        folder: ADEChallengeData2016, or one that holds it.
        split: "train" or "val".

    Raises:
        ValueError: if files are missing, or `objectInfo150.txt` has not 150 names.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        root = _root_of_ade(folder) or _not_found(folder)
        part = {"train": "training", "val": "validation"}[_checked(split)]
        masks = root / "annotations" / part
        encoding = Encoding({0: VOID, **{i + 1: i for i in range(ADE_CLASSES)}, VOID: VOID}, ADE_CLASSES)
        images = sorted((root / "images" / part).glob("*.jpg"))
        if not images:
            raise ValueError(f"{root / 'images' / part} has no .jpg; {LAYOUTS}")
        samples = [Labeled(image.stem, image, masks / f"{image.stem}.png", encoding) for image in images]
        super().__init__(_ade_classes(root), samples, masks)


class FolderMasks(Masks):
    """Images in `images`, PNGs of the same stems in `masks`, and names in `classes.txt`, if there is one.

    Lines of `classes.txt` are names, of the indices from 0 on, or "red green blue name" for masks of colors. Pixels of
    a class named void, and index 255, are ignored; void is no class, and the others are counted without it. Without
    `classes.txt` the indices of gray or palette PNGs are the classes, as many as the largest one below 255 in all of
    `masks` tells, named "0", "1" and so on. Images without a mask are left out.

    Args:
        folder: holds them.
        split: None for all; "train" or "val" for the stems in `train.txt` or `val.txt`, or without these for a share
            of all, drawn.
        share: of the images that train.
        seed: of the draw.
        like: another part of the folder, whose classes are taken rather than found once more.

    Attributes:
        encoding: what the masks' pixels mean.

    Raises:
        ValueError: if files are missing, `classes.txt` cannot be understood, masks cannot do without it, or the share
            leaves a split empty.
    """

    def __init__(
        self,
        folder: Path,
        split: Split | None = None,
        *,
        share: float = 0.5,
        seed: int = 0,
        like: FolderMasks | None = None,
    ) -> None:
        folder = Path(folder)
        if not _is_folder_of_masks(folder):
            _not_found(folder)
        images, masks = _by_stem(folder / "images", SUFFIXES), _by_stem(folder / "masks", (".png",))
        classes, encoding = (like.classes, like.encoding) if like else _classes_of(folder, masks.values())
        stems = list(masks)
        if split is not None:
            stems = _stems_of(folder, stems, _checked(split), share, seed)
        samples = [
            Labeled(
                stem,
                images.get(stem) or inside(folder / "images", f"{stem}.jpg", folder),
                masks.get(stem) or inside(folder / "masks", f"{stem}.png", folder),
                encoding,
            )
            for stem in stems
        ]
        super().__init__(classes, samples, folder)
        self.encoding: Encoding = encoding


def open_masks(folder: Path, *, share: float = 0.5, seed: int = 0) -> tuple[Masks, Masks]:
    """Open the training and the validation part of a data set, whose kind its folders tell.

    Args:
        folder: of VOC, ADE20k or `FolderMasks`.
        share: of the images that train, where a folder has no lists.
        seed: of their draw.

    Raises:
        ValueError: if it is none of them, files are missing, or lists or classes cannot be understood.
    """
    if _root_of_voc(folder):
        return VocMasks(folder, "train"), VocMasks(folder, "val")
    if _root_of_ade(folder):
        return AdeMasks(folder, "train"), AdeMasks(folder, "val")
    train = FolderMasks(folder, "train", share=share, seed=seed)
    return train, FolderMasks(folder, "val", share=share, seed=seed, like=train)


def _root_of_voc(folder: Path) -> Path | None:
    roots = (Path(folder) / part for part in ("", "VOC2012", "VOCdevkit/VOC2012"))
    return next((root for root in roots if (root / "SegmentationClass").is_dir()), None)


def _root_of_ade(folder: Path) -> Path | None:
    roots = (Path(folder) / part for part in ("", "ADEChallengeData2016"))
    return next((root for root in roots if (root / "annotations" / "training").is_dir()), None)


def _is_folder_of_masks(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _not_found(folder: Path) -> NoReturn:
    raise ValueError(f"{folder} holds no images with masks; {LAYOUTS}")


def _checked(split: str) -> Split:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return split


def _ade_classes(root: Path) -> list[str]:
    """Read the last column of the table of objects, or number the classes as the masks do."""
    table = root / "objectInfo150.txt"
    if not table.is_file():
        return [str(i + 1) for i in range(ADE_CLASSES)]
    names = [line.split("\t")[-1].strip() for line in read_list(table)[1:]]
    if len(names) != ADE_CLASSES:
        raise ValueError(f"{table} has {len(names)} classes after its first line, ADE20k has {ADE_CLASSES}")
    return names


def _classes_of(folder: Path, masks: Iterable[Path]) -> tuple[list[str], Encoding]:
    """Read the classes, or find them in the masks; raise ValueError where there are none to be had."""
    path = folder / "classes.txt"
    return read_classes(path) if path.is_file() else found_classes(masks)


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Find the files with one of the suffixes, sorted; no two have one stem."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and files.setdefault(path.stem, path) != path:
            raise ValueError(f"{path} and {files[path.stem].name} have the same stem; rename or remove one")
    return files


def _stems_of(folder: Path, stems: list[str], split: Split, share: float, seed: int) -> list[str]:
    """Pick the stems of a split by its list, or by their share where there is no list."""
    lists = {name: folder / f"{name}.txt" for name in SPLITS}
    if any(path.is_file() for path in lists.values()):
        return read_list(lists[split])
    num_train = round(share * len(stems))
    if not 0 < num_train < len(stems):
        raise ValueError(f"{folder}: a share of {share} of {len(stems)} images leaves a split empty; add some")
    random.Random(seed).shuffle(stems)
    return sorted(stems[:num_train] if split == "train" else stems[num_train:])
