"""Metrics of a run for Prometheus, through Ray's own metrics: see ``docs/decisions/0011``.

Metrics never affect the run: if they fail, the error is logged once and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actlas.jobs.logs import LOGGER
from actlas.jobs.scheduler.faults import Fault
from actlas.jobs.scheduler.protocols import STAGES, Done, Observer

SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0]
"""Bounds of the histogram of seconds per shard."""


class Metered:
    """An observer that passes every event on, and counts it with Ray.

    Parameters
    ----------
    observer : Observer
        Receives every event first.
    make : callable, optional
        Makes the metrics; by default :func:`ray_metrics`.
    """

    def __init__(
        self, observer: Observer, make: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        self._observer = observer
        self._flying: dict[str, set[int]] = {}
        self._states: dict[str, str] = {}
        self._metrics: dict[str, Any] = {}
        self._broken = False
        self._try(lambda: self._metrics.update((make or ray_metrics)()))

    def log(self, text: str) -> None:
        """Pass the call on."""
        self._observer.log(text)

    def tick(self) -> None:
        """Pass the call on."""
        self._observer.tick()

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Count the shards in flight and the workers."""
        self._observer.state(worker, state, shard)
        if state == "gone":
            self._flying.pop(worker, None)
            self._states.pop(worker, None)
        else:
            self._states[worker] = state
            if shard is not None:
                self._flying.setdefault(worker, set()).add(shard)
        self._try(self._gauge)

    def done(self, done: Done) -> None:
        """Count a finished shard, its rows, tokens and bytes."""
        self._observer.done(done)
        self._flying.get(done.worker, set()).discard(done.shard)
        self._try(lambda: self._count(done))

    def fault(self, fault: Fault, quarantined: bool) -> None:
        """Count a failed attempt."""
        self._observer.fault(fault, quarantined)

        def count() -> None:
            self._metrics["faults"].inc(1, {"kind": fault.kind})
            if quarantined:
                self._metrics["quarantined"].inc(1)

        self._try(count)

    def _gauge(self) -> None:
        self._metrics["in_flight"].set(sum(map(len, self._flying.values())))
        self._metrics["workers"].set(len(self._states))

    def _count(self, done: Done) -> None:
        metrics = self._metrics
        metrics["shards"].inc(1)
        metrics["seconds"].observe(done.seconds)
        amounts = {
            "rows": done.n_rows,
            "bytes": done.n_bytes,
            "nonfinite": done.n_nonfinite,
            "tokens": done.run.get("n_tokens_fed", 0.0),
        }
        for name, amount in amounts.items():
            if amount:  # a counter refuses to add 0
                metrics[name].inc(amount)
        for stage in (*STAGES, "write_s", "turn_wait_s"):
            if (seconds := done.run.get(stage, 0.0)) > 0:
                metrics["stage"].inc(seconds, {"stage": stage.removesuffix("_s")})

    def _try(self, count: Callable[[], None]) -> None:
        """Update metrics; after the first failure, which is logged, none are updated."""
        if self._broken:
            return
        try:
            count()
        except Exception:  # noqa: BLE001 - logged; metrics must not stop a run
            self._broken = True
            LOGGER.exception("Ray's metrics failed: no metrics are updated from now on")


def ray_metrics() -> dict[str, Any]:
    """Return this run's counters, gauges and histogram, registered with Ray."""
    from ray.util.metrics import Counter, Gauge, Histogram

    return {
        "rows": Counter("actlas_rows", "Rows with a receipt."),
        "tokens": Counter("actlas_tokens_fed", "Tokens fed to the model."),
        "bytes": Counter("actlas_bytes", "Bytes stored."),
        "nonfinite": Counter("actlas_nonfinite", "Values that are NaN or infinite."),
        "shards": Counter("actlas_shards", "Shards with a receipt."),
        "quarantined": Counter("actlas_quarantined", "Shards put in quarantine."),
        "faults": Counter("actlas_faults", "Failed attempts.", tag_keys=("kind",)),
        "stage": Counter("actlas_stage_seconds", "Workers' time.", tag_keys=("stage",)),
        "seconds": Histogram("actlas_shard_seconds", "A shard, begun to done.", SECONDS),
        "in_flight": Gauge("actlas_shards_in_flight", "Shards that are with workers."),
        "workers": Gauge("actlas_workers", "Workers, waiting ones included."),
    }
