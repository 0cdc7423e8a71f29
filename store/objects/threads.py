"""Doing many small things in threads and getting them back in order: requests, mostly."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

Result = TypeVar("Result")

AHEAD = 16
"""Items begun ahead of the one that is waited for, for each thread."""


def in_order(
    do: Callable[[Item], Result], items: Iterable[Item], n_threads: int
) -> Iterator[Result]:
    """Yield ``do(item)`` of every item, in their order; a bounded number is begun ahead.

    Parameters
    ----------
    do : callable
        Called in threads of its own.
    items : iterable
        Taken from in this thread.
    n_threads : int
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
