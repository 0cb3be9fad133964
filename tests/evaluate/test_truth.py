"""Ways of denoising are measured against a planted truth."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import FAMILIES, VIT, create, photo
from PIL import Image
from torch import Tensor

import dvt_timm
from dvt_timm import offline
from dvt_timm.evaluate import Planted, knn_probe, mean_iou, patch_labels, plant, planted
from dvt_timm.evaluate.truth import raw_maps

PHOTOS = [photo(seed).resize((84, 70)) for seed in range(6)]


def model() -> Any:
    built = create(FAMILIES[VIT], dynamic_img_size=True, img_size=70)
    with torch.no_grad():
        for key, parameter in built.named_parameters():
            if "gamma" in key:  # LayerScale starts near 0
                parameter.fill_(1.0)
    return built


def truths(built: Any, photos: list[Image.Image]) -> list[Tensor]:
    return [fmap.clone() for fmap in raw_maps(built, photos)]


def power(fmap: Tensor) -> Tensor:
    return (fmap - fmap.mean(dim=(0, 1))).square().sum()


def test_the_truth_itself_and_nothing_at_all() -> None:
    built = model()
    known = truths(built, PHOTOS)
    results = planted(built, PHOTOS, {"truth": lambda *_: known, "raw": raw_maps})
    assert results["truth"].left.value == 0
    assert results["truth"].distance.value == pytest.approx(0, abs=1e-12)
    assert results["raw"].left.value == pytest.approx(1)
    assert results["raw"].left.interval == (pytest.approx(1), pytest.approx(1))
    assert results["raw"].labels == {}


def test_shares_over_plants_and_photos() -> None:
    built = model()
    known = truths(built, PHOTOS)

    def halfway(m: Any, photos: Any) -> list[Tensor]:
        return [(a + b) / 2 for a, b in zip(known, raw_maps(m, photos), strict=True)]

    seen: list[str] = []
    results = planted(built, PHOTOS, {"half": halfway}, seeds=(0, 1), finished=lambda name, _: seen.append(name))
    assert seen == ["half"]
    assert results["half"].left.value == pytest.approx(0.25, abs=1e-4)
    distances = []
    for seed in (0, 1):
        with plant(built, seed=seed):
            maps = list(raw_maps(built, PHOTOS))
        rests = [fmap - truth for fmap, truth in zip(maps, known, strict=True)]
        power = [
            (r - r.mean((0, 1))).square().sum() / (t - t.mean((0, 1))).square().sum()
            for r, t in zip(rests, known, strict=True)
        ]
        distances += [float(share) / 4 for share in power]
    assert results["half"].distance.value == pytest.approx(sum(distances) / 12, rel=1e-4)


def test_labels_that_are_won_back() -> None:
    """Labels stand plainly in the features, and the planted embedding beside them hides them."""
    built, num_train = model(), 3
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(3, (5, 5), generator=generator) for _ in PHOTOS]
    content = [10 * torch.nn.functional.one_hot(of_photo, 128).float() for of_photo in labels]
    labels[-1][0, 0] = 255

    def beside_positions(share: float) -> Any:
        return lambda m, _: [fmap + share * 200 * m.pos_embed[0, 1:].detach().reshape(5, 5, -1) for fmap in content]

    methods = {"raw": beside_positions(1), "clean": lambda *_: content, "half": beside_positions(0.5)}
    results = planted(built, PHOTOS, methods, raw=methods["raw"], labels=labels, num_train=num_train)
    for scores in results["clean"].labels.values():
        assert scores.denoised.value == 1
        assert scores.gain.value == pytest.approx(1 - scores.truth.value)
    for scores in results["raw"].labels.values():
        assert scores.denoised.value == scores.raw.value
        assert scores.gain.value == 0
    assert results["clean"].labels.keys() == {"knn", "linear"}
    knn = {name: figures.labels["knn"] for name, figures in results.items()}
    assert knn["raw"].truth.value > knn["raw"].raw.value + 0.1
    clean = knn["clean"]
    assert clean.won_back.value == pytest.approx((1 - clean.raw.value) / (clean.truth.value - clean.raw.value))
    assert knn["raw"].won_back.value == 0
    assert 0 < knn["half"].won_back.value < knn["clean"].won_back.value
    with plant(built):
        spoiled = methods["raw"](built, PHOTOS)
    train, test = (torch.cat([fmap.flatten(0, 1) for fmap in part]) for part in (spoiled[:3], spoiled[3:]))
    wanted = torch.cat([of_photo.flatten() for of_photo in labels[3:]])
    kept = wanted != 255
    seen = knn_probe(train, torch.cat([of_photo.flatten() for of_photo in labels[:3]]), test[kept], neighbors=20)
    assert knn["raw"].raw.value == pytest.approx(mean_iou(seen, wanted[kept]))


def test_an_artifact_that_costs_nothing_has_no_share() -> None:
    built = model()
    labels = [torch.zeros(5, 6, dtype=torch.long) for _ in PHOTOS]  # one label: nothing can be lost
    results = planted(built, PHOTOS, {"raw": raw_maps}, labels=labels, num_train=2)
    assert math.isnan(results["raw"].labels["knn"].won_back.value)


def test_stage_1_a_head_and_a_projection() -> None:
    """Ways of every kind go in as they are; to take the artifact's own directions away leaves none of it."""
    built = create(VIT, img_size=70)

    def positions(m: Any, photos: Any) -> Any:
        options: dict[str, Any] = {"kind": "positions", "num_views": 2, "size": 70, "keep_aspect": True}
        return (offline.fit_image(m, picture, **options).semantics for picture in photos)

    def head(m: Any, photos: Any) -> Any:
        with torch.no_grad():
            for picture in photos:
                yield dvt_timm.feature_maps(m, dvt_timm.preprocess(m, picture, 70)).denoised[0].permute(1, 2, 0)

    def projection(m: Any, photos: Any) -> Any:
        maps = list(raw_maps(m, photos))
        artifact = torch.cat([(a - b).flatten(0, 1) for a, b in zip(maps, known, strict=True)])
        basis = torch.linalg.svd(artifact, full_matrices=False)[2]
        return [fmap - fmap @ basis.T @ basis for fmap in maps]

    known = truths(built, PHOTOS)
    results = planted(built, PHOTOS, {"positions": positions, "head": head, "projection": projection})
    assert results["projection"].left.value < 1e-3
    assert 0 < results["positions"].left.value < 1
    assert results["head"].left.value > 0
    assert all(isinstance(figures, Planted) for figures in results.values())
    difference = results["positions"].left - results["head"].left
    assert difference.value == pytest.approx(results["positions"].left.value - results["head"].left.value)


