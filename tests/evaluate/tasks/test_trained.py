"""The paper's probes: trained for all rows at once, stopped and taken up, tested on data whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planting import Blind, seeing

from dvt_timm._util.team import Alone
from dvt_timm.evaluate import DepthConfig, Rows, SegmentationConfig, depth, linear_segmentation
from dvt_timm.evaluate.data import Frame, Labeled
from dvt_timm.evaluate.data.encoding import Encoding
from dvt_timm.evaluate.rows import Features
from dvt_timm.evaluate.tasks import training
from dvt_timm.offline import RunError

COLORS = np.array([[220, 20, 0], [20, 220, 0]], dtype=np.uint8)
FEW = SegmentationConfig(steps=12, batch_size=2, lr=0.05)


class Listed(list[Any]):
    classes = ("red", "green")


def colors_seen(**options: Any) -> Rows:
    rows = Rows(seeing(img_size=64), **options)
    if not options:
        rows.add({"blind": Blind(0.0)})  # type: ignore[dict-item]
    return rows


def masks(folder: Path, count: int = 4) -> Listed:
    """Images whose left and right half have two colors, and their masks."""
    folder.mkdir(exist_ok=True)
    items = Listed()
    for i in range(count):
        labels = np.zeros((64, 96), dtype=np.uint8)
        labels[:, 48:] = 1
        labels = labels if i % 2 else 1 - labels
        Image.fromarray(COLORS[labels]).save(folder / f"{i}.png")
        Image.fromarray(labels).save(folder / f"{i}-mask.png")
        items.append(Labeled(str(i), folder / f"{i}.png", folder / f"{i}-mask.png", Encoding({0: 0, 1: 1}, 2)))
    return items


def frames(folder: Path, count: int = 3) -> list[Frame]:
    """Frames whose red grows with their depth, from 1 to 5 m; a border has no depth."""
    folder.mkdir(exist_ok=True)
    items = []
    for i in range(count):
        ramp = np.broadcast_to(np.linspace(0, 1, 640), (480, 640))
        share = ramp if i % 2 else ramp[:, ::-1]
        pixels = np.zeros((480, 640, 3), dtype=np.uint8)
        pixels[..., 0] = 255 * share
        Image.fromarray(pixels).save(folder / f"{i}.png")
        millimeters = (1000 + 4000 * share).astype(np.uint16)
        millimeters[:5] = 0
        Image.fromarray(millimeters).save(folder / f"{i}-depth.png")
        items.append(Frame(str(i), folder / f"{i}.png", folder / f"{i}-depth.png", 500.0))
    return items


def test_classes_that_are_seen(tmp_path: Path) -> None:
    train, test = masks(tmp_path / "train"), masks(tmp_path / "test", 3)
    found = linear_segmentation(colors_seen(), train, test, config=FEW)
    assert found.figures["plain"]["mIoU"].value > 0.8
    assert found.figures["blind"]["mIoU"].value < 0.6
    assert found.figures["plain"]["pixels right"].value > 0.9
    assert found.count == 3
    assert found.classes.keys() == {"red", "green"}
    assert found.difference("blind").interval[1] < 0
    assert "steps=12" in found.settings["training"]


def test_a_run_that_was_stopped_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EVERY", 3)
    train, test = masks(tmp_path / "train"), masks(tmp_path / "test", 3)
    whole = linear_segmentation(colors_seen(), train, test, config=FEW, folder=tmp_path / "whole").as_json()
    features, seen = Rows.features, []

    def stopped(self: Rows, pixels: torch.Tensor) -> dict[str, Features]:
        seen.append(pixels)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return features(self, pixels)

    monkeypatch.setattr(Rows, "features", stopped)
    with pytest.raises(KeyboardInterrupt):
        linear_segmentation(colors_seen(), train, test, config=FEW, folder=tmp_path / "run")
    taken_up = linear_segmentation(colors_seen(), train, test, config=FEW, folder=tmp_path / "run").as_json()
    assert len(seen) == 8 + (12 - 6) + 3 * 2  # from the checkpoint of step 6 on, and two windows of each test image
    assert taken_up == whole
    for others, options in ((train, {"seed": 1}), (train[:3], {}), (Listed([*train[:3], train[0]]), {})):
        with pytest.raises(RunError, match=r"probe\.pt is of a run with other settings"):
            linear_segmentation(
                colors_seen(), Listed(others), test, **{"config": FEW, "folder": tmp_path / "run", **options}
            )
    (tmp_path / "run/probe.pt").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"probe\.pt is damaged .*; delete it to begin anew"):
        linear_segmentation(colors_seen(), train, test, config=FEW, folder=tmp_path / "run")


def test_samples_that_threads_read_are_those_of_their_steps() -> None:
    def sample(index: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([index]), torch.rand(2, generator=generator)

    stream = training._Stream(sample, count=5, seed=1, skipped={})
    found = list(stream.batches(2, 9, 3, Alone()))
    assert len(found) == 7
    for step, batch in enumerate(found, start=2):
        alone = [stream._read(3 * step + i) for i in range(3)]
        for part, of_each in zip(batch, zip(*alone, strict=True), strict=True):
            assert torch.equal(part, torch.stack(of_each))


def test_images_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = masks(tmp_path / "train"), masks(tmp_path / "test", 3)
    train[2].image.write_text("no image")
    test[0].image.write_text("no image")
    found = linear_segmentation(colors_seen(), train, test, config=SegmentationConfig(steps=2, batch_size=2))
    assert found.count == 2
    assert found.skipped.keys() == {"sample 2", str(test[0].image)}
    for i in (0, 1, 3):
        train[i].image.write_text("no image")
    with pytest.raises(RunError, match="10 samples in a row cannot be read, the last because"):
        linear_segmentation(colors_seen(), train, test, config=FEW)
    with pytest.raises(RunError, match="there is nothing to train on"):
        linear_segmentation(colors_seen(), Listed(), test, config=FEW)
    with pytest.raises(ValueError, match="no test image can be read: there is none"):
        linear_segmentation(colors_seen(), masks(tmp_path / "train"), Listed(), config=SegmentationConfig(1, 1))


class Second(Alone):
    """The second of two processes, of which the first has the same."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = 1, 2

    def concatenate(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor])


