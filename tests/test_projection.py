"""The projection that takes the readable position away: what it finds, and that it goes wherever a head goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import TINY, create, images, photos, serve_base
from hub_server import Hub
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.fx import symbolic_trace
from training import SHORT

import dvt_timm
from dvt_timm.evaluate import PositionProjection, position_leakage
from dvt_timm.projection import RIDGE, places
from dvt_timm.train import distill

PLAIN = "vit_small_patch14_dinov2"
C, RANK = 24, 6


def planted(count: int, seed: int = 0) -> list[Tensor]:
    """Maps of content along sixteen directions, and of the place and its third power along the others."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for i in range(count):
        h, w = (9, 7) if i % 2 else (6, 8)
        content = torch.randn(h * w, 16, generator=generator) + 3
        place = places(h, w).float()
        maps.append(torch.cat([content, 4 * place, 9 * place**3], dim=1).reshape(h, w, C))
    mixing = torch.linalg.qr(torch.randn(C, C, generator=torch.Generator().manual_seed(7))).Q
    return [fmap @ mixing for fmap in maps]


def test_places_are_read_no_more_and_content_stays() -> None:
    projection = PositionProjection.fit(planted(40), 8)
    train, test = planted(40, seed=1), planted(20, seed=2)
    before = position_leakage(train, test)
    with torch.no_grad():
        after = position_leakage(*([projection(fmap[None])[0] for fmap in maps] for maps in (train, test)))
    assert min(before.values()) > 0.99
    assert max(after.values()) < 0.05
    rows = torch.cat([fmap.flatten(0, 1) for fmap in planted(40)])
    content = torch.linalg.qr(torch.randn(C, C, generator=torch.Generator().manual_seed(7))).Q[:16]
    cleaned = projection(rows.reshape(1, -1, 1, C))[0, :, 0]
    torch.testing.assert_close(cleaned @ content.T, rows @ content.T, rtol=0, atol=0.05)
    torch.testing.assert_close(cleaned.mean(dim=0), rows.mean(dim=0), rtol=0, atol=1e-4)
    assert torch.linalg.matrix_rank((cleaned - rows).double(), atol=1e-3) == 8


def test_it_is_the_regression_written_out() -> None:
    maps = planted(6)
    projection = PositionProjection.fit(iter(maps), RANK)
    x = torch.cat([fmap.double().flatten(0, 1) for fmap in maps])
    place = torch.cat([places(*fmap.shape[:2]) for fmap in maps])
    x, place = x - x.mean(dim=0), place - place.mean(dim=0)
    ridge = RIDGE * x.var(dim=0, correction=0).mean() * len(x)
    left = x.clone()
    for taken in (4, 2):
        weights = torch.linalg.inv(left.T @ left + ridge * torch.eye(C, dtype=torch.float64)) @ left.T @ place
        directions = torch.linalg.svd(weights, full_matrices=False).U[:, :taken]
        left = left - left @ directions @ directions.T
    expected = left + torch.cat([fmap.double().flatten(0, 1) for fmap in maps]).mean(dim=0)
    given = torch.cat([projection(fmap[None])[0].flatten(0, 1) for fmap in maps])
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_fitted() -> None:
    maps = planted(2)
    for features, rank, message in (
        ([], 4, r"at least one map \[h, w, C\]"),
        ([maps[0], maps[1][..., :5]], 4, r"features must be maps \[h, w, 24\], got \[9, 7, 5\]"),
        ([maps[0][0]], 4, r"features must be maps \[h, w, C\], got \[8, 24\]"),
        ([maps[0] * torch.nan], 4, "a map holds NaN or Inf"),
        (maps, C, r"rank must be a whole number of dimensions, 1\.\.23 of 24, got 24"),
        (maps, 0, "rank must be a whole number"),
        (maps, True, "rank must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            PositionProjection.fit(features, rank)
    with pytest.raises(ValueError, match=r"takes a feature map of shape \(B, H, W, 24\), got \[2, 3, 24\]"):
        PositionProjection.fit(maps, 4)(torch.zeros(2, 3, C))


def some_projection(dim: int = 128) -> PositionProjection:
    generator = torch.Generator().manual_seed(0)
    return PositionProjection.fit([torch.randn(5, 4, dim, generator=generator) for _ in range(3)], RANK)


def same(a: Any, b: Any, x: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(a.forward_features(x), b.forward_features(x))


def test_it_is_a_denoiser(tmp_path: Path) -> None:
    """In place, by name, at every exit of the model, saved alone and in a whole model."""
    x, projection = images(), some_projection()
    plain = create(PLAIN, dynamic_img_size=True)
    grid = (x.shape[2] // 14, x.shape[3] // 14)
    with torch.no_grad():
        tokens = plain.forward_features(x)
        patches = tokens[:, plain.num_prefix_tokens :]
        expected = projection(patches.unflatten(1, grid)).flatten(1, 2)
    model = dvt_timm.denoise(create(PLAIN, dynamic_img_size=True), projection)
    with torch.no_grad():
        given = model.forward_features(x)
        fmap = model.forward_intermediates(x, indices=1, intermediates_only=True)[0]
    assert torch.equal(given[:, model.num_prefix_tokens :], expected)
    assert torch.equal(given[:, : model.num_prefix_tokens], tokens[:, : model.num_prefix_tokens])
    assert torch.equal(fmap.flatten(2).transpose(1, 2), expected)
    same(torch.jit.script(model), model, x)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))
    dvt_timm.save_head(model, tmp_path / "head", base=f"{PLAIN}.lvd142m")
    config = json.loads((tmp_path / "head/config.json").read_text())
    assert (config["dim"], config["rank"], config["model_args"]) == (128, RANK, {"denoiser": {"rank": RANK}})
    loaded = dvt_timm.load_head(tmp_path / "head")
    assert isinstance(loaded, PositionProjection)
    assert loaded.source is not None
    assert "PositionProjection(dim=128, rank=6, source=" in repr(loaded)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), projection.parameters(), strict=True))
    same(create(PLAIN, dynamic_img_size=True, denoiser=str(tmp_path / "head")), model, x)
    dvt_timm.save_model(model, tmp_path / "whole")
    same(timm.create_model(f"local-dir:{tmp_path / 'whole'}", pretrained=True).eval(), model, x)
    assert type(dvt_timm.undenoise(model)) is type(plain)
    assert symbolic_trace(loaded)(expected.unflatten(1, grid)).shape == (2, *grid, 128)


