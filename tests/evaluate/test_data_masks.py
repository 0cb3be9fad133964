"""Folders of images with masks are recognized, and what is wrong with them is said."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from dvt_timm._util.images import ImageError, large_images
from dvt_timm.evaluate.data.listed import read_png
from dvt_timm.evaluate.data.masks import AdeMasks, FolderMasks, VocMasks, open_masks

VOC = ROOT.parent / "shared" / "data" / "VOCdevkit"


def write_image(path: Path, width: int = 3, height: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (10, 20, 30)).save(path)


def write_mask(path: Path, rows: list[list[int]], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(rows, dtype=np.uint8))
    if palette:
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    image.save(path)


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for stem in ("a", "b"):
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        write_mask(root / "SegmentationClass" / f"{stem}.png", [[0, 20, 255], [1, 2, 3]], palette=True)
    write_text(root / "ImageSets" / "Segmentation" / "train.txt", "b")
    write_text(root / "ImageSets" / "Segmentation" / "val.txt", "a", "")
    return root


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        write_image(root / "images" / part / "x.jpg")
        write_mask(root / "annotations" / part / "x.png", [[0, 1, 2], [150, 255, 3]])
    return root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for stem in "abcdef":
        write_image(tmp_path / "images" / f"{stem}.png")
        write_mask(tmp_path / "masks" / f"{stem}.png", [[0, 1, 255], [1, 1, 0]])
    write_text(tmp_path / "classes.txt", "road", "traffic light")
    return tmp_path


def test_voc_reads_the_indices_of_the_palette(voc: Path) -> None:
    masks = VocMasks(voc, "train")
    assert (len(masks), masks[0].name, len(masks.classes), masks.classes[20]) == (1, "b", 21, "tvmonitor")
    image, labels = masks[0].read()
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 20, 255], [1, 2, 3]]


@pytest.mark.parametrize("above", [0, 1, 2])
def test_voc_is_recognized_from_above(voc: Path, above: int) -> None:
    folder = [voc, *voc.parents][above]
    train, val = open_masks(folder)
    assert isinstance(train, VocMasks)
    assert ([sample.name for sample in train], [sample.name for sample in val]) == (["b"], ["a"])


def test_ade_ignores_label_0_and_counts_the_others_from_0(ade: Path) -> None:
    train, val = open_masks(ade.parent)
    assert isinstance(train, AdeMasks)
    assert (len(train), len(val), train.classes[0], train.classes[-1]) == (1, 1, "1", "150")
    assert val[0].read_labels().tolist() == [[255, 0, 1], [149, 255, 2]]


def test_ade_names_its_classes_by_its_table(ade: Path) -> None:
    rows = [f"{i}\t0.1\t3\t4\t1\tthing {i}, stuff" for i in range(1, 151)]
    write_text(ade / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName", *rows)
    assert AdeMasks(ade, "val").classes[149] == "thing 150, stuff"
    write_text(ade / "objectInfo150.txt", *rows)
    with pytest.raises(ValueError, match="has 149 classes after its first line, ADE20k has 150"):
        AdeMasks(ade, "val")


def test_a_folder_of_ones_own(own: Path) -> None:
    masks = FolderMasks(own)
    assert masks.classes == ["road", "traffic light"]
    assert [sample.name for sample in masks] == list("abcdef")
    assert masks[2].read()[1].tolist() == [[0, 1, 255], [1, 1, 0]]
    write_image(own / "images" / "without_a_mask.jpg")
    assert len(FolderMasks(own)) == 6


def test_colors_are_looked_up(own: Path) -> None:
    write_text(own / "classes.txt", "128 64 128 road", "0 0 0\tVoid", "1 0 255 traffic light")
    pixels = np.array([[[128, 64, 128], [0, 0, 0], [1, 0, 255]], [[1, 0, 255]] * 3], dtype=np.uint8)
    Image.fromarray(pixels).save(own / "masks" / "a.png")
    masks = FolderMasks(own)
    assert masks.classes == ["road", "traffic light"]
    assert masks[0].read_labels().tolist() == [[0, 255, 1], [1, 1, 1]]
    pixels[1, 2] = (1, 0, 254)
    Image.fromarray(pixels).save(own / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"a.png: a pixel has the value \(1, 0, 254\), which is none of the 2 classes"):
        masks[0].read_labels()


def test_a_class_named_void_is_ignored(own: Path) -> None:
    write_text(own / "classes.txt", "void", "road")
    masks = FolderMasks(own)
    assert masks.classes == ["road"]
    assert masks[0].read_labels().tolist() == [[255, 0, 255], [0, 0, 255]]


def test_any_number_of_colors_may_be_void(own: Path) -> None:
    write_text(own / "classes.txt", "0 0 0 void", "10 20 30 road", "255 255 255 Void")
    write_image(own / "masks" / "a.png")
    masks = FolderMasks(own)
    assert masks.classes == ["road"]
    assert masks[0].read_labels().tolist() == [[0, 0, 0]] * 2


def test_splits_by_share_are_the_same_every_time(own: Path) -> None:
    train, val = ([sample.name for sample in part] for part in open_masks(own, share=1 / 3, seed=1))
    assert (len(train), sorted(train + val)) == (2, list("abcdef"))
    again = FolderMasks(own, "train", share=1 / 3, seed=1)
    assert [sample.name for sample in again] == train
    assert len({tuple(s.name for s in FolderMasks(own, "train", share=1 / 3, seed=seed)) for seed in range(9)}) > 1
    with pytest.raises(ValueError, match=r"a share of 0.05 of 6 images leaves a split empty"):
        open_masks(own, share=0.05)


def test_splits_by_lists(own: Path) -> None:
    write_text(own / "train.txt", "c", "a")
    with pytest.raises(ValueError, match=r"val.txt not found"):
        open_masks(own)
    write_text(own / "val.txt", "b")
    assert [[sample.name for sample in part] for part in open_masks(own)] == [["c", "a"], ["b"]]
    for stem, message in (("g", "g.jpg not found"), ("../a", "leads out of"), ("/etc/a", "not found")):
        write_text(own / "val.txt", stem)
        with pytest.raises(ValueError, match=message):
            open_masks(own)
    write_text(own / "val.txt", "")
    with pytest.raises(ValueError, match=r"val.txt is empty"):
        open_masks(own)


def test_lists_stay_inside_voc(voc: Path) -> None:
    write_text(voc / "ImageSets" / "Segmentation" / "train.txt", "../../a")
    with pytest.raises(ValueError, match="leads out of"):
        VocMasks(voc, "train")


@pytest.mark.parametrize("part", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
def test_missing_files_of_voc(voc: Path, part: str) -> None:
    (voc / part).unlink()
    with pytest.raises(ValueError, match=r"b\.(jpg|png) not found; of 2 files of .*train.txt, 1 are missing"):
        VocMasks(voc, "train")


def test_missing_files_of_ade(ade: Path) -> None:
    (ade / "annotations" / "training" / "x.png").unlink()
    with pytest.raises(ValueError, match=r"x.png not found"):
        AdeMasks(ade, "train")
    (ade / "images" / "training" / "x.jpg").unlink()
    with pytest.raises(ValueError, match=r"training has no .jpg; the layouts that are known"):
        AdeMasks(ade, "train")


def test_unknown_layouts_name_the_known_ones(tmp_path: Path, own: Path) -> None:
    for open_it in (open_masks, lambda folder: VocMasks(folder, "val"), lambda folder: AdeMasks(folder, "val")):
        with pytest.raises(ValueError, match=r"holds no images with masks; the layouts(.|\n)*VOC(.|\n)*ADE20k"):
            open_it(tmp_path / "images")
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'val'\), got 'test'"):
        FolderMasks(own, "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("palette", [False, True])
def test_classes_are_found_in_all_masks(own: Path, palette: bool) -> None:
    (own / "classes.txt").unlink()
    write_mask(own / "masks" / "f.png", [[3, 255, 0], [1, 1, 0]], palette)
    (own / "masks" / "e.png").write_text("no image")
    for lists in (False, True):
        if lists:
            write_text(own / "train.txt", "a", "b")
            write_text(own / "val.txt", "c")
        train, val = open_masks(own)
        assert train.classes == val.classes == ["0", "1", "2", "3"]
    assert FolderMasks(own)[5].read()[1].tolist() == [[3, 255, 0], [1, 1, 0]]
    assert FolderMasks(own)[0].read_labels().tolist() == [[0, 1, 255], [1, 1, 0]]


def test_black_and_white_masks_have_two_classes(own: Path) -> None:
    (own / "classes.txt").unlink()
    for path in (own / "masks").iterdir():
        Image.fromarray(np.array([[True, False, True]] * 2)).save(path)
    masks = FolderMasks(own)
    assert masks.classes == ["0", "1"]
    assert masks[0].read_labels().tolist() == [[1, 0, 1]] * 2


def gray_png(path: Path, rows: list[list[int]], bits: int) -> None:
    """Write a gray PNG of few bits, which Pillow does not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    digits = ("".join(f"{value:0{bits}b}" for value in row) for row in rows)
    packed = (int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in digits)
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("bits", "rows"), [(2, [[0, 1, 2], [3, 3, 0]]), (4, [[0, 1, 2], [3, 14, 15]])])
def test_the_index_is_the_label_in_few_bits_too(own: Path, bits: int, rows: list[list[int]]) -> None:
    write_text(own / "classes.txt", *map(str, range(16)))
    gray_png(own / "masks" / "a.png", rows, bits)
    assert FolderMasks(own)[0].read_labels().tolist() == rows
    image = read_png(own / "masks" / "a.png")
    assert image.mode == "L"
    assert np.asarray(image).tolist() == rows
    write_text(own / "classes.txt", *(f"{3 * f'{gray} '}gray {gray}" for gray in range(0, 256, 17)))
    colors = np.array(rows) * {2: 85, 4: 17}[bits]  # of which 0 is black and the largest value white
    assert FolderMasks(own)[0].read_labels().tolist() == (colors // 17).tolist()


def test_masks_are_as_large_as_images_may_be(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = FolderMasks(own)[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert sample.read_labels().shape == (2, 3)  # fewer than twice as many
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(ImageError, match=r"a.png: 2 x 3 pixels, more than 4 in all; .*\(--large-images\)"):
        sample.read_labels()
    with large_images():
        assert sample.read_labels().tolist() == [[0, 1, 255], [1, 1, 0]]


def test_masks_that_need_classes(own: Path) -> None:
    (own / "classes.txt").unlink()
    for path in (own / "masks").iterdir():
        write_mask(path, [[0, 255, 255], [255, 0, 0]])
    with pytest.raises(ValueError, match=r"got no pixel with an index of 1 to 254; 255 is ignored, so save"):
        open_masks(own)
    Image.fromarray(np.array([[0, 1, 300]] * 2, dtype=np.uint16)).save(own / "masks" / "b.png")
    with pytest.raises(ValueError, match=r"b.png: without a classes.txt indices are 0 to 255, got 300; number them so"):
        open_masks(own)
    write_image(own / "masks" / "a.png")
    with pytest.raises(ValueError, match=r'a.png: an RGB mask needs a classes.txt of "red green blue name" lines'):
        open_masks(own)


def test_classes_that_cannot_be_understood(own: Path) -> None:
    cases = (
        (["1 2 3 road", "tree"], "'tree' is no \"red green blue name\""),
        (["1 2 3 road", "1 2 3 tree"], "two classes have the same color"),
        (["road", "tree", "road"], "two classes are named 'road'; give each a name of its own"),
        (["1 2 3 road", "4 5 6 road"], "two classes are named 'road'"),
        (["void"], "names 0 classes"),
        ([str(i) for i in range(256)], "names 256 classes, there may be 1 to 255"),
    )
    for lines, message in cases:
        write_text(own / "classes.txt", *lines)
        with pytest.raises(ValueError, match=message):
            FolderMasks(own)
    (own / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no text"):
        FolderMasks(own)


def test_masks_that_cannot_be_understood(own: Path) -> None:
    write_mask(own / "masks" / "a.png", [[0, 1, 2], [0, 0, 0]])
    write_mask(own / "masks" / "b.png", [[0, 1], [0, 0]])
    write_image(own / "masks" / "c.png")
    (own / "masks" / "d.png").write_text("no image")
    Image.new("RGB", (3, 2)).save(own / "masks" / "e.png", format="JPEG")
    masks = FolderMasks(own)
    messages = (
        r"a.png: a pixel has the value 2, which is none of the 2 classes",
        r"b.png has 2 x 2 pixels, .*b.png has 2 x 3",
        r'c.png: an RGB mask needs a classes.txt of "red green blue name" lines',
        r"d.png: not a PNG image",
        r"e.png: not a PNG image",
    )
    for i, message in enumerate(messages):
        with pytest.raises(ValueError, match=message):
            masks[i].read()


def test_two_images_of_one_stem(own: Path) -> None:
    write_image(own / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"a.png and a.jpg have the same stem"):
        FolderMasks(own)


@pytest.mark.skipif(not VOC.is_dir(), reason=f"{VOC} is absent")
def test_real_masks() -> None:
    train, val = open_masks(VOC)
    assert (len(train), len(val)) == (300, 150)
    image, labels = train[0].read()
    assert labels.shape == (image.height, image.width)
    assert set(np.unique(labels)) == {0, 9, 12, 255}
