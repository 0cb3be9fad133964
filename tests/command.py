"""What the tests of the command line share: pictures on disk, results, and the one line of an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from dvt_timm.cli import main as cli

SHORT = ["--steps", "6", "--batch-size", "4", "--workers", "0", "--eval-every", "4", "--checkpoint-every", "3"]
FEW = ["--views", "3", "--size", "64"]


def picture(height: int = 60, width: int = 90, seed: int = 0) -> Image.Image:
    """A smooth random RGB image."""
    small = np.random.default_rng(seed).integers(0, 255, size=(4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


def truncated(path: Path) -> Path:
    data = saved(path, picture(300, 300)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def error_of(capsys: Any, *args: Any) -> str:
    """The one line of a command that ends with status 2; inputs that it skipped before have lines of their own."""
    assert cli.main(list(map(str, args))) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if not line.startswith("dvt-timm: skipped ")]
    assert line.startswith("dvt-timm: error: ")
    assert captured.out == ""
    return line
