"""On a GPU: the same as on the CPU. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from helpers import TINY, create, images, photo

import dvt_timm
from dvt_timm import evaluate
from dvt_timm.cli.main import main
from dvt_timm.offline import LeastSquaresSolver, NeuralFieldSolver, Views, open_store, sample_views
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.solution import collect
from dvt_timm.offline.windows import sample_windows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SIZE = 160  # pixels, 10 x 10 patches


def random_views(device: str, num_views: int = 12) -> Views:
    grid = PatchGrid((SIZE, SIZE), (16, 16), (16, 16))
    xy = patch_xy(sample_windows(num_views, "jitter", 0, grid.image_size), *grid.centers())
    features = torch.randn(*xy.shape[:3], 32, generator=torch.Generator().manual_seed(0))
    return Views(features.to(device), xy.to(device))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.cpu() - b.cpu()).norm() / b.cpu().norm()).item()


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.dvt_demo", "eva02_tiny_patch14_224"])
def test_a_denoised_model(name: str) -> None:
    model = timm.create_model(name, pretrained="demo" in name, num_classes=0, dynamic_img_size=True).eval()
    model = model if hasattr(model, "denoiser") else dvt_timm.denoise(model, dvt_timm.DenoiserHead(192, (16, 16)))
    pixels = images(112, 140)
    with torch.no_grad():
        expected = model.forward_features(pixels)
        measured = model.to("cuda").forward_features(pixels.to("cuda"))
        with torch.autocast("cuda", torch.bfloat16):
            rough = model.forward_features(pixels.to("cuda"))
    assert distance(measured, expected) < 1e-3
    assert distance(rough.float(), expected) < 5e-2


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.dvt_demo", "eva02_tiny_patch14_224"])
def test_means_over_positions(name: str) -> None:
    model = timm.create_model(name, pretrained="demo" in name, denoiser={"positions": 3}, num_classes=0).eval()
    pixels = images(112, 140)
    with torch.no_grad():
        expected = model.forward_features(pixels)
        measured = model.to("cuda").forward_features(pixels.to("cuda"))
    assert distance(measured, expected) < 1e-3


def test_features_of_many_photos() -> None:
    model = create(TINY, dynamic_img_size=True, num_classes=0, denoiser={"positions": 3})
    photos = [photo(seed) for seed in range(5)]
    on_cpu = list(dvt_timm.extract(model, photos, size=SIZE, layers=[0], batch_size=2))
    model = model.to("cuda")
    on_gpu = list(dvt_timm.extract(model, photos, size=SIZE, layers=[0], batch_size=2))
    rough = list(dvt_timm.extract(model, photos, size=SIZE, autocast=torch.bfloat16, half=True))
    for expected, found, quick in zip(on_cpu, on_gpu, rough, strict=True):
        assert found.denoised.device.type == "cpu"
        assert distance(found.denoised, expected.denoised) < 1e-3
        assert distance(found.layers[0], expected.layers[0]) < 1e-3
        assert distance(quick.denoised.float(), expected.denoised) < 5e-2


@pytest.mark.parametrize("density", [2.0, 12.0])  # a dense factor, conjugate gradients
def test_the_closed_form(density: float) -> None:
    on_cpu, on_gpu = (LeastSquaresSolver(density=density).fit(random_views(device)) for device in ("cpu", "cuda"))
    for part in ("semantics", "artifact", "residual"):
        assert getattr(on_gpu, part).device.type == "cuda"
        assert distance(getattr(on_gpu, part), getattr(on_cpu, part)) < 1e-4
    assert on_gpu.stats["unexplained"] == pytest.approx(on_cpu.stats["unexplained"], abs=1e-4)


def test_the_released_method() -> None:
    solution = NeuralFieldSolver(num_steps=60).fit(random_views("cuda"))
    curve = solution.stats["loss_curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert bool(solution.semantics.isfinite().all())


def test_views() -> None:
    model = create(TINY, dynamic_img_size=True, num_classes=0)
    on_cpu = collect(sample_views(model, photo(), num_views=6, size=SIZE))
    model = model.to("cuda")
    on_gpu = collect(sample_views(model, photo(), num_views=6, size=SIZE, autocast=torch.float32))
    assert torch.equal(on_gpu.xy.cpu(), on_cpu.xy)
    assert distance(on_gpu.features, on_cpu.features) < 1e-3


def test_all_three_stages(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2.dvt_demo"
    (tmp_path / "photos").mkdir()
    for seed in range(6):
        photo(seed).save(tmp_path / f"photos/{seed}.png")
    photos, store, head, plain = (str(tmp_path / part) for part in ("photos", "store", "head", "plain"))
    quick = ["--steps", "4", "--batch-size", "4", "--held-out", "2", "--precision", "bf16"]
    assert main(["fit", photos, "--model", name, "--size", "112", "--views", "6", "--half", "--out", store]) == 0
    assert open_store(store).settings["views"]["autocast"] == "bfloat16"
    assert main(["train", "--store", store, "--out", head, *quick]) == 0
    assert main(["train", "--online", photos, "--base", name, "--size", "112", "--out", f"{head}2", *quick]) == 0
    assert main(["distill", "--base", name, "--images", photos, "--size", "112", "--out", plain, *quick]) == 0
    model = timm.create_model("vit_small_patch14_dinov2", denoiser=head, num_classes=0)
    assert model.denoiser.pos_embed.shape == (1, 64, 384)
    assert main(["features", f"{photos}/0.png", "--out", str(tmp_path / "out")]) == 0


def test_probes_find_every_row_beside_them() -> None:
    model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True, num_classes=0).cuda().eval()
    rows = evaluate.Rows(model, {"projection": evaluate.PositionProjection(384, 4)})
    seen = rows.features(torch.zeros(2, 3, 56, 56))
    assert {features.map.device.type for features in seen.values()} == {"cuda"}
