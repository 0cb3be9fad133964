from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN_HEADS, random_head
from safetensors.torch import load_file
from torch import Tensor

from dvt_timm import DenoiserHead
from dvt_timm.checkpoints.tensors import read_pickle


@pytest.mark.parametrize("name", GOLDEN_HEADS)
def test_equals_the_authors_head(name: str) -> None:
    arguments, folder = GOLDEN_HEADS[name]
    head = DenoiserHead(*arguments).eval()
    head.load_state_dict(read_pickle(folder / f"official_denoiser_{name}.pth"))
    recorded = load_file(folder / f"denoiser_io_{name}.safetensors")
    inputs = [key for key in recorded if key.startswith("in_")]
    assert len(inputs) == 4
    for key in inputs:
        with torch.no_grad():
            output = head(recorded[key])
        torch.testing.assert_close(output, recorded["out" + key[2:]], atol=1e-5, rtol=0)


def readable_head(state: dict[str, Tensor], x: Tensor, grid: tuple[int, int], num_blocks: int) -> Tensor:
    """The head written out: position embedding, then pre-norm attention and MLP, no module of timm's."""
    B, H, W, C = x.shape
    positions = state["pos_embed"].reshape(1, *grid, C).permute(0, 3, 1, 2)
    if grid != (H, W):
        positions = F.interpolate(positions, (H, W), mode="bicubic", antialias=True)
    x = (x + positions.permute(0, 2, 3, 1)).reshape(B, H * W, C)
    for i in range(num_blocks):
        p = "denoiser." if num_blocks == 1 else f"denoiser.{i}."
        y = F.layer_norm(x, (C,), state[p + "norm1.weight"], state[p + "norm1.bias"], 1e-6)
        qkv = F.linear(y, state[p + "attn.qkv.weight"], state[p + "attn.qkv.bias"])
        q, k, v = qkv.reshape(B, H * W, 3, C // 64, 64).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-1, -2)) / 8).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(B, H * W, C)
        x = x + F.linear(y, state[p + "attn.proj.weight"], state[p + "attn.proj.bias"])
        y = F.layer_norm(x, (C,), state[p + "norm2.weight"], state[p + "norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, state[p + "mlp.fc1.weight"], state[p + "mlp.fc1.bias"]))
        x = x + F.linear(y, state[p + "mlp.fc2.weight"], state[p + "mlp.fc2.bias"])
    return x.reshape(B, H, W, C)


@pytest.mark.parametrize(("dim", "grid", "num_blocks"), [(128, (5, 7), 1), (192, (4, 4), 2), (64, (2, 8), 1)])
@pytest.mark.parametrize("size", [(5, 7), (3, 9), (11, 4), (4, 4), (8, 2)])
def test_equals_the_readable_twin(dim: int, grid: tuple[int, int], num_blocks: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = DenoiserHead(dim, grid, num_blocks).eval()
    x = torch.randn(2, *size, dim, requires_grad=True)
    output = head(x)
    expected = readable_head(dict(head.named_parameters()), x, grid, num_blocks)
    torch.testing.assert_close(output, expected, atol=2e-5, rtol=1e-5)
    ours = torch.autograd.grad(output.square().sum(), [x, head.pos_embed], retain_graph=True)
    theirs = torch.autograd.grad(expected.square().sum(), [x, head.pos_embed])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_state_dict_has_the_authors_keys() -> None:
    block = [
        f"{m}.{p}"
        for m in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for p in ("weight", "bias")
    ]
    assert set(DenoiserHead(64, (2, 2)).state_dict()) == {"pos_embed", *(f"denoiser.{key}" for key in block)}
    several = {"pos_embed", *(f"denoiser.{i}.{key}" for i in range(3) for key in block)}
    assert set(DenoiserHead(64, (2, 2), 3).state_dict()) == several


def test_own_grid_need_not_be_square() -> None:
    head = DenoiserHead(64, (3, 8)).eval()
    assert head.pos_embed.shape == (1, 24, 64)
    assert head(torch.randn(1, 3, 8, 64)).shape == (1, 3, 8, 64)
    assert head.config == {"grid_size": [3, 8], "num_blocks": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, (4, 4)), "multiple of 64.*100"),
        ((0, (4, 4)), "multiple of 64.*0"),
        ((64, (0, 4)), "grid_size"),
        ((64, (4, 4, 4)), "grid_size"),
        ((64, 4), "grid_size.*got 4"),
        ((64, (4.5, 4)), "grid_size.*4.5"),
        ((64, "44"), "grid_size"),
        ((64, (4, 4), 0), "num_blocks"),
        ((64, (4, 4), "1"), "num_blocks.*got '1'"),
    ],
)
def test_impossible_heads_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoiserHead(*arguments)


@pytest.mark.parametrize("shape", [(16, 128), (2, 16, 128), (2, 4, 4, 64), (2, 128, 4, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, H, W, 128\)"):
        random_head()(torch.zeros(shape))


def test_positions_of_another_grid_get_gradients() -> None:
    head = random_head()
    head(torch.randn(1, 6, 7, 128)).sum().backward()
    assert head.pos_embed.grad is not None
    assert head.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_writes_that_pytorch_cannot_see_are_seen(mode: Any) -> None:
    head, x = random_head(), torch.randn(1, 6, 7, 128)
    with mode():
        before = head(x)
        head.pos_embed.data.mul_(0)
        after = head(x)
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    "change", ["in place", "load", "assign", "data", "parameter", "dtype", "optimizer", "fused", "teacher"]
)
def test_a_change_of_the_positions_is_seen(change: str) -> None:
    head, other, x = random_head(seed=1), random_head(seed=2), torch.randn(1, 6, 7, 128)
    with torch.inference_mode():
        before = head(x)
    if change == "in place":
        with torch.no_grad():
            head.pos_embed.add_(1)
    elif change == "load":
        head.load_state_dict(other.state_dict())
    elif change == "assign":
        head.load_state_dict(other.state_dict(), assign=True)
    elif change == "data":
        head.pos_embed.data = other.pos_embed.data
    elif change == "parameter":
        head.pos_embed = other.pos_embed
    elif change == "dtype":
        head, x = head.double(), x.double()
    elif change == "teacher":  # as DINO, MoCo and BYOL update theirs
        for ours, theirs in zip(head.parameters(), other.parameters(), strict=True):
            ours.data.mul_(0.5).add_((1 - 0.5) * theirs.detach().data)
    elif change in ("optimizer", "fused"):
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, fused=change == "fused")
        head(x).square().sum().backward()
        optimizer.step()
    expected = readable_head(dict(head.named_parameters()), x, head.grid_size, 1)
    with torch.no_grad():
        after = head(x)
    torch.testing.assert_close(after, expected.detach(), atol=2e-5, rtol=1e-5)
    if change != "dtype":
        assert not torch.allclose(after, before)


def test_functional_transforms() -> None:
    heads, x = [random_head(64, seed=seed) for seed in (1, 2)], torch.randn(1, 6, 7, 64)
    parameters, _ = torch.func.stack_module_state(heads)
    with torch.no_grad():
        heads[0](x)
        outputs = torch.func.vmap(lambda p: torch.func.functional_call(heads[0], p, (x,)))(parameters)
        for head, output in zip(heads, outputs, strict=True):
            torch.testing.assert_close(output, head(x), atol=1e-5, rtol=1e-5)


def test_initialization_after_the_meta_device() -> None:
    with torch.device("meta"):
        head = DenoiserHead(64, (30, 30))
    head = head.to_empty(device="cpu")
    head.pos_embed.data.fill_(9)
    head.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    assert 0.018 < head.pos_embed.std() < 0.022


def test_scripts_and_traces() -> None:
    head, x = random_head(), torch.randn(1, 6, 7, 128)
    with torch.no_grad():
        expected = head(x)
        torch.testing.assert_close(torch.jit.script(head)(x), expected)
        torch.testing.assert_close(torch.jit.trace(head, x)(x), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(head)(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    head, x = random_head(), torch.randn(1, 6, 7, 128)
    with torch.no_grad():
        expected = head(x)
        output = head.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)
