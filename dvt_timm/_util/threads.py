"""Results made by threads ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def made_ahead(
    make: Callable[[Item], Result], items: Iterable[Item], threads: int | None, most: int
) -> Iterator[Result]:
    """Give `make` of every item, in order; an error comes where its result would.

    Args:
        make: a function that several threads may call at once, in the caller's context.
        items: taken as they are needed.
        threads: 0 to make each when it is asked for, None for as many as the processor suggests.
        most: how many results may be ahead of the one in use.
    """
    if threads == 0:
        yield from map(make, items)
        return
    coming = deque[Future[Result]]()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                coming.append(pool.submit(copy_context().run, make, item))
                if len(coming) > most:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
