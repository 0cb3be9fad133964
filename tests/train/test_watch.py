"""The clock counts what came since the last lap; signals ask to stop once, then act as ever."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from dvt_timm.train import watch
from dvt_timm.train.watch import Clock, Signals


def test_a_lap_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(second) for second in range(100))
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"))  # at 0
    with clock.waiting():  # 1 to 2
        pass
    clock.add(4, torch.tensor([1.0, 0.5]))
    clock.add(4, torch.tensor([3.0, 0.5]))
    seconds, waiting, samples, losses = clock.lap()  # at 3
    assert (seconds, waiting, samples, losses.tolist()) == (3, 1, 8, [2.0, 0.5])
    clock.add(2, torch.tensor([5.0, 1.0]))
    seconds, waiting, samples, losses = clock.lap()
    assert (seconds, waiting, samples, losses.tolist()) == (1, 0, 2, [5.0, 1.0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts_as_ever(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted = []
    before = signal.signal(number, lambda *_: acted.append(number))
    try:
        with Signals() as signals:
            assert not signals.received
            os.kill(os.getpid(), number)
            assert signals.received
            assert acted == []
            os.kill(os.getpid(), number)
            assert acted == [number]
        os.kill(os.getpid(), number)
        assert acted == [number, number]
    finally:
        signal.signal(number, before)


def test_other_threads_are_told_nothing() -> None:
    received = []

    def work() -> None:
        with Signals() as signals:
            received.append(signals.received)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [False]
    assert signal.getsignal(signal.SIGINT) is before
