"""An ordered map over a bounded thread pool, for many small requests; a cache for threads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

Item = TypeVar("Item")

Result = TypeVar("Result")

AHEAD = 16
"""Calls that are submitted ahead of the one waited for, per thread."""


def map_in_order(
    do: Callable[[Item], Result],
    items: Iterable[Item],
    n_threads: int,
    *,
    n_ahead: int | None = None,
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
    n_ahead : int, optional
        Calls that are submitted ahead of the one waited for; their results are in memory. Default:
        ``AHEAD`` for each thread.
    """
    limit = AHEAD * n_threads if n_ahead is None else n_ahead
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="actlas-in-order") as pool:
        try:
            for item in items:
                running.append(pool.submit(do, item))
                if len(running) > limit:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class OncePerKey(Generic[Key, Result]):
    """A cache of a function's results, which threads that ask at once compute only once.

    ``functools.lru_cache`` lets every thread compute a result that is not there yet: all threads
    that begin to read a shard would read its receipt. An error is raised in each thread that waits,
    and is not kept. A forked process begins with an empty cache.

    Parameters
    ----------
    make : callable
        Computes the result of a key. It must not ask for the same key.
    maxsize : int
        The number of results to keep; the one that was used longest ago goes first.
    """

    def __init__(self, make: Callable[[Key], Result], maxsize: int) -> None:
        self._make, self._maxsize = make, maxsize
        self.clear()

    def __call__(self, key: Key) -> Result:
        """Return the result of a key."""
        if os.getpid() != self._process:
            self.clear()
        with self._lock:
            future = self._kept.get(key)
            if future is None:
                mine = self._kept[key] = Future()
                if len(self._kept) > self._maxsize:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
        if future is not None:
            return future.result()
        try:
            result = self._make(key)
        except BaseException as error:
            with self._lock:
                self._kept.pop(key, None)
            mine.set_exception(error)
            # The error's traceback has this frame: with the future in it, they would keep each
            # other, and the arrays of the frames below, until the next garbage collection.
            del mine
            raise
        mine.set_result(result)
        return result

    def clear(self) -> None:
        """Forget all results."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Future[Result]] = OrderedDict()
