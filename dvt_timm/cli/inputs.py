"""The images that a command line names, and where their results go."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .._util.files import as_file_name
from .._util.images import images_in, printable
from .console import CommandError, report

LIST = ".txt"  # suffix of lists of images


def existing(paths: Iterable[Path]) -> list[Path]:
    """Leave out the paths that do not exist, and report them."""
    found = []
    for path in paths:
        if os.path.exists(path):  # False, too, where the name is too long for a file
            found.append(path)
        else:
            report(f"skipped {path}: not found")
    return found


def images_of(paths: list[Path], out: Path) -> list[Path]:
    """Find the images at files, in folders and in lists; those below the folder of results are left aside.

    Raises:
        CommandError: if there is none, or something that is named does not exist.
    """
    missing, targets = find_listed(paths, out)
    if missing:
        raise CommandError(f"{len(missing)} of the images named do not exist, first {missing[0]}; name others")
    return list(targets)


def find_listed(paths: list[Path], out: Path) -> tuple[list[Path], dict[Path, Path]]:
    """Find the images at files, in folders and in lists.

    Args:
        paths: files, folders, and `.txt` lists of either: a path a line, relative to the list.
        out: folder of the results.

    Returns:
        What is named and does not exist; and each image in the rest, with the path of its results without a suffix.

    Raises:
        CommandError: if there is no image.
    """
    given = {image: os.path.exists(image) for path in paths for image in _listed(path)}
    targets = find_images([path for path, exists in given.items() if exists], out)
    if not targets:
        raise no_images(paths)
    return [path for path, exists in given.items() if not exists], targets


def no_images(paths: list[Path]) -> CommandError:
    """Make the error of a command line that names no image."""
    given = ", ".join(str(path) for path in paths)
    return CommandError(f"no image in {given}; give JPEG, PNG or WebP files, or folders that hold some")


def find_images(paths: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Find the images at files and in folders.

    Folders are searched recursively, in sorted order, for JPEG, PNG and WebP files, `out` itself left aside. A result
    keeps the image's place within its folder; where two would get the same name, or an image would be overwritten,
    the later one gets a number. A PNG without a safetensors file beside it is an image, no result of an earlier run.

    Args:
        paths: existing files and folders.
        out: folder of the results.

    Returns:
        Image -> path of its results without a suffix, each image once.

    Raises:
        CommandError: if `out` is one of the folders: its panels would be taken for images.
    """
    found: dict[Path, Path] = {}  # resolved image -> name relative to out
    shown: dict[Path, Path] = {}  # resolved image -> path as given
    for path in paths:
        if path.is_dir() and path.resolve() == out.resolve():
            raise CommandError(f"{out} is a folder of images and the folder of the results; choose another --out")
        for image in _images_in(path, out) if path.is_dir() else [path]:
            relative = image.relative_to(path) if path.is_dir() else Path(image.name)
            stem = relative.stem if relative.stem.strip(".") else "image"
            found.setdefault(image.resolve(), Path(as_file_name(printable(relative.parent / stem))))
            shown.setdefault(image.resolve(), image)
    stems = _distinct(found, out)
    return {shown[image]: out / stems[image] for image in found}


def _listed(path: Path) -> list[Path]:
    """Read the paths that a list names; of anything else, that itself."""
    if path.suffix.lower() != LIST or not path.is_file():
        return [path]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read the list {path}: {error}") from error
    return [path.parent / as_file_name(line.strip()) for line in lines if line.strip()]


def _images_in(folder: Path, out: Path) -> list[Path]:
    inner = folder.resolve() in out.resolve().parents
    return [path for path in images_in(folder) if not (inner and out.resolve() in path.resolve().parents)]


def _distinct(stems: dict[Path, Path], out: Path) -> dict[Path, Path]:
    """Give each image a name of its own, whose panel is no image; letter case does not count."""
    taken = {str(image).casefold() for image in stems}
    distinct = {}
    for image, stem in stems.items():
        candidate, number = stem, 1
        while (panel := str(out.resolve() / f"{candidate}.png").casefold()) in taken or _is_image(out / candidate):
            number += 1
            candidate = stem.with_name(f"{stem.name}-{number}")
        taken.add(panel)
        distinct[image] = candidate
    return distinct


def _is_image(target: Path) -> bool:
    """Whether a PNG lies in the place of a panel that no earlier run made."""
    panel, maps = (os.path.lexists(f"{target}.{suffix}") for suffix in ("png", "safetensors"))
    return panel and not maps
