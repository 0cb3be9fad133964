"""Photos of PASCAL VOC and the boxes of the objects in them, for object discovery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..objects import box_around, components
from .listed import read_png

VOID = 255  # label of pixels between objects
LAYOUT = "VOCdevkit/VOC20{07,12}/{JPEGImages,Annotations,ImageSets/Main/<split>.txt}"
Source = Literal["Annotations", "SegmentationObject", "SegmentationClass"]


@dataclass(frozen=True, eq=False)
class Located:
    """A photo and where its objects are.

    Attributes:
        name: of the photo.
        image: its file.
        boxes: [N, 4] in [0, 1], image frame, (left, top, right, bottom); N may be 0.
    """

    name: str
    image: Path
    boxes: Tensor


class VocBoxes:
    """The photos of a split, in the order of its list.

    All boxes count, those of objects marked difficult or truncated too, and all photos stay. It is what LOST does in
    its table; only for its comparison "VOC_all" does it leave out such objects, and photos that have no others.

    A folder without boxes gives those of its masks: of the objects in `SegmentationObject`, or else, roughly, of what
    hangs together in a class of `SegmentationClass`, where objects of a class that touch are one, and an object in two
    parts is two, crumbs of a few pixels too. Masks end short of their objects' edges, which are void, so that their
    boxes are a little small, and they are of the photos in `ImageSets/Segmentation`. Figures over them are no CorLoc of
    VOC.

    Args:
        folder: VOCdevkit/VOC2007 or VOCdevkit/VOC2012.
        split: a name in `ImageSets/Main`, without ".txt"; "trainval" joins the two if it has no list.

    Attributes:
        source: the folder that the boxes come from.

    Raises:
        ValueError: if boxes, masks or the list are missing.
    """

    def __init__(self, folder: str | Path, split: str = "trainval") -> None:
        self._folder = Path(folder)
        self.source = _source_of(self._folder)
        sets = self._folder / "ImageSets" / ("Main" if self.source == "Annotations" else "Segmentation")
        self._names = _names(sets, split)

    @property
    def images(self) -> list[Path]:
        """Name the photos' files."""
        return [self._folder / "JPEGImages" / f"{name}.jpg" for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Located:
        """Read the boxes of a photo.

        Raises:
            ValueError: if its image, its boxes or its mask are missing or damaged.
            ImportError: if boxes come from `SegmentationClass`, without scipy.
        """
        name = self._names[index]
        suffix = "xml" if self.source == "Annotations" else "png"
        image = self.images[index]
        truth = self._folder / self.source / f"{name}.{suffix}"
        for path in (image, truth):
            if not path.is_file():
                raise ValueError(f"{name} is in the list, but there is no {path}; expected {LAYOUT}")
        return Located(name, image, _READERS[self.source](truth))


def _source_of(folder: Path) -> Source:
    sources: tuple[tuple[Source, str], ...] = (
        ("Annotations", "*.xml"),
        ("SegmentationObject", "*.png"),
        ("SegmentationClass", "*.png"),
    )
    for source, pattern in sources:
        if next((folder / source).glob(pattern), None) is not None:
            return source
    raise ValueError(f"neither boxes nor masks of objects in {folder.resolve()}; expected {LAYOUT}")


def _names(sets: Path, split: str) -> list[str]:
    """Read the names in a list."""
    paths = [sets / f"{split}.txt"]
    if split == "trainval" and not paths[0].is_file():
        paths = [sets / "train.txt", sets / "val.txt"]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"no list of photos {path}; expected {LAYOUT}")
    # A class' own list has a second column that says whether the photo shows it.
    return [line.split()[0] for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _of_xml(path: Path) -> Tensor:
    """Read the boxes [N, 4] of an annotation, whose pixels count from 1 and are inside, the last one too."""
    try:
        root = _parsed(path)
        width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
        objects = [[_number(thing, f"bndbox/{side}") for side in _SIDES] for thing in root.findall("object")]
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"cannot read {path}: {error}; take the data set's own file") from error
    corners = torch.tensor(objects, dtype=torch.float64).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
    boxes = (corners / torch.tensor([width, height, width, height])).clamp(0, 1).float()
    if not (width > 0 and height > 0 and bool((boxes[:, 2:] > boxes[:, :2]).all())):
        raise ValueError(
            f"cannot read {path}: a box must have sides, and lie in the image; got {objects} in {width:g} x "
            f"{height:g}; take the data set's own file"
        )
    return boxes


def _parsed(path: Path) -> ElementTree.Element:
    text = path.read_text(encoding="utf-8")
    if "<!DOCTYPE" in text or "\0" in text:  # zeros would make the parser read it as UTF-16
        raise ValueError("it declares a DOCTYPE, which can define entities without end, or holds zeros")
    return ElementTree.fromstring(text)


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> has no {path}")
    return float(text)


def _of_objects(path: Path) -> Tensor:
    """Find the boxes [N, 4] of a mask of objects, one each."""
    ids = _read_ids(path)
    return _stacked([box_around(ids == label) for label in _labels(ids)])


def _of_classes(path: Path) -> Tensor:
    """Find the boxes [N, 4] of a mask of classes, one for each part of a class that hangs together."""
    ids = _read_ids(path)
    parts = (components(ids == label) for label in _labels(ids))
    return _stacked([box_around(part == number) for part in parts for number in range(1, int(part.max()) + 1)])


def _read_ids(path: Path) -> npt.NDArray[np.uint8]:
    image = read_png(path)
    if image.mode not in ("L", "P"):
        raise ValueError(f"{path} must have a palette, got mode {image.mode}; take the data set's own file")
    return np.array(image)


def _labels(ids: npt.NDArray[np.uint8]) -> list[int]:
    return [label for label in np.unique(ids).tolist() if label not in (0, VOID)]


def _stacked(boxes: list[Tensor]) -> Tensor:
    return torch.stack(boxes) if boxes else torch.zeros(0, 4)


_SIDES = ("xmin", "ymin", "xmax", "ymax")
_READERS = {"Annotations": _of_xml, "SegmentationObject": _of_objects, "SegmentationClass": _of_classes}
