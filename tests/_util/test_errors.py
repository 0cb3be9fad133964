"""Errors keep to the classes of Python, and warnings blame the caller's line."""

from __future__ import annotations

import warnings

import pytest

from dvt_timm._util.errors import RunError, warn_caller
from dvt_timm._util.images import ImageError
from dvt_timm.train import RunInterruptedError


def test_errors_are_those_that_python_code_catches() -> None:
    assert issubclass(RunError, ValueError)
    assert issubclass(ImageError, ValueError)
    assert issubclass(RunInterruptedError, RuntimeError)


def test_a_warning_blames_the_line_outside_this_package() -> None:
    inner = {"__name__": "dvt_timm.somewhere", "warn_caller": warn_caller}
    exec("def inside():\n    warn_caller('text')", inner)
    with pytest.warns(UserWarning, match="text") as caught:
        inner["inside"]()
    assert caught[0].filename == __file__


def test_a_warning_can_be_made_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="text"):
            warn_caller("text")