def test_by_the_name_of_its_folder_and_from_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    base = serve_base(hub)
    projection = some_projection(64)
    dvt_timm.push_to_hub(projection, "me/projection", base=TINY)
    x = images(160, 160)
    expected = dvt_timm.denoise(base, projection)
    for name, options in (
        ("hf-hub:me/projection", {}),
        (TINY, {"denoiser": "hf-hub:me/projection"}),
    ):
        same(timm.create_model(name, pretrained=True, **options).eval(), expected, x)
    card = hub.repos["me/projection"].files("main")["README.md"].decode()
    assert "A projection that takes 6 dimensions out of the patch tokens" in card
    assert "| dimensions taken away | 6 |" in card
    assert "grid of the position embedding" not in card
    dvt_timm.save_head(projection, tmp_path / "head", base=TINY)
    same(timm.create_model(f"local-dir:{tmp_path / 'head'}", pretrained=True).eval(), expected, x)


def test_by_its_shape_alone_it_takes_nothing_away() -> None:
    plain, x = create(PLAIN, dynamic_img_size=True), images()
    same(create(PLAIN, dynamic_img_size=True, denoiser={"rank": 3}), plain, x)
    with pytest.raises(ValueError, match="rank must be a whole number"):
        timm.create_model(PLAIN, denoiser={"rank": "3"})


def test_damaged_files(tmp_path: Path) -> None:
    dvt_timm.save_head(some_projection(), tmp_path / "head", base=PLAIN)
    file, good = tmp_path / "head/model.safetensors", load_file(tmp_path / "head/model.safetensors")
    for state, message in (
        ({**good, "basis": good["basis"] * torch.inf}, "values of basis are not finite"),
        ({**good, "basis": good["basis"][:100]}, "is no denoiser head: "),
        ({**good, "basis": good["basis"][:, :4]}, "holds a head of rank 4, its configuration says 6"),
        ({"mean": good["mean"]}, "is no denoiser head"),
        ({**good, "mean": good["mean"][None]}, "is no denoiser head"),
    ):
        save_file({key: value.contiguous() for key, value in state.items()}, file)
        with pytest.raises(ValueError, match=message):
            dvt_timm.load_head(tmp_path / "head")


def test_it_teaches(hub: Hub, tmp_path: Path) -> None:
    serve_base(hub)
    teacher = dvt_timm.denoise(timm.create_model(TINY, pretrained=True), some_projection(64))
    distill(teacher, photos(tmp_path / "photos", 6), tmp_path / "run", SHORT)
    assert (tmp_path / "run/model.safetensors").exists()
