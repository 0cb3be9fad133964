"""The log of a run: lines of JSON, and TensorBoard if it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._util.files import json_text, replacing

LOG, BOARD = "log.jsonl", "tensorboard"


class RunLog:
    """Numbers of a run, appended to `log.jsonl` and `tensorboard/`."""

    def __init__(self, run: Path, step: int) -> None:
        """Go on after `step`; what was logged after it is dropped."""
        self.path = run / LOG
        _drop_after(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board: Any = None
        else:
            self._board = SummaryWriter(run / BOARD, purge_step=step + 1)

    def write(self, step: int, group: str, numbers: dict[str, float]) -> None:
        """Write one line: `{"step": ..., "group": ..., name: number, ...}`."""
        self._file.write(json_text({"step": step, "group": group, **numbers}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, number in numbers.items():
                self._board.add_scalar(f"{group}/{name}", number, step)

    def close(self) -> None:
        """Write what is left, and close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log, without one that a killed run left half written."""
    path = run / LOG
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _drop_after(path: Path, step: int) -> None:
    kept = [line for line in read_log(path.parent) if line["step"] <= step]
    with replacing(path) as scratch:
        scratch.write_text("".join(json_text(line) + "\n" for line in kept), encoding="utf-8")
