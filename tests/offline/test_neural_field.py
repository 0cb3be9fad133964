"""The released stage 1: equal to the authors' recorded numbers, and it learns."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from dvt_timm.offline import NeuralFieldSolver, Views, neural_field
from dvt_timm.offline.coords import PatchGrid, patch_xy
from dvt_timm.offline.hash_grid import HashGrid
from dvt_timm.offline.neural_field import NoiseModel, learning_rate, losses
from dvt_timm.offline.windows import sample_windows

GRID = PatchGrid((64, 80), (16, 16), (16, 16))  # 4 x 5 patches
SMALL = {"num_levels": 4, "base_resolution": 4, "max_resolution": 16, "dim": 2, "log2_table_size": 7}


def smooth_views(num_views: int = 30, dim: int = 32) -> tuple[Views, Tensor, Tensor]:
    """Views of mixed sines over the image plus an artifact; the sines at its patches, and the artifact."""
    xy = patch_xy(sample_windows(num_views, "crops", 0, GRID.image_size), *GRID.centers())
    generator = torch.Generator().manual_seed(0)
    waves, mix = 6 * torch.randn(2, 6, generator=generator), torch.randn(6, dim, generator=generator)
    field = torch.sin(xy @ waves) @ mix
    artifact = torch.randn(4, 5, dim, generator=generator)
    artifact -= artifact.mean(dim=(0, 1))
    return Views(field + artifact, xy), field[-1], artifact


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released one of 2.5 million entries takes minutes."""
    monkeypatch.setattr(neural_field, "HashGrid", lambda: HashGrid(**SMALL))


@pytest.mark.parametrize("phase", [1, 2])
def test_losses_and_gradients_equal_the_authors(phase: int) -> None:
    golden = load_file(GOLDEN / "noise_model.safetensors")
    expected = json.loads((GOLDEN / "noise_model_losses.json").read_text())[f"phase{phase}"]
    model = NoiseModel(48, (9, 9), HashGrid(**SMALL))
    own = {key: value for key, value in golden.items() if key.startswith(("artifact_map", "residual_predictor"))}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert unexpected == []
    assert all(key.startswith(("encoding", "decoder")) for key in missing)
    semantics = golden["semantics"].clone().requires_grad_()
    artifact = model.artifact(golden["xy_view_pm1"])
    second = phase == 2
    residual = model.residual_predictor(golden["raw"]) if second else None
    terms = losses(golden["raw"], semantics, artifact.detach() if second else artifact, residual)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=1e-5)
    terms["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients["semantics"] = semantics.grad
    recorded = {key.split("grad.")[1]: g for key, g in golden.items() if key.startswith(f"phase{phase}.grad.")}
    assert gradients.keys() == recorded.keys()
    for name, gradient in recorded.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-5)


def test_the_schedule_is_the_authors() -> None:
    for step, rate in json.loads((GOLDEN / "stage1_lr.json").read_text()).items():
        assert learning_rate(int(step), 25_000) == pytest.approx(rate, abs=1e-12)


def test_parameters_have_the_released_shapes_and_distributions() -> None:
    torch.manual_seed(0)
    model = NoiseModel(192, (37, 37), HashGrid())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes.pop("encoding.table")[1] == 8
    assert shapes == {
        "artifact_map": (1, 192, 37, 37),
        "decoder.0.weight": (96, 128),
        "decoder.0.bias": (96,),
        "decoder.2.weight": (192, 96),
        "decoder.2.bias": (192,),
        "residual_predictor.0.weight": (48, 192),
        "residual_predictor.0.bias": (48,),
        "residual_predictor.2.weight": (48, 48),
        "residual_predictor.2.bias": (48,),
        "residual_predictor.4.weight": (192, 48),
        "residual_predictor.4.bias": (192,),
    }
    grid = model.encoding
    assert grid.side[0] == 16
    assert grid.side[-1] == 1024
    assert len(grid.side) == 16
    assert grid.size.max() == 1 << 20
    assert 0.99e-4 < grid.table.abs().max() <= 1e-4
    assert model.artifact_map.std().item() == pytest.approx(0.02, rel=0.01)


def test_it_separates_planted_views(small_table: None) -> None:
    views, field, artifact = smooth_views()
    solution = NeuralFieldSolver(num_steps=600, batch_size=512).fit(views)

    def error(a: Tensor, b: Tensor) -> float:
        a, b = a - a.mean(dim=(0, 1)), b - b.mean(dim=(0, 1))
        return ((a - b).square().sum() / b.square().sum()).item()

    assert error(solution.semantics, field) < 0.1 * error(views.features[-1], field)
    assert error(solution.artifact, artifact) < 0.1
    assert solution.artifact.mean(dim=(0, 1)).abs().max() < 1e-5
    assert torch.equal(solution.raw, views.features[-1])
    assert not solution.semantics.requires_grad
    curve = solution.stats["loss_curve"]
    assert curve[-1]["patch_l2_loss"] < 0.1 * curve[0]["patch_l2_loss"]
    assert [("residual_loss" in point) for point in curve] == [point["step"] >= 300 for point in curve]
    torch.testing.assert_close(solution.semantics_at(views.xy[-1]), solution.semantics)


def test_a_seed_gives_the_same_and_leaves_the_callers_random_numbers_alone(small_table: None) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    views, _, _ = smooth_views(3)
    fits = [NeuralFieldSolver(num_steps=10, batch_size=8, seed=seed).fit(views).semantics for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_a_decomposition_does_not_keep_the_views(small_table: None) -> None:
    raw = NeuralFieldSolver(num_steps=10, batch_size=8).fit(smooth_views(3)[0]).raw
    assert raw.untyped_storage().nbytes() == raw.numel() * raw.element_size()


def test_other_dtypes_and_inference_mode(small_table: None) -> None:
    views, _, _ = smooth_views(3)
    solver = NeuralFieldSolver(num_steps=10, batch_size=8)
    expected = solver.fit(views)
    with torch.inference_mode():
        inside = solver.fit(Views(views.features * 1, views.xy.double()))
    torch.testing.assert_close(inside.semantics, expected.semantics)


def test_bad_input_is_refused(small_table: None) -> None:
    views, _, _ = smooth_views(3)
    solver = NeuralFieldSolver(num_steps=10, batch_size=8)
    with pytest.raises(ValueError, match=r"places must be \[..., 2\].*got \[4, 3\]"):
        solver.fit(views).semantics_at(torch.rand(4, 3))
    with pytest.raises(ValueError, match="needs at least 2, got 1"):
        solver.fit(Views(views.features[:1], views.xy[:1]))
    with pytest.raises(ValueError, match=r"the loss became (nan|inf) at step"):
        solver.fit(Views(views.features * 1e30, views.xy))
    views.features[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="hold NaN or Inf"):
        solver.fit(views)
    with pytest.raises(ValueError, match="num_steps must be at least 10 and batch_size 1, got 5 and 8"):
        NeuralFieldSolver(num_steps=5, batch_size=8)
