"""An ordered map over a bounded thread pool, for many small requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

Result = TypeVar("Result")

AHEAD = 16
"""Calls that are submitted ahead of the one waited for, per thread."""


def map_in_order(
    do: Callable[[Item], Result], items: Iterable[Item], n_threads: int
) -> Iterator[Result]:
    """Yield ``do(item)`` for every item in order, with a bounded number of calls in flight.

    Parameters
    ----------
    do : callable
        The function; it runs in a thread pool of its own.
    items : iterable
        The arguments; they are drawn in the calling thread.
    n_threads : int
        The number of threads.
    """
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="actlas-in-order") as pool:
        try:
            for item in items:
                running.append(pool.submit(do, item))
                if len(running) > AHEAD * n_threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
