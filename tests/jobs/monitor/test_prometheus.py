"""What is counted with Ray, and that no number ever stops a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support.jobs import options, plant
from support.workers import check_whole, make_fake

from actlas.jobs.executors import ray as ray_executor
from actlas.jobs.logs import LOGGER
from actlas.jobs.monitor import prometheus as metrics
from actlas.jobs.monitor.prometheus import Metered
from actlas.jobs.run.run import run_extraction
from actlas.store.errors import EXIT_DONE
from actlas.store.store import Store

NAMES = ("rows", "tokens", "bytes", "nonfinite", "shards", "quarantined", "faults", "stage")


class Metric:
    """Counts as Ray's do, which refuse to count nothing."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.last: float | None = None

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        if value <= 0:
            raise ValueError("value must be >0")
        self.total["".join((tags or {}).values())] += value  # type: ignore[assignment]

    def observe(self, value: float) -> None:
        self.inc(value)

    def set(self, value: float) -> None:
        self.last = value


def test_everything_is_counted(
    ray_started: None, store: Store, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name: Metric() for name in (*NAMES, "seconds", "in_flight", "workers")}
    monkeypatch.setattr(ray_executor, "Metered", lambda watch: Metered(watch, lambda: made))
    plant(tmp_path, {3: ["raise"]})
    assert run_extraction(store, options("ray"), make_fake).exit_code == EXIT_DONE
    check_whole(store)
    assert made["shards"].total[""] == store.plan.n_shards
    assert made["rows"].total[""] == made["tokens"].total[""] == store.plan.n_tokens
    assert made["faults"].total == {"task": 1}
    assert made["quarantined"].total == {}
    assert made["bytes"].total[""] > store.plan.n_tokens * 128
    assert made["stage"].total["forward"] == pytest.approx(0.001 * store.plan.n_shards)
    assert (made["in_flight"].last, made["workers"].last) == (0, 0)


def test_metrics_that_fail_stop_nothing_and_are_logged_once(
    ray_started: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("no such metric")

    logged: list[str] = []
    monkeypatch.setattr(LOGGER, "exception", lambda text, **_named: logged.append(text))
    monkeypatch.setattr(metrics, "ray_metrics", broken)
    assert run_extraction(store, options("ray"), make_fake).exit_code == EXIT_DONE
    check_whole(store)
    assert len(logged) == 1
