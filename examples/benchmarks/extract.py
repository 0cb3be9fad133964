"""What `dvt_timm.extract` costs beside the forward passes themselves, and what it holds in memory.

    python examples/benchmarks/extract.py speed --photos DIR     (some 3 minutes on two CPU cores that are free)
    python examples/benchmarks/extract.py memory --photos DIR    (some 5 minutes)

speed    photos a second, of the middle squares of some photos, on disk as JPEG files of their own resolution:
         passes     a bare loop of `forward_features` over batches that are decoded, resized and normalized beforehand
         extract    `extract` over the files, to the end of the last map
         files      the same, each written to a file as `dvt-timm features` does
         The contenders run in turn, `--laps` times; ratios are taken within a lap, medians over laps. Beside the time
         on the clock stands that of the processor, which other programs disturb less.
memory   resident memory of this process along `extract` over `--count` photos (taken again where there are fewer), each
         written to a file; and the most that the command takes, as a process of its own, for a tenth of them and all

To expect: extract / passes >= 0.95 at 518 x 518; memory that does not grow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import timm
import torch
from photos import MODEL, spread

import dvt_timm
from dvt_timm._util.folders import images_in
from dvt_timm._util.images import read_image
from dvt_timm._util.tensors import save_tensors
from dvt_timm.extraction import Extracted

PAGE = os.sysconf("SC_PAGE_SIZE")


def squares(photos: list[Path], folder: Path) -> list[Path]:
    """Write the middle square of every photo."""
    paths = []
    for photo in photos:
        image, side = read_image(photo), min(read_image(photo).size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        paths.append(folder / f"{photo.stem}.jpg")
        image.crop((left, top, left + side, top + side)).save(paths[-1], quality=90)
    return paths


def write(features: Extracted, folder: Path) -> None:
    """Write the maps of a photo to a file."""
    save_tensors({"raw": features.raw, "denoised": features.denoised}, folder / f"{features.index}.safetensors")


def speed(model: Any, arguments: argparse.Namespace, folder: Path) -> None:
    """Print photos a second of every contender, and the ratios to the bare passes."""
    paths = squares(spread(arguments.photos, arguments.count or 16), folder)
    options = {"size": arguments.size, "batch_size": arguments.batch_size}
    batches = torch.cat([dvt_timm.preprocess(model, path, arguments.size) for path in paths]).split(
        arguments.batch_size
    )

    def passes() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.forward_features(batch)

    def extract() -> None:
        for _ in dvt_timm.extract(model, paths, **options):
            pass

    def files() -> None:
        for features in dvt_timm.extract(model, paths, **options):
            write(features, folder)

    contenders: dict[str, Callable[[], None]] = {"passes": passes, "extract": extract, "files": files}
    laps = [{name: seconds_of(run) for name, run in contenders.items()} for _ in range(arguments.laps + 1)][1:]
    print(
        f"{len(paths)} photos a lap, {arguments.size} pixels, batches of {arguments.batch_size}, {arguments.laps} laps"
    )
    for name in contenders:
        rate = statistics.median(len(paths) / lap[name][0] for lap in laps)
        ratios = [statistics.median(lap["passes"][i] / lap[name][i] for lap in laps) for i in (0, 1)]
        spread_of = [f"{lap['passes'][0] / lap[name][0]:.3f}" for lap in laps]
        print(
            f"{name:8} {rate:6.2f} photos/s, {ratios[0]:.3f} of the bare passes ({', '.join(spread_of)}), "
            f"{ratios[1]:.3f} by processor time"
        )


def seconds_of(run: Callable[[], None]) -> tuple[float, float]:
    """Time a function: by the clock, and of the processor."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def memory(model: Any, arguments: argparse.Namespace, folder: Path) -> None:
    """Print the memory of this process along many photos, and the most that the command takes."""
    count = arguments.count or 500
    paths = list(islice(cycle(images_in(arguments.photos)), count))
    print(f"{count} photos, {arguments.size} pixels, batches of {arguments.batch_size}")
    for features in dvt_timm.extract(model, paths, size=arguments.size, batch_size=arguments.batch_size):
        write(features, folder)
        if features.index + 1 in (count // 10, count // 2, count):
            print(f"extract, after {features.index + 1:4} photos: {resident():.0f} MB")
    for number in (count // 10, count):
        named = folder / f"{number}.txt"
        copies = [folder / f"{i}{path.suffix}" for i, path in enumerate(paths[:number])]
        for copy, path in zip(copies, paths, strict=False):
            shutil.copyfile(path, copy)
        named.write_text("".join(f"{path}\n" for path in copies))
        options = ["--size", str(arguments.size), "--batch-size", str(arguments.batch_size)]
        for kind in ([], ["--shards", str(count)]):
            command = ["features", str(named), "--out", str(folder / f"{number}{len(kind)}"), *options, *kind]
            print(f"command {' '.join(kind):13} {number:4} photos: at most {most_of(command):.0f} MB")


def resident() -> float:
    """Memory of this process that is in use, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def most_of(command: list[str]) -> float:
    """Run a command of this package; the most memory that it takes, in MB."""
    process = subprocess.Popen([sys.executable, "-m", "dvt_timm", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("speed", "memory"))
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos")
    parser.add_argument("--size", type=int, help="pixels of the shorter side (default: 518, of memory 112)")
    parser.add_argument("--count", type=int, help="photos: of a lap (default: 16), or in all (default: 500)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--laps", type=int, default=5, help="after one that does not count")
    arguments = parser.parse_args()
    arguments.size = arguments.size or {"speed": 518, "memory": 112}[arguments.measure]
    model = timm.create_model(MODEL, pretrained=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        {"speed": speed, "memory": memory}[arguments.measure](model, arguments, Path(folder))


if __name__ == "__main__":
    main()
