"""NYU depth v2, as codebases of depth have it: frames with their depths, and lists of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..._util.images import read_image
from .listed import check_present, check_same_size, inside, read_list, read_png

MILLIMETERS = 1000  # in a meter
NO_DEPTH = 65_535  # beside 0; NYU's own depths end at 10 m, 7-Scenes marks pixels without one so


@dataclass(frozen=True)
class Frame:
    """An image and its depths, not yet read.

    Attributes:
        name: scene and stem.
        image: a file.
        depth: a PNG of 16 bits.
        focal: length in pixels.
    """

    name: str
    image: Path
    depth: Path
    focal: float

    def read_image(self) -> Image.Image:
        """Read the image, RGB and upright."""
        return read_image(self.image)

    def read_depth(self) -> NDArray[np.float32]:
        """Read the depths: [H, W] in meters, 0 where there is none.

        Raises:
            ValueError: if the file has not 16 bits.
        """
        image = read_png(self.depth)
        if not image.mode.startswith("I"):
            raise ValueError(f"{self.depth}: depths are a PNG of 16 bits, in millimeters, got mode {image.mode}")
        depth = np.asarray(image).astype(np.float32)
        depth[depth == NO_DEPTH] = 0
        return depth / np.float32(MILLIMETERS)

    def read(self) -> tuple[Image.Image, NDArray[np.float32]]:
        """Read both.

        Raises:
            ValueError: if they differ in shape.
        """
        image, depth = self.read_image(), self.read_depth()
        check_same_size(self.image, self.depth, image.size, depth.shape)
        return image, depth


class NyuDepth:
    """The frames that `nyu_train.txt` or `nyu_test.txt` lists, in its order: a map-style data set.

    A line has the color file, the depth file and the focal length; those whose depth file is None are left out.

    Args:
        folder: holds the lists and the scenes.
        split: "train" or "test".

    Raises:
        ValueError: if files are missing, or a line cannot be understood, or leads out of the folder.
    """

    def __init__(self, folder: Path, split: Literal["train", "test"]) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        source = Path(folder) / f"nyu_{split}.txt"
        frames = [_frame(Path(folder), line, source) for line in read_list(source)]
        self._frames = [frame for frame in frames if frame.depth.name != "None"]
        check_present([path for frame in self._frames for path in (frame.image, frame.depth)], source)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        return self._frames[index]


def _frame(folder: Path, line: str, source: Path) -> Frame:
    try:
        color, depth, focal = line.split()
        length = float(focal)
    except ValueError as error:
        raise ValueError(f"{source}: {line!r} is not a color file, a depth file and a focal length") from error
    image = inside(folder, color, source)
    name = image.relative_to(folder).with_suffix("").as_posix()
    return Frame(name, image, inside(folder, depth, source), length)
