"""What lies in a folder and below it: images, and what is left aside."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .images import SUFFIXES, is_ours

# image files that are not read: their number is told
OTHERS = frozenset(
    (".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".ppm", ".pgm", ".psd", ".exr")
)


@dataclass
class Survey:
    """The images in a folder, and what else could be taken for some.

    Attributes:
        images: JPEG, PNG and WebP files, sorted.
        unreadable: folder that cannot be searched, or not whole -> why.
        aside: what is left aside, in the plural -> how many.
    """

    images: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    aside: Counter[str] = field(default_factory=Counter)


def survey(folder: Path, apart: Path | None = None) -> Survey:
    """Look for images in a folder and below it, and where links to folders lead; each place is searched once.

    Pictures that this package has drawn are no images.

    Args:
        folder: one that exists.
        apart: a folder that is not searched.
    """
    found, searched = Survey(), set() if apart is None else {os.path.realpath(apart)}

    def note(error: OSError) -> None:
        found.unreadable[Path(error.filename)] = error.strerror or type(error).__name__

    starts = [str(folder)]
    for start in starts:  # links to folders are added while it goes through them
        for root, folders, files in os.walk(start, onerror=note):
            if os.path.realpath(root) in searched:
                folders.clear()
                continue
            searched.add(os.path.realpath(root))
            paths = (os.path.join(root, name) for name in sorted(folders))
            starts += [path for path in paths if os.path.islink(path)]
            for name in files:
                _sort(Path(root, name), found)
    found.images.sort()
    return found


def images_in(folder: str | os.PathLike[str]) -> list[Path]:
    """List the JPEG, PNG and WebP files in a folder and below it, in sorted order.

    Raises:
        NotADirectoryError: if it is no folder.
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{folder} is no folder; pass [path] for one image")
    return survey(Path(folder)).images


def _sort(path: Path, found: Survey) -> None:
    """Put a file where it belongs."""
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES and suffix not in OTHERS:
        return
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except PermissionError as error:  # of its folder, or of where a link leads
        found.unreadable[path if os.path.islink(path) else path.parent] = str(error.strerror)
        return
    except OSError:  # it leads to nothing, or to itself
        found.aside["broken links"] += os.path.islink(path)
        return
    if not is_file or not suffix:
        return
    if suffix in OTHERS:
        found.aside[f"{suffix} files"] += 1
    elif suffix == ".png" and is_ours(path):
        found.aside["pictures drawn by dvt-timm"] += 1
    else:
        found.images.append(path)