def test_processes_share_a_batch(tmp_path: Path) -> None:
    images = torch.rand(24, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    stream = training._Stream(lambda i, generator: (images[i], torch.tensor(i)), 24, 0, {})
    order = torch.tensor(stream._shuffled(0))
    rows = Rows(seeing(img_size=64), team=Second())
    ((pixels, part),) = stream.batches(3, 4, 4, rows.team)
    features, target = training._joined(rows, pixels, part)
    assert torch.equal(target, order[[14, 15, 14, 15]])  # the second half of the samples 12 to 15
    for name, expected in rows.features(images[target]).items():
        torch.testing.assert_close(features[name].map, expected.map)
        torch.testing.assert_close(features[name].class_token, expected.class_token)
    train = masks(tmp_path / "train")
    with pytest.raises(ValueError, match="batch_size 3 must be a multiple of 2, the processes that share it"):
        linear_segmentation(rows, train, train, config=SegmentationConfig(steps=1, batch_size=3))


def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blind, "forward", lambda self, x: x * torch.nan)
    train = masks(tmp_path / "train")
    with pytest.raises(RunError, match="the loss of step 0 is not finite"):
        linear_segmentation(colors_seen(), train, train, config=FEW)


@pytest.mark.parametrize("as_released", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_depths_that_are_seen(tmp_path: Path, as_released: bool) -> None:
    train, test = frames(tmp_path / "train"), frames(tmp_path / "test", 2)
    config = DepthConfig(steps=12, batch_size=2, lr=0.03)
    found = depth(colors_seen(), train, test, config=config, as_released=as_released)
    assert list(found.figures["plain"]) == ["RMSE", "AbsRel", "a1", "a2", "a3", "log10"]
    assert found.figures["plain"]["RMSE"].value < found.figures["blind"]["RMSE"].value - 0.05
    assert found.figures["plain"]["a1"].value > found.figures["blind"]["a1"].value
    assert found.verdict("blind").endswith("2 images are too few to say more.")
    assert found.count == 2
    assert found.settings["loss"].startswith("as released" if as_released else "gradients along")
    one = DepthConfig(steps=1, batch_size=1)
    depth(colors_seen(), train, test, config=one, as_released=as_released, folder=tmp_path)
    with pytest.raises(RunError, match=r"probe\.pt is of a run with other settings"):
        depth(colors_seen(), train, test, config=one, as_released=not as_released, folder=tmp_path)


def test_depth_needs_a_class_token_and_depths(tmp_path: Path) -> None:
    items = frames(tmp_path / "train")
    config = DepthConfig(steps=1, batch_size=2)
    with pytest.raises(ValueError, match="the depth probe reads the class token, and this model has none"):
        depth(colors_seen(layer=0), items, items, config=config)
    Image.fromarray(np.zeros((480, 640), dtype=np.uint16)).save(items[0].depth)
    items[1].image.write_text("no image")
    other = frames(tmp_path / "other", 1)[0]
    for file in (other.image, other.depth):
        with Image.open(file) as image:
            image.resize((64, 48)).save(file)
    found = depth(colors_seen(), items[2:], [*items, other], config=config)
    assert found.count == 1
    assert found.skipped.keys() == {str(items[1].image), str(other.image)}
    with pytest.raises(ValueError, match="no test image with depths can be read"):
        depth(colors_seen(), items[2:], items[:2], config=config)
