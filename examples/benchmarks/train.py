"""What training costs: stages 2 and 3 against a bare loop of forward, backward and step on one batch in memory.

    python examples/benchmarks/train.py                   all measures at 518 pixels
    python examples/benchmarks/train.py --quick           the same at 56, to see that it runs
    python examples/benchmarks/train.py store --batch-size 16 --precision bf16

store      stage 2 from a feature store on disk
online     stage 2, each target solved when it is needed (24 views, one prepared factorisation)
fit        what a store costs instead: the same images through `fit_store`, with bytes on disk
distil     stage 3

Features and images are random: only their sizes matter here. Each measure is a process of its own, and its bare loop
runs in it, before and after. To expect: waiting <= 5 % of the time, bare / trainer <= 1.05.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from measuring import DEVICE, peak_memory, synchronize
from PIL import Image

import dvt_timm  # noqa: F401  adds the name
from dvt_timm.offline import ImageFitter, fit_store, open_store
from dvt_timm.offline.run import settings_of
from dvt_timm.offline.store import StoreWriter, writing
from dvt_timm.train import DenoiserStage, DistillStage, OnlinePairs, TrainConfig, feature_losses, make_accelerator
from dvt_timm.train.config import BETAS
from dvt_timm.train.data import collate
from dvt_timm.train.log import read_log
from dvt_timm.train.loop import Stage, Trainer

MODEL = "vit_small_patch14_dinov2.dvt_demo"
SIZE, QUICK_SIZE = 518, 56  # pixels
LAP = 10  # steps between two lines of the log
NUM_SAMPLES = 24
HEADER = ["measure", "samples/s", "waiting", "bare loop / trainer", "peak memory, GB", "note"]


def model_at(size: int) -> Any:
    return timm.create_model(MODEL, pretrained=True, num_classes=0, img_size=size, dynamic_img_size=True).eval()


def photos(folder: Path) -> list[Path]:
    """Random images."""
    folder.mkdir()
    for i in range(NUM_SAMPLES):
        pixels = np.random.default_rng(i).integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(folder / f"{i}.jpg")
    return sorted(folder.iterdir())


def random_store(folder: Path, fitter: ImageFitter, size: int) -> Path:
    """A store of random pairs of the model's size."""
    grid = size // fitter.model.patch_embed.patch_size[0]
    with writing(folder, settings_of(fitter, half=False)):
        writer = StoreWriter(folder)
        for i in range(NUM_SAMPLES):
            raw, clean = torch.randn(2, grid, grid, fitter.model.embed_dim)
            writer.add(f"{i:064x}", Path(f"{i}.jpg"), {"raw": raw, "clean": clean}, {})
        writer.close()
    return folder


def stage_of(measure: str, folder: Path, size: int) -> Stage:
    model = model_at(size)
    if measure == "distil":
        return DistillStage(model, photos(folder / "photos"), size=(size, size))
    fitter = ImageFitter(model, size=size)
    if measure == "online":
        return DenoiserStage(OnlinePairs(photos(folder / "photos"), fitter), MODEL)
    return DenoiserStage(open_store(random_store(folder / "store", fitter, size)), MODEL)


def bare(stage: Stage, config: TrainConfig, accelerator: Any, steps: int) -> float:
    """Samples per second of forward, backward and step on one batch that is in memory."""
    module = stage.module.to(accelerator.device).train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=BETAS, fused=True)
    sample = collate([stage.samples[i % NUM_SAMPLES] for i in range(config.batch_size)])
    moved = sample.to(accelerator.device) if torch.is_tensor(sample) else [s.to(accelerator.device) for s in sample]

    def step() -> float:
        batch = stage.batch(moved)
        with accelerator.autocast():
            predicted = module(batch.inputs)
        feature_losses(predicted, batch.target).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return config.batch_size

    step()
    start = time.perf_counter()
    done = sum(step() for _ in range(steps))
    synchronize()
    return done / (time.perf_counter() - start)


def train(measure: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    config = TrainConfig(
        steps=LAP * (arguments.laps + 1),
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        workers=arguments.workers,
        held_out=1,
        eval_every=10**6,
        checkpoint_every=10**6,
    )
    accelerator = make_accelerator(config)
    stage = stage_of(measure, folder, QUICK_SIZE if arguments.quick else SIZE)
    rates = [bare(stage, config, accelerator, LAP)]
    (folder / "run").mkdir()
    Trainer(stage, config, folder / "run", accelerator).train()
    rates.append(bare(stage, config, accelerator, LAP))
    laps = [line for line in read_log(folder / "run") if line["group"] == "train"][1:]  # the first one warms up
    rate, waiting = (statistics.median(lap[key] for lap in laps) for key in ("samples/s", "waiting"))
    ratio = "" if measure == "online" else f"{statistics.mean(rates) / rate:.3f}"
    return [measure, f"{rate:.2f}", f"{100 * waiting:.1f} %", ratio, f"{peak_memory(DEVICE):.2f}", ""]


def fit(arguments: argparse.Namespace, folder: Path) -> list[str]:
    size = QUICK_SIZE if arguments.quick else SIZE
    paths = photos(folder / "photos")[: arguments.batch_size]
    start = time.perf_counter()
    fit_store(ImageFitter(model_at(size), size=size), paths, folder / "store")
    rate = len(paths) / (time.perf_counter() - start)
    written = sum(file.stat().st_size for file in (folder / "store").rglob("*.safetensors"))
    note = f"{written / len(paths) / 1e6:.1f} MB per image"
    return ["fit", f"{rate:.2f}", "", "", f"{peak_memory(DEVICE):.2f}", note]


MEASURES: dict[str, Callable[[argparse.Namespace, Path], list[str]]] = {
    "store": lambda arguments, folder: train("store", arguments, folder),
    "online": lambda arguments, folder: train("online", arguments, folder),
    "fit": fit,
    "distil": lambda arguments, folder: train("distil", arguments, folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []], default=[], help="all by default")
    parser.add_argument("--batch-size", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--workers", type=int, default=4, help="threads that read samples (default: %(default)s)")
    parser.add_argument("--laps", type=int, default=3, help=f"of {LAP} steps, after one to warm up")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if len(arguments.measures) == 1:
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(MEASURES[arguments.measures[0]](arguments, Path(folder))) + " |")
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {arguments.batch_size}\n")
    print("| " + " | ".join(HEADER) + " |\n" + "| --- " * len(HEADER) + "|", flush=True)
    options = [option for option in sys.argv[1:] if option not in MEASURES]
    for measure in arguments.measures or MEASURES:
        subprocess.run([sys.executable, __file__, measure, *options], check=True)


if __name__ == "__main__":
    main()
