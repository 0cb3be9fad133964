"""Files that a data set's lists name, and its PNGs."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from PIL import Image

from ..._util.images import read_png_and_bits


def read_list(path: Path) -> list[str]:
    """Read the lines of a list that say something.

    Raises:
        ValueError: if there is no such file, or it is empty, or no text.
    """
    if not path.is_file():
        raise ValueError(f"{path} not found; it lists what belongs to the split, one a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8") from error
    if not any(lines):
        raise ValueError(f"{path} is empty; it lists what belongs to the split, one a line")
    return [line for line in lines if line]


def inside(folder: Path, entry: str, source: Path) -> Path:
    """Give the path that an entry of a list names inside a folder; a "/" that it begins with is the folder.

    Raises:
        ValueError: if the entry leaves the folder.
    """
    relative = PurePosixPath(entry.replace("\\", "/").lstrip("/"))
    path = folder / relative
    if ".." in relative.parts or folder not in path.parents:
        raise ValueError(f"{source}: {entry!r} leads out of {folder}; paths in lists stay inside")
    return path


def check_present(paths: list[Path], source: Path) -> None:
    """Raise ValueError, with the first one's name, if files that a list or a folder promises are missing."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]} not found; of {len(paths)} files of {source}, {len(missing)} are missing")


def read_png(path: Path) -> Image.Image:
    """Read a PNG as it is, indices and 16 bits included; gray of 2 or 4 bits, too, which Pillow stretches to 0..255.

    Raises:
        ImageError: if it is missing, no PNG, damaged, or has too many pixels (`large_images`).
    """
    image, bits = read_png_and_bits(path)
    if image.mode != "L" or bits not in (2, 4):
        return image
    return image.point([value * (2**bits - 1) // 255 for value in range(256)])


def read_colors(path: Path) -> Image.Image:
    """Read a PNG as the colors that it shows, RGB.

    Raises:
        ImageError: as `read_png`.
    """
    return read_png_and_bits(path)[0].convert("RGB")


def check_same_size(image: Path, labels: Path, size: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Raise ValueError if an image of (width, height) and its labels [H, W] differ."""
    if shape != size[::-1]:
        raise ValueError(f"{labels} has {shape[0]} x {shape[1]} pixels, {image} has {size[1]} x {size[0]}")
