"""Segmentation, key points, videos and objects on data whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FAMILIES, VIT, create, photo, random_head
from PIL import Image
from planting import Blind, seeing

from dvt_timm.evaluate.data.boxes import Located
from dvt_timm.evaluate.data.davis import Video
from dvt_timm.evaluate.data.encoding import Encoding
from dvt_timm.evaluate.data.masks import Labeled
from dvt_timm.evaluate.data.spair import Pair
from dvt_timm.evaluate.objects import is_located, lost
from dvt_timm.evaluate.rows import Rows
from dvt_timm.evaluate.tasks.correspondence import correspondence, spread_over
from dvt_timm.evaluate.tasks.discovery import discovery
from dvt_timm.evaluate.tasks.propagation import propagation
from dvt_timm.evaluate.tasks.segmentation import segmentation
from dvt_timm.evaluate.videos import boundary_accuracy, masks_of, propagate, region_similarity, soft_labels

COLORS = np.array([[200, 30, 0], [30, 200, 0], [30, 30, 0]], dtype=np.uint8)  # of three classes, told by red and green


class Listed:
    """A data set of what it is given."""

    def __init__(self, items: list[Any], classes: tuple[str, ...] = ()) -> None:
        self.items, self.classes = items, list(classes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def colored(folder: Path, count: int, seed: int = 0) -> Listed:
    """Images of 4 x 4 patches of three colors, and their masks; a corner has no class."""
    folder.mkdir(exist_ok=True)
    encoding = Encoding({0: 0, 1: 1, 2: 2, 255: 255}, 3)
    items = []
    for i in range(count):
        labels = np.random.default_rng(seed + i).integers(0, 3, size=(4, 4)).repeat(16, 0).repeat(16, 1)
        Image.fromarray(COLORS[labels]).save(folder / f"{i}.png")
        labels[:16, :16] = 255
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{i}-mask.png")
        items.append(Labeled(str(i), folder / f"{i}.png", folder / f"{i}-mask.png", encoding))
    return Listed(items, ("red", "green", "dark"))


def colors_seen() -> Rows:
    """A model whose features are colors, and one that is blind."""
    rows = Rows(seeing(img_size=64))
    rows.add({"blind": Blind()})  # type: ignore[dict-item]
    return rows


@pytest.mark.parametrize("protocol", ["knn", "patch"])
def test_classes_that_are_seen(tmp_path: Path, protocol: Any) -> None:
    train, test = colored(tmp_path / "train", 12), colored(tmp_path / "test", 5, seed=50)
    found = segmentation(colors_seen(), train, test, protocol=protocol, seeds=(0, 1), memory=100)
    measure = found.measures[0].name
    assert found.figures["plain"][measure].value > (0.95 if protocol == "knn" else 0.6)
    assert found.figures["blind"][measure].value < 0.35
    assert list(found.classes) == ["red", "green", "dark"]
    assert len(found.each["patches right"]["plain"]) == found.count == 5
    ious = [found.classes[name]["plain"].value for name in found.classes]
    assert found.figures["plain"][measure].value == pytest.approx(sum(ious) / 3)
    assert found.settings["memory"] == "8 patches of each image"
    assert found.difference("blind").interval[1] < 0


def test_masks_that_cannot_be_read(tmp_path: Path) -> None:
    train, test = colored(tmp_path / "train", 4), colored(tmp_path / "test", 3, seed=50)
    test.items[1].image.write_text("no image")
    found = segmentation(colors_seen(), train, test)
    assert found.count == 2
    assert list(found.skipped) == [str(test.items[1].image)]
    assert segmentation(colors_seen(), train, test, limit=1).count == 1
    with pytest.raises(ValueError, match="no training image that can be read has a patch with a class"):
        segmentation(colors_seen(), Listed([], train.classes), test)
    with pytest.raises(ValueError, match="no test image can be read: there is none"):
        segmentation(colors_seen(), train, Listed([], train.classes))


def test_key_points_of_one_photo_in_itself(tmp_path: Path) -> None:
    image = photo(3).resize((80, 64))
    image.save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no image")
    points = torch.tensor([[8.0, 8.0], [40.0, 30.0], [79.0, 60.0]])
    good = Pair("same", "dog", tmp_path / "a.png", tmp_path / "a.png", points, points, side=120.0)
    far = Pair("far", "dog", tmp_path / "a.png", tmp_path / "a.png", points[:1], points[:1] + 60, side=64.0)
    bad = Pair("bad", "dog", tmp_path / "a.png", tmp_path / "bad.png", points, points, side=120.0)
    rows = Rows(create(FAMILIES[VIT], dynamic_img_size=True, img_size=70), {"head": random_head()})
    found = correspondence(rows, Listed([good, far, bad]))
    assert found.count == 2
    assert found.skipped.keys() == {"pair 2"}
    assert found.figures["plain"]["PCK@0.10"].value == pytest.approx((1 + 0) / 2)
    assert found.figures["plain"]["PCK@0.10 per point"].value == pytest.approx(3 / 4)
    assert found.each["PCK@0.10"]["plain"] == [1, 0]
    with pytest.raises(ValueError, match="none of 1 pairs can be read"):
        correspondence(rows, Listed([bad]))


def test_a_limit_is_spread() -> None:
    assert spread_over(10, 4) == [0, 2, 5, 7]
    assert spread_over(3, 9) == spread_over(3, None) == [0, 1, 2]


def video(folder: Path, frames: int = 5) -> Video:
    """Two colored squares that move over a dark ground, a patch a frame."""
    folder.mkdir()
    files: tuple[list[Path], list[Path]] = ([], [])
    for t in range(frames):
        labels = np.full((4, 8), 2)
        labels[1, t], labels[3, 7 - t] = 0, 1
        pixels = COLORS[labels].repeat(16, 0).repeat(16, 1)
        ids = np.array([1, 2, 0], dtype=np.uint8)[labels].repeat(16, 0).repeat(16, 1)
        for list_of, suffix, array in zip(files, ("jpg.png", "png"), (pixels, ids), strict=True):
            list_of.append(folder / f"{t}.{suffix}")
            Image.fromarray(array).save(list_of[-1])
    return Video(name=folder.name, year="2017", frames=files[0], masks=files[1])


def test_objects_are_followed(tmp_path: Path) -> None:
    videos = Listed([video(tmp_path / "a"), video(tmp_path / "b")])
    rows = Rows(seeing(img_size=64), size=64, squeeze=False, batch_size=3)
    rows.add({"blind": Blind()})  # type: ignore[dict-item]
    found = propagation(rows, videos, radius=2, neighbors=1)
    assert found.count == 2
    assert found.figures["plain"]["J"].value > 0.6
    assert found.figures["blind"]["J"].value < 0.3
    assert found.measures[0].name == "J&F"
    maps = [rows.maps(videos[0].frame(t)).rows["plain"] for t in range(4)]
    followed = list(propagate(maps, soft_labels(videos[0].mask(0), (4, 8)), radius=2, neighbors=1))
    expected = []
    for t in (1, 2, 3):  # the last one does not count
        guessed, truth = masks_of(followed[t - 1], (64, 128)), videos[0].mask(t)
        pairs = [(guessed == label, truth == label) for label in (1, 2)]
        expected += [(region_similarity(*pair), boundary_accuracy(*pair)) for pair in pairs]
    J, F = np.mean(expected, axis=0)
    assert found.figures["plain"]["J"].value == pytest.approx(J, abs=1e-6)
    assert found.figures["plain"]["F"].value == pytest.approx(F, abs=1e-6)
    assert found.figures["plain"]["J&F"].value == pytest.approx((J + F) / 2, abs=1e-6)
    short = propagation(rows, videos, limit=1, frames=3, radius=2, neighbors=1)
    assert short.count == 1
    assert short.settings["frames of each video"] == 3
    with pytest.raises(ValueError, match="no video can be followed: a: 2 frames with 2 objects in the first"):
        propagation(rows, videos, frames=2)
    videos[0].frames[2].write_text("no image")
    broken = propagation(rows, videos, radius=2, neighbors=1)
    assert (broken.count, broken.skipped.keys()) == (1, {"a"})
    with pytest.raises(ValueError, match="no video can be followed: there is none"):
        propagation(rows, Listed([]))


def test_objects_are_found(tmp_path: Path) -> None:
    photo(4).resize((80, 64)).save(tmp_path / "a.png")
    rows = Rows(create(FAMILIES[VIT], dynamic_img_size=True, img_size=70), squeeze=False)
    box = lost(rows.maps(photo(4).resize((80, 64))).rows["plain"])
    hit = Located("a", tmp_path / "a.png", box[None])
    miss = Located("b", tmp_path / "a.png", torch.tensor([[0.0, 0.0, 1e-3, 1e-3]]))
    none = Located("c", tmp_path / "a.png", torch.zeros(0, 4))
    gone = Located("d", tmp_path / "gone.png", box[None])
    found = discovery(rows, Listed([hit, miss, none, gone]))
    assert is_located(box, hit.boxes)
    assert found.figures["plain"]["CorLoc"].value == 0.5
    assert found.count == 2
    assert list(found.skipped) == ["photo 3"]
    with pytest.raises(ValueError, match="no photo with a box can be read"):
        discovery(rows, Listed([none]))
