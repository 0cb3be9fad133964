"""The images that a command line names, and where their results go."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .._util.files import as_file_name
from .._util.folders import Survey, survey
from .._util.images import is_ours, printable
from .console import CommandError, report

LIST = ".txt"  # suffix of lists of images


@dataclass
class Found:
    """What a command line names.

    Attributes:
        targets: image -> path of its results without a suffix, each image once.
        missing: what does not exist.
        unreadable: folder that cannot be searched, or not whole -> why; they are reported.
    """

    targets: dict[Path, Path] = field(default_factory=dict)
    missing: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    @property
    def num_missing(self) -> int:
        """How many inputs are missing or cannot be searched."""
        return len(self.missing) + len(self.unreadable)


def images_of(paths: list[Path], out: Path) -> tuple[list[Path], int]:
    """Find the images at files, in folders and in lists; those below the folder of results are left aside.

    Returns:
        The images, and how many inputs are missing or cannot be searched, which are reported.

    Raises:
        CommandError: if there is no image.
    """
    found = find_listed(paths, out)
    report_missing(found)
    return list(found.targets), found.num_missing


def report_missing(found: Found) -> None:
    """Report what is named and does not exist."""
    for path in found.missing:
        _report(f"skipped {path}: not found")


def find_listed(paths: list[Path], out: Path) -> Found:
    """Find the images at files, in folders and in lists.

    Args:
        paths: files, folders, and `.txt` lists of either: a path a line, relative to the list.
        out: folder of the results.

    Raises:
        CommandError: if there is no image.
    """
    return find_images([image for path in paths for image in _listed(path)], out, given=paths)


def find_images(paths: Iterable[Path], out: Path, given: list[Path] | None = None) -> Found:
    """Find the images at files and in folders.

    Folders are searched recursively, in sorted order, for JPEG, PNG and WebP files, `out` itself left aside. A result
    keeps the image's place within its folder; where two would get the same name, or an image would be overwritten,
    the later one gets a number. A PNG in the place of a panel is an image, no result of an earlier run, unless this
    package has drawn it and a safetensors file is beside it.

    Args:
        paths: files and folders.
        out: folder of the results.
        given: what the command line names instead of them.

    Raises:
        CommandError: if there is no image; if `out` is one of the folders, whose panels would lie among the images.
    """
    found, aside = Found(), Counter[str]()
    stems: dict[Path, Path] = {}  # resolved image -> name relative to out
    shown: dict[Path, Path] = {}  # resolved image -> path as given
    for path in dict.fromkeys(paths):
        if not os.path.exists(path):  # False, too, where the name is too long for a file
            found.missing.append(path)
            continue
        inside = _survey(path, out)
        found.unreadable |= inside.unreadable
        aside += inside.aside
        for image in inside.images:
            relative = Path(image.name) if image == path else image.relative_to(path)
            stem = relative.stem if relative.stem.strip(".") else "image"
            stems.setdefault(image.resolve(), Path(as_file_name(printable(relative.parent / stem))))
            shown.setdefault(image.resolve(), image)
    _report_folders(found, aside)
    if not stems:
        raise _no_images(list(paths) if given is None else given, found.missing)
    names = _distinct(stems, out)
    found.targets = {shown[image]: out / names[image] for image in stems}
    return found


def _survey(path: Path, out: Path) -> Survey:
    """Look into a folder; a file is what it is named as."""
    if not path.is_dir():
        return Survey([path])
    if path.resolve() == out.resolve():
        raise CommandError(f"{out} is a folder of images and the folder of the results; choose another --out")
    return survey(path, apart=out)


def _report_folders(found: Found, aside: Counter[str]) -> None:
    for path, reason in found.unreadable.items():
        _report(f"skipped {path}: {reason}")
    if aside:
        counts = ", ".join(f"{count} {kind}" for kind, count in aside.most_common())
        _report(f"left aside: {counts}; JPEG, PNG and WebP files are read")


def _report(message: str) -> None:
    """Report a line in the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        report(message)


def _no_images(given: list[Path], missing: list[Path]) -> CommandError:
    """Make the error of a command line that names no image."""
    where = ", ".join(str(path) for path in given)
    listed = [path for path in missing if path not in given]
    remedy = "give JPEG, PNG or WebP files, or folders that hold some"
    if listed:
        remedy = "a list is in UTF-8, its paths are relative to its folder"
    found = "".join(f": {path} not found" for path in [*listed, *missing][:1])
    return CommandError(f"no image in {where}{found}; {remedy}")


def _listed(path: Path) -> list[Path]:
    """Read the paths that a list names; of anything else, that itself."""
    if path.suffix.lower() != LIST or not path.is_file():
        return [path]
    try:
        names = _names_in(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read the list {path}: {error}") from error
    return [path.parent / os.fsdecode(name) for name in names]


def _names_in(data: bytes) -> list[bytes]:
    """Take a list apart, at its lines or where `find -print0` ends a name; as bytes, which is what names are.

    Raises:
        ValueError: if it is damaged UTF-16, or UTF-16 without a mark.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16").encode()
    data = data.removeprefix(codecs.BOM_UTF8)
    if b"\0" not in data:
        return [name for line in data.splitlines() if (name := line.strip())]
    if not any(data[::2]) or not any(data[1::2]):
        raise ValueError("it looks like UTF-16; save it as UTF-8")
    return [name for name in data.split(b"\0") if name]


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
    panel, maps = Path(f"{target}.png"), Path(f"{target}.safetensors")
    return os.path.lexists(panel) and not (os.path.lexists(maps) and is_ours(panel))
