"""What a GPU takes, as one command: forward passes, stage 1 and the paper's probe; eight minutes at most.

    python examples/benchmarks/gpu.py VOCdevkit/VOC2012
    python examples/benchmarks/gpu.py VOCdevkit/VOC2012 --quick     few steps of everything, on a CPU too

Parts, each a process that prints as it goes:

forward  plain and denoised ViT-B/14 at 518 pixels, batches of 1 and 8, float32 and bfloat16 (`forward.py`)
stage 1  a photo through a ViT-B/14 of random weights at 518 pixels: the views of `fit`, then crops as in the paper
         (`stage1.py image`); published for the authors' way: 100 to 160 s
probe    `dvt-timm evaluate segmentation --protocol paper` of the embedded backbone for 2,000 steps of 16 crops, on DATA

A part that is not done when the time is over is stopped. That of the probe goes on where it was when the same command
is called again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
VIT_B = ("--arch", "vit_base_patch14_dinov2")


def parts(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The commands by name."""
    forward, stage1 = (str(HERE / script) for script in ("forward.py", "stage1.py"))
    cost = ["--quick"] if arguments.quick else [*VIT_B, "--mode", "eager", "--seconds", "15"]
    views = ["--count", "2", "--pixels", "112"] if arguments.quick else ["--batch-size", "64"]
    few = ["--size", "112", "--steps", "2", "--train-batch", "2", "--limit", "2"]
    return {
        "forward, float32": [forward, *cost],
        "forward, bfloat16": [forward, *cost, "--dtype", "bfloat16"],
        "stage 1, views of fit": [stage1, "image", "--kind", "jitter", *views],
        "stage 1, crops": [stage1, "image", *views],
        "probe": [
            *("-m", "dvt_timm", "evaluate", "segmentation", str(arguments.data), "--protocol", "paper"),
            *("--out", str(arguments.out), *(few if arguments.quick else ["--steps", "2000", "--half"])),
        ],
    }


def run(command: list[str], seconds: float) -> str:
    """Run a part for so many seconds at most, and say how it ended."""
    try:
        done = subprocess.run([sys.executable, "-u", *command], timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "stopped, the time is over"
    return "done" if done.returncode == 0 else f"failed, exit status {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="VOC 2012, or what else `evaluate segmentation` takes")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="of the probe (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=8, help="for everything (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that everything runs")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", flush=True)
    end = time.monotonic() + 60 * arguments.minutes
    ends = {}
    for name, command in parts(arguments).items():
        print(f"\n## {name}\n\npython {' '.join(command)}\n", flush=True)
        start = time.monotonic()
        ends[name] = run(command, max(end - start, 0))
        print(f"\n{name}: {ends[name]}, {time.monotonic() - start:.0f} s", flush=True)
    return 0 if set(ends.values()) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
