"""Stage 1 measured: closed form against the released method and against baselines, on planted and on real features.

    python examples/benchmarks/stage1.py planted              8 minutes on two CPU cores
    python examples/benchmarks/stage1.py size                 2 minutes
    python examples/benchmarks/stage1.py image --batch-size 32     on a GPU; --kind jitter: the views of `fit`
    python examples/benchmarks/stage1.py views --photos DIR --plot views.png
    python examples/benchmarks/stage1.py held-out --photos DIR
    python examples/benchmarks/stage1.py neural --photos DIR
    python examples/benchmarks/stage1.py leakage --photos DIR --fit 64 --test 40
    python examples/benchmarks/stage1.py leakage --stores jitter=STORE crops=STORE      of `dvt-timm fit`
    python examples/benchmarks/stage1.py information --photos DIR
    python examples/benchmarks/stage1.py camvid --camvid DIR
    python examples/benchmarks/stage1.py options --photos DIR

What needs no photos needs nothing but the package. The photos can be any folder of at least as many natural images as a
measure takes (docs/benchmarks.md: which ones were used). Maps of photos are kept in --cache, and a run that was stopped
goes on.
Errors of F are squared, relative to its variance, the free constant per channel removed.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import stage1_downstream
import stage1_real
import stage1_synthetic
import timm
import torch
from measuring import DEVICE

MEASURES = {
    "planted": stage1_synthetic.planted,
    "size": stage1_synthetic.size,
    "image": stage1_synthetic.image,
    "views": stage1_real.views,
    "held-out": stage1_real.held_out_views,
    "neural": stage1_real.neural,
    "leakage": stage1_downstream.leakage,
    "information": stage1_downstream.information,
    "camvid": stage1_downstream.camvid,
    "options": stage1_real.options,
}


def needed(arguments: argparse.Namespace) -> str | None:
    """The folder that a measure cannot do without."""
    if arguments.measure in ("planted", "size", "image") or (arguments.measure == "leakage" and arguments.stores):
        return None
    return "camvid" if arguments.measure == "camvid" else "photos"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder of photos")
    parser.add_argument("--camvid", type=Path, metavar="DIR", help="CamVid: train, trainannot, val, valannot")
    parser.add_argument("--count", type=int, help="photos, or frames to train on (default: what the docs report)")
    parser.add_argument("--fit", type=int, default=250, help="photos that fit the leakage probe (default: %(default)s)")
    parser.add_argument("--test", type=int, default=100, help="photos that test it (default: %(default)s)")
    parser.add_argument(
        "--stores", nargs="+", metavar="NAME=STORE", help="take the photos of the leakage probe from these instead"
    )
    parser.add_argument(
        "--kinds", nargs="+", default=["jitter=24", "crops=24"], metavar="KIND=N", help="views per photo"
    )
    parser.add_argument("--steps", type=int, default=2500, help="of the released method (default: %(default)s)")
    parser.add_argument("--device", default=DEVICE, help="of size, image and neural")
    parser.add_argument("--kind", default="crops", choices=["crops", "jitter"], help="views of image (default: crops)")
    parser.add_argument("--pixels", type=int, default=518, help="of image (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="of size and image (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("stage1-cache"), help="(default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of the number of views")
    arguments = parser.parse_args()
    folder = needed(arguments)
    if folder and getattr(arguments, folder) is None:
        parser.error(f"{arguments.measure} needs --{folder} DIR")
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {platform.machine()}, {torch.get_num_threads()} threads\n"
    )
    MEASURES[arguments.measure](arguments)


if __name__ == "__main__":
    main()
