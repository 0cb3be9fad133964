"""Frames with depths are read as the lists say, and what is wrong with them is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from dvt_timm.evaluate.data.nyu import NyuDepth

NYU = ROOT.parent / "shared" / "data" / "nyu"


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    scene = tmp_path / "kitchen_0001"
    scene.mkdir()
    for i in range(2):
        Image.new("RGB", (3, 2)).save(scene / f"rgb_{i}.jpg")
        depth = np.array([[0, 1, 1000], [2500, 9999, 65535]], dtype=np.uint16)
        Image.fromarray(depth).save(scene / f"sync_depth_{i}.png")
    (tmp_path / "nyu_train.txt").write_text("/kitchen_0001/rgb_0.jpg /kitchen_0001/sync_depth_0.png 518.8579\n")
    lines = ["kitchen_0001/rgb_1.jpg kitchen_0001/sync_depth_1.png 585.0", "kitchen_0001/rgb_0.jpg None 585.0"]
    (tmp_path / "nyu_test.txt").write_text("\n".join(lines))
    return tmp_path


def test_frames_and_their_depths(nyu: Path) -> None:
    frames = NyuDepth(nyu, "train")
    assert len(frames) == 1
    assert (frames[0].name, frames[0].focal) == ("kitchen_0001/rgb_0", 518.8579)
    image, depth = frames[0].read()
    assert (image.mode, image.size, depth.dtype) == ("RGB", (3, 2), np.float32)
    np.testing.assert_allclose(depth, [[0, 0.001, 1], [2.5, 9.999, 0]], rtol=1e-6)


def test_frames_without_depth_are_left_out(nyu: Path) -> None:
    assert [frame.name for frame in NyuDepth(nyu, "test")] == ["kitchen_0001/rgb_1"]


@pytest.mark.parametrize("line", ["/../rgb.jpg a.png 1", "a.jpg b/../../a.png 1", "..\\a.jpg a.png 1", "// a.png 1"])
def test_lists_stay_inside(nyu: Path, line: str) -> None:
    (nyu / "nyu_test.txt").write_text(line)
    with pytest.raises(ValueError, match=r"nyu_test.txt: .* leads out of"):
        NyuDepth(nyu, "test")


@pytest.mark.parametrize("line", ["a.jpg b.png", "a.jpg", "a.jpg b.png far", "a.jpg b.png 1 2"])
def test_lines_that_cannot_be_understood(nyu: Path, line: str) -> None:
    (nyu / "nyu_test.txt").write_text(line)
    with pytest.raises(ValueError, match="is not a color file, a depth file and a focal length"):
        NyuDepth(nyu, "test")


def test_what_is_missing(nyu: Path) -> None:
    (nyu / "kitchen_0001" / "sync_depth_0.png").unlink()
    with pytest.raises(ValueError, match=r"sync_depth_0.png not found; of 2 files of .*nyu_train.txt, 1 are missing"):
        NyuDepth(nyu, "train")
    (nyu / "nyu_train.txt").unlink()
    with pytest.raises(ValueError, match=r"nyu_train.txt not found"):
        NyuDepth(nyu, "train")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        NyuDepth(nyu, "val")  # type: ignore[arg-type]


def test_depths_that_cannot_be_understood(nyu: Path) -> None:
    frame = NyuDepth(nyu, "train")[0]
    Image.new("L", (3, 2)).save(frame.depth)
    with pytest.raises(ValueError, match="depths are a PNG of 16 bits, in millimeters, got mode L"):
        frame.read_depth()
    Image.fromarray(np.zeros((3, 3), dtype=np.uint16)).save(frame.depth)
    with pytest.raises(ValueError, match=r"sync_depth_0.png has 3 x 3 pixels, .*rgb_0.jpg has 2 x 3"):
        frame.read()
    frame.depth.write_bytes(b"")
    with pytest.raises(ValueError, match="not a PNG image"):
        frame.read_depth()


@pytest.mark.skipif(not NYU.is_dir(), reason=f"{NYU} is absent")
def test_real_depths() -> None:
    train, test = NyuDepth(NYU, "train"), NyuDepth(NYU, "test")
    assert (len(train), len(test)) == (48, 24)
    image, depth = test[0].read()
    assert (image.size, depth.shape) == ((640, 480), (480, 640))
    assert 0.3 < depth[depth > 0].min() < depth.max() < 10
