"""Benchmarks of a few small images each, laid out as `dvt-timm evaluate` wants them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers import photos
from PIL import Image


def masks(folder: Path, count: int = 6) -> None:
    photos(folder / "images", count)
    (folder / "masks").mkdir()
    for i in range(count):
        labels = np.random.default_rng(i).integers(0, 2, size=(4, 5)).repeat(16, 0).repeat(16, 1)
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"masks/{i}.png")
    (folder / "classes.txt").write_text("left\nright\n")


def spair(folder: Path) -> None:
    (folder / "JPEGImages/dog").mkdir(parents=True)
    (folder / "PairAnnotation/test").mkdir(parents=True)
    for i, path in enumerate(photos(folder / "JPEGImages/dog", 4)):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        pair = {
            **{"category": "dog", "src_imname": f"{i}.jpg", "trg_imname": f"{(i + 1) % 4}.jpg"},
            **{"src_kps": [[10, 10], [60, 50]], "trg_kps": [[12, 10], [60, 40]], "trg_bndbox": [0, 0, 70, 60]},
        }
        (folder / f"PairAnnotation/test/{i}_dog.json").write_text(json.dumps(pair))


def davis(folder: Path) -> None:
    frames, annotations = (folder / kind / "480p/bear" for kind in ("JPEGImages", "Annotations"))
    frames.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for t in range(4):
        pixels = np.random.default_rng(t).integers(0, 255, size=(64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(frames / f"{t:05}.jpg")
        mask = np.zeros((64, 80), dtype=np.uint8)
        mask[10:40, 10 + t : 50 + t] = 255
        Image.fromarray(mask).save(annotations / f"{t:05}.png")
    (folder / "ImageSets/480p").mkdir(parents=True)
    lines = [f"/JPEGImages/480p/bear/{t:05}.jpg /Annotations/480p/bear/{t:05}.png" for t in range(4)]
    (folder / "ImageSets/480p/val.txt").write_text("\n".join(lines) + "\n")


def voc(folder: Path) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for path in photos(folder / "JPEGImages", 4):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>70</xmax><ymax>60</ymax></bndbox>"
        size = "<size><width>80</width><height>64</height></size>"
        text = f"<annotation>{size}<object><name>dog</name>{box}</object></annotation>"
        (folder / f"Annotations/{path.stem}.xml").write_text(text)
    (folder / "ImageSets/Main/trainval.txt").write_text("0\n1\n2\n3\n")


def nyu(folder: Path) -> None:
    (folder / "kitchen").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, size=(6, 8, 3), dtype=np.uint8).repeat(80, 0).repeat(80, 1)
        Image.fromarray(pixels).save(folder / f"kitchen/rgb_{i}.jpg")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 30).save(folder / f"kitchen/sync_depth_{i}.png")
    lines = [f"/kitchen/rgb_{i}.jpg /kitchen/sync_depth_{i}.png 500.0\n" for i in range(3)]
    (folder / "nyu_train.txt").write_text("".join(lines[:2]))
    (folder / "nyu_test.txt").write_text(lines[2] + lines[0])


DATA: dict[str, Callable[[Path], None]] = {
    "artifacts": lambda folder: None,  # the photos of `command`
    "segmentation": masks,
    "depth": nyu,
    "correspondence": spair,
    "propagation": davis,
    "discovery": voc,
}
