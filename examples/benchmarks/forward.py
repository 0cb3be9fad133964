"""What denoising costs: a plain timm model against ours, against the least one could write by hand.

    python examples/benchmarks/forward.py              every case (with --seconds 90, 46 minutes on two CPU cores)
    python examples/benchmarks/forward.py --quick      one small case
    python examples/benchmarks/forward.py --device cuda --dtype bfloat16

One process; in every round each contender runs once, in random order, and ratios are taken within the round, so that
a busy machine disturbs them least. Medians over the rounds; after a ratio its standard error (from the quartiles).

plain      timm's model, `forward_features`
denoised   `timm.create_model("<arch>.dvt...")`
minimal    the plain model, then position embedding and timm's Block on its patch tokens, by hand
distilled  the distilled name: a plain class

To expect: denoised/minimal <= 1.01, denoised/plain <= (1 + 1/depth) * 1.03, distilled/plain = 1.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

import dvt_timm

CASES = {  # image size -> (base, denoised name, distilled name)
    ("vit_small_patch14_dinov2", 518): ("lvd142m", "dvt_voc", None),
    ("vit_base_patch14_dinov2", 518): ("lvd142m", "dvt_voc", "dvt_voc_distilled"),
    ("vit_base_patch16_224", 512): ("dino", "dvt_dino_voc", "dvt_dino_voc_distilled"),
    ("vit_base_patch16_224", 224): ("dino", "dvt_dino_voc", "dvt_dino_voc_distilled"),
}
CONTENDERS = ("plain", "denoised", "minimal", "distilled")


class Minimal(nn.Module):
    """A timm model and a head's parts, put together by hand; the position embedding is resampled beforehand."""

    def __init__(self, model: nn.Module, head: dvt_timm.DenoiserHead, grid: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.block = model, head.denoiser
        positions = resample_abs_pos_embed(head.pos_embed, grid, head.grid_size, num_prefix_tokens=0)
        self.positions = nn.Parameter(positions.detach())

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, height, width] -> [B, prefix + H * W, C]
        tokens = self.model.forward_features(x)
        prefix, patches = tokens[:, : self.model.num_prefix_tokens], tokens[:, self.model.num_prefix_tokens :]
        return torch.cat([prefix, self.block(patches + self.positions)], dim=1)


def build(arch: str, size: int, device: str, dtype: torch.dtype) -> dict[str, tuple[nn.Module, Callable]]:
    """The contenders' modules and what is timed of them. All share one set of weights, so that none lies better."""
    base, denoised_tag, distilled_tag = CASES[arch, size]
    native = timm.models.get_pretrained_cfg(f"{arch}.{base}").input_size[-2:]

    def create(tag: str, **options: Any) -> nn.Module:
        return timm.create_model(f"{arch}.{tag}", num_classes=0, **options).eval().to(device, dtype)

    plain = create(base, dynamic_img_size=True, img_size=native)
    models = {"plain": plain, "denoised": create(denoised_tag)}
    if distilled_tag:
        models["distilled"] = create(distilled_tag)
    for model in models.values():
        model.load_state_dict(plain.state_dict(), strict=False, assign=True)
    functions = {name: (model, model.forward_features) for name, model in models.items()}
    grid = plain.patch_embed.dynamic_feat_size((size, size))
    minimal = Minimal(plain, models["denoised"].denoiser, grid)
    return {**functions, "minimal": (minimal, minimal)}


def seconds(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(functions: dict[str, Callable], x: Tensor, rounds: int, budget: float) -> dict[str, list[float]]:
    """Seconds of every contender in every round, at least `rounds` rounds and `budget` seconds, after a warm-up."""
    names = list(functions)
    outputs = {name: functions[name](x) for name in names}
    torch.testing.assert_close(outputs["denoised"], outputs["minimal"], atol=0.05, rtol=0.05)
    times: dict[str, list[float]] = {name: [] for name in names}
    order, spent = random.Random(0), 0.0
    while len(times["plain"]) < rounds or spent < budget:
        for name in order.sample(names, len(names)):
            times[name].append(seconds(functions[name], x))
            spent += times[name][-1]
    return times


def ratio(times: dict[str, list[float]], a: str, b: str) -> str:
    """Median over the rounds of a's time over b's, and its standard error."""
    if a not in times:
        return "-"
    ratios = [x / y for x, y in zip(times[a], times[b], strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return f"{median:.3f} ±{0.93 * (upper - lower) / len(ratios) ** 0.5:.3f}"


def row(arch: str, size: int, batch: int, compiled: bool, args: argparse.Namespace) -> list[str]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    contenders = build(arch, size, args.device, args.dtype)
    depth = len(contenders["plain"][0].blocks)
    functions = {k: torch.compile(f) if compiled else f for k, (_, f) in contenders.items()}
    x = torch.randn(batch, 3, size, size, device=args.device, dtype=args.dtype)
    times = measure(functions, x, args.rounds, args.seconds)
    medians = [f"{1000 * statistics.median(times[name]):.1f}" if name in times else "-" for name in CONTENDERS]
    ratios = [ratio(times, "denoised", "minimal"), ratio(times, "denoised", "plain"), f"{(1 + 1 / depth) * 1.03:.3f}"]
    mode = "compiled" if compiled else "eager"
    rounds = str(len(times["plain"]))
    return [arch, str(size), str(batch), mode, rounds, *medians, *ratios, ratio(times, "distilled", "plain")]


def print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="at least so many, two or more (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="measure a case at least so long (default: 60)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--mode", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--arch", nargs="+", default=sorted({arch for arch, _ in CASES}))
    parser.add_argument("--size", type=int, nargs="+", default=sorted({size for _, size in CASES}), help="pixels")
    parser.add_argument("--quick", action="store_true", help="ViT-S at batch 1, eager, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.arch, args.batch, args.mode = ["vit_small_patch14_dinov2"], [1], ["eager"]
        args.rounds, args.seconds = 2, 0
    args.dtype = getattr(torch, args.dtype)
    return args


def main() -> None:
    args = parse()
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}")
    print(f"{args.dtype}, milliseconds (medians)")
    header = ["architecture", "size", "batch", "mode", "rounds", *CONTENDERS]
    header += ["denoised/minimal", "denoised/plain", "bound", "distilled/plain"]
    print_row(header)
    print_row(["---"] * len(header))
    cases = [(arch, size) for arch, size in CASES if arch in args.arch and size in args.size]
    for (arch, size), batch, mode in itertools.product(cases, args.batch, args.mode):
        print_row(row(arch, size, batch, mode == "compiled", args))


if __name__ == "__main__":
    main()
