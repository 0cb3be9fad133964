"""Boxes of PASCAL VOC are read from annotations, and else from masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dvt_timm.evaluate.data.boxes import VocBoxes

OBJECT = """<object><name>cat</name><difficult>{difficult}</difficult><truncated>1</truncated>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
<bndbox><xmax>{box[2]}</xmax><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><ymax>{box[3]}</ymax></bndbox></object>"""
SIZE = "<size><width>10</width><height>20</height><depth>3</depth></size>"


def annotation(*boxes: tuple[object, ...], size: str = SIZE) -> str:
    objects = "".join(OBJECT.format(box=box, difficult=index % 2) for index, box in enumerate(boxes))
    return f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>"


def write(folder: Path, name: str, text: str | bytes) -> None:
    """Write a photo of 10 x 20 pixels and its annotation."""
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir(exist_ok=True)
    Image.new("RGB", (10, 20)).save(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "Annotations" / f"{name}.xml").write_bytes(text.encode() if isinstance(text, str) else text)


def write_mask(folder: Path, part: str, name: str, ids: list[list[int]]) -> None:
    for path in (folder / part, folder / "JPEGImages"):
        path.mkdir(exist_ok=True)
    mask = Image.fromarray(np.array(ids, np.uint8))
    Image.new("RGB", mask.size).save(folder / "JPEGImages" / f"{name}.jpg")
    mask.putpalette([7 * value % 256 for value in range(768)])
    mask.save(folder / part / f"{name}.png")


def write_list(folder: Path, sets: str, split: str, *lines: str) -> None:
    path = folder / "ImageSets" / sets / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n\n")


def test_boxes_of_annotations(tmp_path: Path) -> None:
    write(tmp_path, "b", annotation((1, 1, 10, 20), (3, 5, 7, 10)))  # difficult and truncated ones stay
    write(tmp_path, "a", annotation((3.5, 1, 7, 10)))
    write(tmp_path, "c", annotation())
    write_list(tmp_path, "Main", "trainval", "b", "a  1", "c -1")
    photos = VocBoxes(tmp_path)
    assert (len(photos), photos.source) == (3, "Annotations")
    assert [photo.name for photo in photos] == ["b", "a", "c"]
    assert photos[0].image == tmp_path / "JPEGImages" / "b.jpg"
    torch.testing.assert_close(photos[0].boxes, torch.tensor([[0.0, 0, 1, 1], [0.2, 0.2, 0.7, 0.5]]))
    torch.testing.assert_close(photos[1].boxes, torch.tensor([[0.25, 0, 0.7, 0.5]]))
    assert photos[2].boxes.shape == (0, 4)


def test_a_split_without_list_joins_two(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, name, annotation((1, 1, 10, 20)))
    write_list(tmp_path, "Main", "train", "b")
    with pytest.raises(ValueError, match=r"no list of photos .*Main/val.txt; expected VOCdevkit/"):
        VocBoxes(tmp_path)
    write_list(tmp_path, "Main", "val", "a")
    assert [photo.name for photo in VocBoxes(str(tmp_path))] == ["b", "a"]
    assert [photo.name for photo in VocBoxes(tmp_path, "val")] == ["a"]
    with pytest.raises(ValueError, match=r"no list of photos .*Main/test.txt"):
        VocBoxes(tmp_path, "test")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', "it declares a DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY b "bb">]><annotation/>'.encode("utf-16"), "codec can't decode"),
        ('<!DOCTYPE a [<!ENTITY b "bb">]><annotation/>'.encode("utf-16-le"), "or holds zeros"),
        ('<?xml version="1.0" encoding="utf-7"?>+ADw-!DOCTYPE a+AD4-', "not well-formed"),
        ("<annotation>", "no element found"),
        (annotation((1, 1, 2, 2), size=""), "<annotation> has no size/width"),
        (annotation((1, 1, 2, 2)).replace("ymin", "top"), "<object> has no bndbox/xmin|<object> has no bndbox/ymin"),
        (annotation((1, 1, "x", 2)), "could not convert string to float"),
        (annotation((5, 1, 2, 2)), r"a box must have sides, and lie in the image; got \[\[5.0, 1.0, 2.0, 2.0\]\]"),
        (annotation((1, 1, "nan", 2)), "a box must have sides"),
        (annotation((30, 1, 40, 2)), "a box must have sides"),
        (annotation((1, 1, 2, 2)).replace("<width>10", "<width>0"), "in 0 x 20"),
    ],
)
def test_damaged_and_hostile_annotations(tmp_path: Path, text: str | bytes, reason: str) -> None:
    write(tmp_path, "a", text)
    write_list(tmp_path, "Main", "trainval", "a")
    with pytest.raises(ValueError, match=rf"cannot read .*a.xml: .*({reason}).*; take the data set's own file"):
        VocBoxes(tmp_path)[0]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither boxes nor masks of objects in .*; expected VOCdevkit/"):
        VocBoxes(tmp_path)
    write(tmp_path, "a", annotation((1, 1, 2, 2)))
    write(tmp_path, "b", annotation((1, 1, 2, 2)))
    write_list(tmp_path, "Main", "trainval", "a", "b")
    (tmp_path / "Annotations" / "a.xml").unlink()
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    photos = VocBoxes(tmp_path)
    with pytest.raises(ValueError, match=r"a is in the list, but there is no .*Annotations/a.xml"):
        photos[0]
    with pytest.raises(ValueError, match=r"b is in the list, but there is no .*JPEGImages/b.jpg"):
        photos[1]


def test_boxes_of_masks_of_objects(tmp_path: Path) -> None:
    write_mask(tmp_path, "SegmentationObject", "a", [[1, 1, 255, 2], [0, 0, 255, 0], [2, 0, 255, 0]])
    write_mask(tmp_path, "SegmentationClass", "a", [[9, 9, 255, 9], [0, 0, 255, 0], [9, 0, 255, 0]])
    write_list(tmp_path, "Segmentation", "trainval", "a")
    photos = VocBoxes(tmp_path)
    assert photos.source == "SegmentationObject"
    torch.testing.assert_close(photos[0].boxes, torch.tensor([[0, 0, 0.5, 1 / 3], [0.0, 0, 1, 1]]))


def test_boxes_of_masks_of_classes(tmp_path: Path) -> None:
    write_mask(tmp_path, "SegmentationClass", "a", [[9, 9, 255, 9], [0, 3, 255, 0], [9, 3, 255, 0]])
    write_mask(tmp_path, "SegmentationClass", "b", [[0, 255]])
    write_list(tmp_path, "Segmentation", "train", "a")
    write_list(tmp_path, "Segmentation", "val", "b")
    photos = VocBoxes(tmp_path)
    assert photos.source == "SegmentationClass"
    expected = torch.tensor([[0.25, 1 / 3, 0.5, 1], [0, 0, 0.5, 1 / 3], [0.75, 0, 1, 1 / 3], [0, 2 / 3, 0.25, 1]])
    torch.testing.assert_close(photos[0].boxes, expected)
    assert photos[1].boxes.shape == (0, 4)


def test_a_mask_in_color(tmp_path: Path) -> None:
    write_mask(tmp_path, "SegmentationObject", "a", [[1]])
    Image.new("RGB", (1, 1)).save(tmp_path / "SegmentationObject" / "a.png")
    write_list(tmp_path, "Segmentation", "trainval", "a")
    with pytest.raises(ValueError, match=r"a.png must have a palette, got mode RGB"):
        VocBoxes(tmp_path)[0]
