"""What training costs: stages 2 and 3 against a bare loop of forward, backward and step on one batch in memory.

    python examples/benchmarks/train.py                   all measures at 518 pixels
    python examples/benchmarks/train.py --quick           the same at 56, to see that it runs
    python examples/benchmarks/train.py store --batch-size 16 --precision bf16

store      stage 2 from a feature store on disk
online     stage 2, each target solved when it is needed (24 views, one prepared factorization)
fit        what a store costs instead: the same images through `fit_store`, with bytes on disk
distill    stage 3

Features and images are random: only their sizes matter here. Each measure is a process of its own, and its bare loop
runs in it, between the laps: the ratio is the median of the laps', with the least and the largest. To expect: waiting
<= 5 % of the time, bare / trainer <= 1.05.
"""

from __future__ import annotations

import argparse
import copy
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
from dvt_timm.train.loop import LOG_EVERY, Trainer
from dvt_timm.train.stage import Stage

MODEL = "vit_small_patch14_dinov2.dvt_demo"
SIZE, QUICK_SIZE = 518, 56  # pixels
LAP = LOG_EVERY  # steps of the bare loop, and between two lines of the log
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
    if measure == "distill":
        return DistillStage(model, photos(folder / "photos"), size=size)
    fitter = ImageFitter(model, size=size)
    if measure == "online":
        return DenoiserStage(OnlinePairs(photos(folder / "photos"), fitter), MODEL)
    return DenoiserStage(open_store(random_store(folder / "store", fitter, size)), MODEL)


class BareLoop:
    """Forward, backward and step of a copy of the module, on one batch that is in memory."""

    def __init__(self, stage: Stage, config: TrainConfig, accelerator: Any) -> None:
        self.stage, self.accelerator = stage, accelerator
        self.module = copy.deepcopy(stage.module).to(accelerator.device).train()
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=BETAS, fused=True)
        sample = collate([stage.samples[i % NUM_SAMPLES] for i in range(config.batch_size)])
        parts = sample if isinstance(sample, tuple) else (sample,)
        moved = tuple(part.to(accelerator.device) for part in parts)
        self.sample = moved if isinstance(sample, tuple) else moved[0]
        self.batch_size = config.batch_size

    def step(self) -> None:
        with self.accelerator.autocast():
            batch = self.stage.batch(self.sample)
            predicted = self.module(batch.inputs)
        feature_losses(predicted, batch.target).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def lap(self) -> float:
        """Samples per second, after a step to warm up."""
        self.step()
        synchronize()
        start = time.perf_counter()
        for _ in range(LAP):
            self.step()
        synchronize()
        return LAP * self.batch_size / (time.perf_counter() - start)


class InterleavedTrainer(Trainer):
    """A trainer that gives every third lap to the bare loop, so that a machine that slows down slows down both.

    Samples come ahead while the bare loop runs, so the lap after it does not count; the next one does.
    """

    def __init__(self, bare: BareLoop, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.bare, self.laps, self.peak_memory = bare, [], 0.0

    def _numbers(self, stop: bool) -> tuple[dict[str, float], bool]:
        numbers, stop = super()._numbers(stop)
        if self.step % (2 * LAP) == 0:
            self.peak_memory = self.peak_memory or peak_memory(DEVICE)  # before the bare loop has its own
            self.laps.append((numbers["samples/s"], numbers["waiting"], self.bare.lap()))
            self._clock.lap()
        return numbers, stop


def train(measure: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    config = TrainConfig(
        steps=2 * LAP * arguments.laps,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        workers=arguments.workers,
        held_out=1,
        eval_every=10**6,
        checkpoint_every=10**6,
    )
    accelerator = make_accelerator(config)
    stage = stage_of(measure, folder, QUICK_SIZE if arguments.quick else SIZE)
    bare = BareLoop(stage, config, accelerator)
    (folder / "run").mkdir()
    trainer = InterleavedTrainer(bare, stage, config, folder / "run", accelerator)
    trainer.train()
    rates, waiting, bare_rates = zip(*trainer.laps, strict=True)
    ratios = [of_bare / rate for rate, of_bare in zip(rates, bare_rates, strict=True)]
    ratio = "" if measure == "online" else f"{statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})"
    return [
        measure,
        f"{statistics.median(rates):.3g}",
        f"{100 * statistics.median(waiting):.1f} %",
        ratio,
        f"{trainer.peak_memory:.2f}",
        "",
    ]


def fit(arguments: argparse.Namespace, folder: Path) -> list[str]:
    size = QUICK_SIZE if arguments.quick else SIZE
    paths = photos(folder / "photos")[: arguments.batch_size]
    start = time.perf_counter()
    fit_store(ImageFitter(model_at(size), size=size), paths, folder / "store")
    rate = len(paths) / (time.perf_counter() - start)
    written = sum(file.stat().st_size for file in (folder / "store").rglob("*.safetensors"))
    note = f"{written / len(paths) / 1e6:.1f} MB per image"
    return ["fit", f"{rate:.3g}", "", "", f"{peak_memory(DEVICE):.2f}", note]


MEASURES: dict[str, Callable[[argparse.Namespace, Path], list[str]]] = {
    "store": lambda arguments, folder: train("store", arguments, folder),
    "online": lambda arguments, folder: train("online", arguments, folder),
    "fit": fit,
    "distill": lambda arguments, folder: train("distill", arguments, folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []], default=[], help="all by default")
    parser.add_argument("--batch-size", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--workers", type=int, help="threads that read samples (default: 4, on a CPU 1)")
    parser.add_argument("--laps", type=int, default=3, help=f"that count, of {LAP} steps each")
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
