"""A planted artifact is known, goes as it came, and what is left of it is measured."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from helpers import FAMILIES, VIT, create, images, random_head, size_of
from torch import Tensor

from dvt_timm.evaluate import artifact_left, distance_to_truth, plant, won_back
from dvt_timm.evaluate.planting import planted_offsets

KINDS = ("plaid", "smooth", "noise", "border")


def fmap(seed: int) -> Tensor:
    return torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2.dvt", "deit3_base_patch16_224.dvt", "eva02_base_patch16_clip_224.dvt"]
)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_carries_it_and_is_as_it_was_afterwards(name: str, kind: Any) -> None:
    model = create(FAMILIES[name], dynamic_img_size=True)
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    before, x = model.pos_embed.clone(), images(*size_of(name))
    features = model.forward_features(x)
    with plant(model, kind, strength=2.0, seed=3) as planted:
        assert planted is model
        added = (model.pos_embed - before)[0]
        assert torch.equal(added[:prefix], torch.zeros_like(added[:prefix]))
        offsets = planted_offsets(kind, model.patch_embed.grid_size, model.embed_dim, seed=3).flatten(0, 1)
        spread = before[0, prefix:].std(correction=0)
        torch.testing.assert_close(
            added[prefix:], offsets * 2 * spread / offsets.std(correction=0), atol=1e-6, rtol=1e-3
        )
        assert not torch.allclose(model.forward_features(x), features, atol=1e-3)
    assert torch.equal(model.pos_embed, before)
    assert torch.equal(model.forward_features(x), features)


def test_after_an_error_too() -> None:
    model = create("vit_small_patch14_dinov2.dvt")
    before = model.pos_embed.clone()
    with pytest.raises(RuntimeError, match="stopped"), plant(model):
        raise RuntimeError("stopped")
    assert torch.equal(model.pos_embed, before)


def test_a_plaid_is_a_sum_of_rows_and_columns() -> None:
    plaid = planted_offsets("plaid", (6, 7), 24, seed=1).double()
    rows, columns = plaid.mean(dim=1, keepdim=True), plaid.mean(dim=0, keepdim=True)
    torch.testing.assert_close(plaid, rows + columns, atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(plaid.flatten(0, 1), rtol=1e-5) <= 8


def test_the_other_kinds_are_what_they_say() -> None:
    smooth, noise, border = (planted_offsets(kind, (20, 20), 16, seed=1) for kind in KINDS[1:])
    step = [float((part[1:] - part[:-1]).square().mean() / part.square().mean()) for part in (smooth, noise)]
    assert step[0] < 0.2 < 1.5 < step[1]
    inside = border[1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[:1, :1].expand_as(inside))
    torch.testing.assert_close(border[0, 3], border[7, 0])
    assert not torch.allclose(border[0, 0], border[5, 5])


def test_the_same_seed_gives_the_same_artifact() -> None:
    for kind in KINDS:
        first, again, other = (planted_offsets(kind, (5, 5), 8, seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)


def test_share_left() -> None:
    raw, artifact = fmap(0), fmap(1)
    assert artifact_left(raw, raw, raw + artifact, raw) == 0
    assert artifact_left(raw + artifact, raw, raw + artifact, raw) == pytest.approx(1)
    assert artifact_left(fmap(2) + artifact / 2 + 5, fmap(2), raw + artifact, raw) == pytest.approx(0.25)


def test_distance_to_the_truth() -> None:
    truth = fmap(0)
    assert distance_to_truth(truth + 3, truth) == pytest.approx(0)
    assert distance_to_truth(0 * truth, truth) == pytest.approx(1)
    assert distance_to_truth(truth + (truth - truth.mean(dim=(0, 1))) / 2, truth) == pytest.approx(0.25)


def test_won_back() -> None:
    assert won_back(25, 20, 30) == 0.5
    assert won_back(19, 20, 30) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plant(timm.create_model("vit_small_patch16_dinov3")).__enter__(), "no absolute position embedding"),
        (lambda: plant(create("vit_small_patch14_dinov2.dvt"), "stripes").__enter__(), "kind must be one of"),
        (lambda: plant(create("vit_small_patch14_dinov2.dvt"), strength=0).__enter__(), "strength must be positive"),
        (lambda: plant(create(VIT, img_size=28), "border").__enter__(), "a grid of 2 x 2 patches has no border"),
        (lambda: artifact_left(fmap(0), fmap(1), fmap(2), fmap(2)), "plant one first"),
        (lambda: artifact_left(fmap(0), fmap(1), fmap(2)[1:], fmap(2)), "of one shape"),
        (lambda: distance_to_truth(fmap(0), 0 * fmap(0)), "same at every patch"),
        (lambda: won_back(25, 30, 30), "costs nothing"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@torch.no_grad()
def test_the_head_of_a_denoised_model_sees_the_planted_features() -> None:
    model = create("vit_small_patch14_dinov2.dvt", denoiser=random_head())
    x = images()
    before = model.forward_features(x)
    with plant(torch.compile(model, backend="eager")):
        assert not torch.allclose(model.forward_features(x), before, atol=1e-3)
    assert torch.equal(model.forward_features(x), before)
