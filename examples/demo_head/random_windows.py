"""Random windows of photos, half of them mirrored: more images for stage 1 where photos are few.

    python examples/demo_head/random_windows.py PHOTOS --count 4 --out WINDOWS
    python examples/demo_head/random_windows.py PHOTOS --count 1 --plain --out PLAIN
    dvt-timm fit PHOTOS WINDOWS PLAIN --model NAME --half --out STORE

A window has 0.5 to 0.9 of a photo's sides. Plain ones have 0.15 to 0.4, and of eight the one with the least contrast is
taken: walls, skies and cloth, where grid patterns are strong. Windows are drawn from the photo's content, so that the
same photos give the same ones, whatever their names and their order.
"""

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SIDE, PLAIN_SIDE = (0.5, 0.9), (0.15, 0.4)  # of the photo's
PLAINEST_OF = 8
QUALITY = 95  # of JPEG


def images_of(paths: Iterable[Path], out: Path) -> list[Path]:
    """The images at files and in folders, those in `out` left aside."""
    found = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in found if file.suffix.lower() in SUFFIXES and out not in file.parents]


def random_window(photo: Image.Image, random: np.random.Generator, sides: tuple[float, float] = SIDE) -> Image.Image:
    side = random.uniform(*sides)
    width, height = (max(1, round(side * pixels)) for pixels in photo.size)
    left, top = (
        int(random.integers(whole - part + 1)) for whole, part in zip(photo.size, (width, height), strict=True)
    )
    window = photo.crop((left, top, left + width, top + height))
    return ImageOps.mirror(window) if random.random() < 0.5 else window


def plain_window(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    return min((random_window(photo, random, PLAIN_SIDE) for _ in range(PLAINEST_OF)), key=contrast)


def contrast(window: Image.Image) -> float:
    return float(np.asarray(window.convert("L"), dtype=np.float64).std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, help="images or folders")
    parser.add_argument("--count", type=int, default=4, help="of each photo (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="small windows, of eight the one with the least contrast")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw = plain_window if arguments.plain else random_window
    for path in images_of(arguments.photos, arguments.out):
        photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        for i in range(arguments.count):
            window = draw(photo, np.random.default_rng([int(content[:16], 16), i]))
            window.save(arguments.out / f"{content[:16]}-{i}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
