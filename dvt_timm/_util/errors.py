"""Errors of more than one room, and warnings that blame the line of the caller."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

INNER = ("dvt_timm", "timm", "torch")


class RunError(ValueError):
    """A run cannot begin or go on: its folder has other settings, a file of it is damaged, its numbers are not finite.

    What was written before is intact; the text says what to do.
    """


def warn_caller(message: str) -> None:
    """Warn, and blame the innermost line that is not of this package, timm or torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_back is not None and _is_inner(frame):
        frame = frame.f_back
    assert frame is not None
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__", "<string>")
    warnings.warn_explicit(message, UserWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _is_inner(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in INNER
