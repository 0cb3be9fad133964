"""The processes that share the work of a run."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

WAITING = timedelta(days=7)  # how long a process waits for the others: images take unequal times


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

    def gather(self, values: dict[str, str]) -> dict[str, str]:
        """Give every process what all of them have."""
        if self._state is None:
            return values
        from accelerate.utils import gather_object

        return {key: value for part in gather_object([values]) for key, value in part.items()}
