"""torch modules: what torch.compile wraps, what they are built like, and copies that share their parts."""

from __future__ import annotations

import copy
from collections.abc import Iterable
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


def architecture_of(module: nn.Module) -> str:
    """Describe what a module computes besides its weights: classes, numbers and dtypes of all its parts."""
    lines = []
    for name, part in module.named_modules():
        numbers = {key: value for key, value in sorted(vars(part).items()) if key != "training" and _is_plain(value)}
        dtypes = [str(tensor.dtype) for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))]
        lines.append(f"{name} {type(part).__qualname__} {part.extra_repr()} {numbers} {dtypes}")
    return "\n".join(lines)


def refuse_replaced(module: nn.Module, methods: Iterable[str]) -> None:
    """Raise TypeError if one of the methods was replaced on the instance: it would go round a denoiser."""
    for name in methods:
        if name in vars(module):
            raise TypeError(
                f"the {name} of this {type(module).__name__} was replaced on the instance, and goes round a denoiser; "
                "put that on, or take it off, before (accelerate replaces it for a device_map of several devices)"
            )


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or some of them."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
