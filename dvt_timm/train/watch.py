"""What a run watches: the clock, and signals to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Clock:
    """Counts time, samples and losses since the last lap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._restart()

    def _restart(self) -> None:
        self._start, self._waiting, self._samples, self._batches = time.perf_counter(), 0.0, 0, 0
        self._losses = torch.zeros(2, device=self._device)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as spent waiting for samples."""
        start = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - start

    def add(self, samples: int, losses: Tensor) -> None:
        """Count one batch; losses: [2] mse and cosine."""
        self._samples += samples
        self._batches += 1
        self._losses += losses

    def lap(self) -> tuple[float, float, int, Tensor]:
        """Give (seconds, those spent waiting, samples, mean losses [2]) since the last lap, and begin a new one."""
        losses = self._losses / self._batches
        values = (time.perf_counter() - self._start, self._waiting, self._samples, losses)
        self._restart()
        return values


class Signals:
    """Notes that SIGINT or SIGTERM has come; a second one acts as ever. Only the main thread can tell."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: Any) -> None:
        self.received = True
        signal.signal(number, self._before[number])
