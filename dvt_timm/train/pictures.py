"""What a run of training draws of a few held-out photos: a panel at every evaluation, and a strip over all steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import viz
from .._util.images import ImageError, read_image, save_picture
from .stage import Batch

PICTURES = "pictures"  # folder, within the run's
MOST_TILES = 13  # of the steps in a strip: two lines, with the photo, its raw map and the target


class Pictures:
    """Draws held-out photos as training goes on.

    Args:
        run: the run's folder.
        line: what stands below each picture besides the step, such as the backbone's name.

    Attributes:
        state: what a checkpoint keeps of the strips: of each photo, by its number, the steps, the losses and the tiles
            [h, w, 3] uint8.
    """

    def __init__(self, run: Path, line: str) -> None:
        self.folder, self.line = run / PICTURES, line
        self.state: dict[int, list[Any]] = {}  # [(step, loss, tile), ...]

    def draw(self, place: int, path: Path, batch: Batch, trained: Tensor, step: int, loss: float) -> None:
        """Draw the panel of a photo and its strip so far; nothing if the photo is not there any more.

        Args:
            place: the photo's number among those that are drawn.
            path: of the photo; it may have moved: all that training needs are its features.
            batch: the photo's maps, of one sample.
            trained: [h, w, C], the map that is being trained.
            step: steps that were taken.
            loss: of the held-out photos together.
        """
        if not path.is_file():
            return
        try:
            photo = np.asarray(read_image(path))
        except ImageError:  # it has changed since
            return
        maps = {"raw": batch.raw[0].numpy(), "target": batch.target[0].numpy(), "trained": trained.numpy()}
        caption = f"step {step:,} | held-out loss {loss:.4f} | {self.line}"
        save_picture(viz.feature_panel(photo, maps, caption=caption), self.folder / f"{step:06d}-{place}.png", caption)
        tile = torch.from_numpy(viz.progress_tile(**maps))
        self.state.setdefault(place, []).append((step, loss, tile))
        steps = _spread(self.state[place])
        tiles = {f"step {at:,}: {each:.4f}": tile.numpy() for at, each, tile in steps}
        caption = f"steps, and held-out losses | {self.line}"
        strip = viz.progress_strip(photo, maps["raw"], maps["target"], tiles, caption=caption)
        save_picture(strip, self.folder / f"strip-{place}.png", caption)


def _spread(steps: list[Any]) -> list[Any]:
    """Choose as many as a strip shows, evenly, the first and the last among them."""
    if len(steps) <= MOST_TILES:
        return steps
    return [steps[i] for i in np.linspace(0, len(steps) - 1, MOST_TILES).round().astype(int)]
