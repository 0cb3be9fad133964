"""What `dvt-timm evaluate artifacts` takes beside the forward passes that it makes.

    python examples/benchmarks/evaluate.py --photos DIR                100 photos at 518 x 518
    python examples/benchmarks/evaluate.py --photos DIR --count 12 --size 224

One process, laps in turn: the passes alone, of the same photos, read and resized as the task does it, those that test
twice, since an artifact is planted in them; then the task with the embedded head and the projection, nothing kept on
disk. Printed: seconds of both, and their ratio, median, least and largest over the laps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import timm
from photos import MODEL, spread

from dvt_timm._util.images import read_image
from dvt_timm.evaluate import Rows, artifacts, plant


def passes(rows: Rows, paths: list[Path], num_test: int) -> None:
    """Do what cannot be left out: every photo once, and some once more with an artifact planted."""
    for _ in rows.over(map(read_image, paths)):
        pass
    with plant(rows.model):
        for _ in rows.over(map(read_image, paths[:num_test])):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=100, help="photos (default: 100)")
    parser.add_argument("--size", type=int, default=518, help="pixels (default: 518)")
    parser.add_argument("--mic", type=int, default=4, help="photos of which MIC is taken (default: 4)")
    parser.add_argument("--laps", type=int, default=2)
    arguments = parser.parse_args()
    paths = spread(arguments.photos, arguments.count)
    seconds: list[tuple[float, float]] = []
    for _ in range(arguments.laps):
        model = timm.create_model(MODEL, pretrained=True, num_classes=0).eval()
        bare = Rows(timm.create_model(MODEL, pretrained=True, num_classes=0).eval(), size=arguments.size)
        bare.denoisers.clear()
        start = time.perf_counter()
        passes(bare, paths, len(paths) - len(paths) * 2 // 3)
        between = time.perf_counter()
        artifacts(Rows(model, size=arguments.size), paths, mic_photos=arguments.mic)
        seconds.append((between - start, time.perf_counter() - between))
    ratios = [task / alone for alone, task in seconds]
    alone, task = (statistics.median(part) for part in zip(*seconds, strict=True))
    print(
        f"{len(paths)} photos of {arguments.size} x {arguments.size}: passes {alone:.1f} s, artifacts {task:.1f} s, "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
