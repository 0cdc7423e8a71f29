from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from actlas.store.objects.threads import OncePerKey


def test_threads_that_ask_at_once_compute_a_result_once() -> None:
    asked, gate = list[int](), threading.Event()

    def make(key: int) -> int:
        asked.append(key)
        gate.wait(10)
        return key * key

    kept = OncePerKey(make, maxsize=4)
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(kept, key) for key in (3, 4) * 4]
        gate.set()
        assert [result.result() for result in results] == [9, 16] * 4
    assert sorted(asked) == [3, 4]


def test_the_result_used_longest_ago_is_forgotten_and_errors_are_not_kept() -> None:
    asked: list[int] = []

    def make(key: int) -> int:
        asked.append(key)
        if len(asked) == 1:
            raise OSError("once")
        return key

    kept = OncePerKey(make, maxsize=2)
    with pytest.raises(OSError, match="once"):
        kept(1)
    assert [kept(key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert asked == [1, 1, 2, 3, 2]
    kept.clear()
    assert kept(1) == 1 and asked[-1] == 1


def test_an_error_does_not_outlive_who_catches_it() -> None:
    """Nor do the arrays of the frames that its traceback names, without a garbage collection."""

    class Large:
        """Stands for an array."""

    alive: list[weakref.ref[Large]] = []

    def make(key: str) -> str:
        held = Large()
        alive.append(weakref.ref(held))
        raise KeyError(key)

    kept = OncePerKey(make, maxsize=2)
    gc.disable()
    try:
        with pytest.raises(KeyError):
            kept("a")
        assert [ref() for ref in alive] == [None]
    finally:
        gc.enable()