def test_what_cannot_be_measured() -> None:
    built, labels = model(), [torch.zeros(5, 6, dtype=torch.long) for _ in PHOTOS]
    for options, message in (
        ({"labels": labels}, "labels need photos that train"),
        ({"num_train": 2}, "num_train is of labels"),
        ({"labels": labels, "num_train": 6}, "leave none to test"),
        ({"labels": labels[:2], "num_train": 2}, "6 photos and labels of 2"),
        ({"labels": [labels[0][:4]] * 6, "num_train": 2}, r"photo 0 has \[5, 6\] patches and labels of \[4, 6\]"),
        ({"labels": [labels[0] + 255] * 6, "num_train": 2}, "no patch has a label"),
        ({"seeds": ()}, "seeds must name at least one plant"),
        ({"seeds": (1, 1)}, "each once"),
        ({"labels": labels, "num_train": 2, "test_stride": 0}, "test_stride must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            planted(built, PHOTOS, {"raw": raw_maps}, **options)
    with pytest.raises(ValueError, match="few, nothing planted: 1 maps of 6 photos"):
        planted(built, PHOTOS, {"few": lambda *_: [torch.zeros(5, 6, 128)]})
    with pytest.raises(ValueError, match=r"maps must be \[h, w, C\]"):
        planted(built, PHOTOS, {"flat": lambda *_: [torch.zeros(30, 128)] * 6})
    with pytest.raises(ValueError, match="no absolute position embedding"):
        planted(create("vit_small_patch16_dinov3", dynamic_img_size=True), PHOTOS, {"raw": raw_maps})


def test_labels_of_patches_are_the_most_frequent() -> None:
    mask = Image.new("L", (40, 20), 3)
    mask.paste(7, (0, 0, 15, 10))
    mask.paste(11, (30, 10, 40, 20))
    assert patch_labels(mask, (2, 4)).tolist() == [[7, 3, 3, 3], [3, 3, 3, 11]]
    assert patch_labels(mask, (2, 4), void=11).tolist() == [[7, 3, 3, 3], [3, 3, 3, 255]]
