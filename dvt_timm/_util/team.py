"""The processes that share the work of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

WAITING = timedelta(days=7)  # how long a process waits for the others: images take unequal times
GRACE = 10.0  # seconds

Key = TypeVar("Key", int, str)
Value = TypeVar("Value")


class Team:
    """The processes that share the work: one, or those that `accelerate launch` started.

    Raises:
        ImportError: if there are several and accelerate is not installed.
    """

    def __init__(self, device: str | None = None) -> None:
        """Join the others; `device` "cpu" keeps off the GPUs."""
        self.rank, self.size, self._state = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise ImportError("several processes need accelerate; pip install 'dvt-timm[train]'") from error
            self._state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=WAITING)
            self.rank, self.size = self._state.process_index, self._state.num_processes

    @property
    def device(self) -> str | None:
        """The device of this process, None where it is alone."""
        return None if self._state is None else str(self._state.device)

    def wait(self) -> None:
        """Wait for all the others."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def part(self, items: Sequence[Value]) -> Sequence[Value]:
        """Give this process its part of what is to be done: every `size`-th item."""
        return items[self.rank :: self.size]

    def gather(self, values: dict[Key, Value]) -> dict[Key, Value]:
        """Give every process what all of them have, in the order of the keys."""
        parts = [values]
        if self._state is not None:
            from accelerate.utils import gather_object

            parts = gather_object(parts)
        every = {key: value for part in parts for key, value in part.items()}
        return {key: every[key] for key in sorted(every)}

    def concatenate(self, tensor: Tensor) -> Tensor:  # [B, ...] -> [size B, ...]
        """Join the tensors of all processes, which have one shape, along the first axis; without gradients."""
        if self._state is None:
            return tensor
        from accelerate.utils import gather

        return gather(tensor)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's numbers into the tensors of all."""
        if self._state is not None:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


class Alone(Team):
    """This process, whatever others were started with it."""

    def __init__(self) -> None:
        self.rank, self.size, self._state = 0, 1, None


def fails_first() -> bool:
    """Say whether this process, which fails, is the first of those that were started to do so.

    Before they have met they fail alike: the others leave number 0 time to speak, whose end is theirs.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        time.sleep(GRACE if int(os.environ.get("RANK", "0")) else 0)
        return True
    try:
        return distributed.distributed_c10d._get_default_store().add("failed", 1) == 1
    except RuntimeError:  # the process that kept the store has ended: it was first
        return False
