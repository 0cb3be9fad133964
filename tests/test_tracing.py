"""torch.fx: with the arguments that trace a plain name, for images of any size, and what the graph gives."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from helpers import EVA, VIT, create, images, random_head, size_of
from torch import Tensor, nn

from dvt_timm import denoise

both = pytest.mark.parametrize("name", [VIT, EVA])


def larger(name: str) -> tuple[int, int]:
    """Another size than that of the position embedding, and than `size_of`."""
    return (112, 98) if "patch14" in name else (128, 112)


def symbolic(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.fx.symbolic_trace(model)


def torchvisions(model: nn.Module) -> Callable[[Tensor], Tensor]:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    extractor = extraction.create_feature_extractor(model, ["head"])
    return lambda x: extractor(x)["head"]


@both
@pytest.mark.parametrize("trace", [symbolic, torchvisions])
@torch.no_grad()
def test_a_graph_gives_what_the_model_gives_at_any_size(name: str, trace: Callable[..., Any]) -> None:
    model = create(name, num_classes=7, global_pool="avg")
    graph = trace(model)
    side = model.patch_embed.img_size[0]
    for size in ((side, side), size_of(name), larger(name)):
        x = images(*size, batch=1)
        torch.testing.assert_close(graph(x), model(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_base_patch14_reg4_dinov2.dvt", {}),
        ("deit3_base_patch16_224.dvt", {}),  # no position of the class token
        (VIT, {"dynamic_img_size": False, "img_size": (56, 70)}),
        (VIT, {"dynamic_img_pad": True}),
        (EVA, {"dynamic_img_pad": True}),
        (VIT, {"stride": 7}),
    ],
)
@torch.no_grad()
def test_kinds_of_positions(name: str, options: dict[str, Any]) -> None:
    model = create(name, num_classes=7, global_pool="avg", **options)
    graph = torch.fx.symbolic_trace(model)
    x = images(*size_of(name))
    torch.testing.assert_close(graph(x), model(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224", "vit_small_patch16_rope_224"]
)
@torch.no_grad()
def test_rotary_positions_alone(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    model = denoise(create(name, dynamic_img_size=True, num_classes=7, global_pool="avg"), random_head())
    graph = torch.fx.symbolic_trace(model)
    for size in ((64, 80), (112, 96)):
        torch.testing.assert_close(graph(images(*size)), model(images(*size)), atol=1e-6, rtol=1e-5)


@both
@torch.no_grad()
def test_graphs_are_copied_pickled_and_scripted(name: str) -> None:
    model = create(name, num_classes=7, global_pool="avg")
    graph, x = torch.fx.symbolic_trace(model), images(*size_of(name))
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph)), torch.jit.script(graph)):
        torch.testing.assert_close(twin(x), model(x), atol=1e-6, rtol=1e-5)


@both
def test_gradients_pass_through_a_graph(name: str) -> None:
    model = create(name, num_classes=7, global_pool="avg")
    graph = torch.fx.symbolic_trace(model)
    graph(images(*size_of(name))).square().sum().backward()
    ours = {key: parameter.grad for key, parameter in graph.named_parameters() if parameter.grad is not None}
    assert ours["pos_embed"].abs().sum() > 0
    assert ours["denoiser.pos_embed"].abs().sum() > 0


@both
def test_a_size_that_does_not_fit_is_refused_by_the_graph_too(name: str) -> None:
    graph = torch.fx.symbolic_trace(create(name))
    with pytest.raises(ValueError, match="height 50 is not a multiple of patch size"):
        graph(images(50, 112))


def test_means_over_positions_are_not_traced() -> None:
    with pytest.raises(ValueError, match=r"averages over positions; use torch\.export"):
        torch.fx.symbolic_trace(create(VIT, denoiser={"positions": 2}))
