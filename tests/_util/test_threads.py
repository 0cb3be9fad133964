"""Results made ahead come in order, and no thread outlives them."""

from __future__ import annotations

import threading
import time

import pytest

from dvt_timm._util.threads import made_ahead


@pytest.mark.parametrize("threads", [0, 1, 4, None])
def test_results_come_in_the_order_of_the_items(threads: int | None) -> None:
    def late(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    assert list(made_ahead(late, range(20), threads, most=6)) == [i * i for i in range(20)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []
    results = made_ahead(lambda i: i, (taken.append(i) or i for i in range(100)), threads=2, most=3)
    next(results)
    assert len(taken) == 4
    results.close()
    assert len(taken) == 4


def test_what_nobody_waits_for_is_not_made() -> None:
    made = []

    def slow(i: int) -> None:
        time.sleep(0.01)
        made.append(i)

    results = made_ahead(slow, range(100), threads=1, most=50)
    next(results)
    results.close()
    assert len(made) < 10


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_where_its_result_would(threads: int) -> None:
    before = threading.active_count()
    results = made_ahead(lambda i: 1 / (3 - i), range(10), threads, most=4)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before
