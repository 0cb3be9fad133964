"""torch modules: what torch.compile wraps, and copies that share their parts."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

COMPILED = "_orig_mod."  # what torch.compile puts before the names of parameters


def uncompiled(module: Any) -> Any:
    """Give the module that torch.compile has wrapped; give any other module as it is."""
    return getattr(module, COMPILED[:-1], module)


def shallow_copy(module: nn.Module) -> Any:
    """Copy a module, not its parts; what is set on the copy is not seen by the module."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin
