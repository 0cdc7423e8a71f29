"""What a run has done so far, in numbers and in words."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from actlas.jobs.executors import Done
from actlas.jobs.formatting import count, duration, ranges
from actlas.jobs.ledger import Fault

STAGES = {
    "forward_s": "forward pass",
    "gather_s": "gathering",
    "input_s": "waiting for input",
    "copy_wait_s": "waiting for copies",
    "write_wait_s": "waiting for writes",
}
"""What a worker that computes does with its time, one after the other."""

NOW_S = 30.0
"""The window over which "now" is a mean."""


@dataclass(slots=True)
class Tally:
    """The numbers of a run, from the events of its executor.

    Attributes
    ----------
    n_rows : int
        Rows of the whole store.
    n_rows_before : int
        Of those, the ones done when this run began.
    """

    n_rows: int
    n_rows_before: int
    n_shards: int
    rows: str = "rows"
    """What its rows are, for a person: rows, or documents."""
    clock: Callable[[], float] = time.monotonic
    started: float = 0.0
    n_rows_done: int = 0
    n_shards_done: int = 0
    n_bytes: int = 0
    n_nonfinite: int = 0
    n_tokens_fed: float = 0.0
    n_tokens_padded: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    makers: set[str] = field(default_factory=set)
    bare_tokens_per_s: dict[str, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    quarantined: list[int] = field(default_factory=list)
    workers: dict[str, tuple[str, int | None, float]] = field(default_factory=dict)
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    first_busy: float | None = None
    last_done: float | None = None

    def __post_init__(self) -> None:
        self.started = self.clock()

    def on_state(self, worker: str, state: str, shard: int | None) -> None:
        """Keep what a worker is at, and since when."""
        now = self.clock()
        if state == "busy" and self.first_busy is None:
            self.first_busy = now
        if state == "gone":
            self.workers.pop(worker, None)
        else:
            self.workers[worker] = (state, shard, now)

    def on_done(self, done: Done) -> None:
        """Add a finished shard."""
        self.n_rows_done += done.n_rows
        self.n_shards_done += 1
        self.n_bytes += done.n_bytes
        self.n_nonfinite += done.n_nonfinite
        fed = done.run.get("n_tokens_fed", 0.0)
        self.n_tokens_fed += fed
        self.n_tokens_padded += fed / (1 - done.run.get("padding_share", 0.0))
        for stage in (*STAGES, "write_s"):
            self.stages[stage] += done.run.get(stage, 0.0)
        self.makers.add(done.worker)
        if done.bare_tokens_per_s is not None:
            self.bare_tokens_per_s[done.worker] = done.bare_tokens_per_s
        now = self.last_done = self.clock()
        self.recent.append((now, done.n_rows))
        while self.recent and now - self.recent[0][0] > NOW_S:
            self.recent.popleft()

    def on_fault(self, fault: Fault, quarantined: bool) -> None:
        """Count a failed attempt."""
        self.faults[fault.kind] += 1
        if quarantined and fault.shard is not None:
            self.quarantined.append(fault.shard)

    def seconds(self) -> float:
        """Return the time since the first shard was begun."""
        since = self.started if self.first_busy is None else self.first_busy
        return max(1e-9, self.clock() - since)

    def seconds_made(self) -> float:
        """Return the time from the first shard begun to the last one done."""
        if self.last_done is None or self.first_busy is None:
            return self.seconds()
        return max(1e-9, self.last_done - self.first_busy)

    def mean_rate(self) -> float:
        """Return this run's rows per second, from the first shard begun to the last one done."""
        return self.n_rows_done / self.seconds_made() if self.n_rows_done else 0.0

    def share_of_bare(self) -> float | None:
        """Return the run's tokens per second over those of its workers' bare forward passes.

        From the first shard begun to the last one done, so waiting and writing count. None where
        a worker that made rows was not measured.
        """
        bare = sum(self.bare_tokens_per_s.values())
        if not bare or self.makers - set(self.bare_tokens_per_s):
            return None
        return self.n_tokens_fed / self.seconds_made() / bare

    def rate_now(self) -> float:
        """Return rows per second over the last half minute."""
        window = min(NOW_S, self.seconds())
        since = self.clock() - window
        rows = sum(rows for when, rows in self.recent if when >= since)
        return rows / window

    def share(self) -> float:
        """Return the share of the store's rows that is done."""
        return (self.n_rows_before + self.n_rows_done) / self.n_rows

    def seconds_left(self) -> float | None:
        """Return an estimate, or None before there is anything to estimate from."""
        rate = self.mean_rate()
        left = self.n_rows - self.n_rows_before - self.n_rows_done
        return left / rate if rate > 0 else None


def stage_line(tally: Tally) -> str | None:
    """Return where the workers' time went, in one line; None where they did not say."""
    if not tally.stages["forward_s"]:
        return None
    whole = tally.seconds_made() * max(1, len(tally.makers))
    shares = {words: tally.stages[stage] / whole for stage, words in STAGES.items()}
    rest = max(0.0, 1 - sum(shares.values()))
    parts = [f"{words} {share:.1%}" for words, share in {**shares, "other": rest}.items()]
    padding = 1 - tally.n_tokens_fed / tally.n_tokens_padded if tally.n_tokens_padded else 0.0
    return (
        f"time: {', '.join(parts)}; writing took {tally.stages['write_s'] / whole:.1%} beside; "
        f"{padding:.1%} of the computed tokens were padding"
    )


def headline(tally: Tally) -> str:
    """Return one line on where a run stands."""
    if tally.first_busy is None:
        who = f"{len(tally.workers)} workers load" if len(tally.workers) > 1 else "loading"
        return f"{who} the model, {duration(tally.seconds())} so far" + troubles(tally)
    done = tally.n_rows_before + tally.n_rows_done
    left = tally.seconds_left()
    parts = [
        f"{tally.share():4.0%}",
        f"{count(done)} of {count(tally.n_rows)} {tally.rows}",
        f"{count(tally.rate_now())} {tally.rows}/s now, {count(tally.mean_rate())} mean",
        "time left unknown" if left is None else f"{duration(left)} left" if left else "all done",
    ]
    return "  ".join(parts) + troubles(tally)


def troubles(tally: Tally) -> str:
    """Return retries and quarantine in a few words, or nothing."""
    text = ""
    retries = sum(tally.faults.values()) - len(tally.quarantined)
    if retries:
        text += f"  {retries} {'retry' if retries == 1 else 'retries'}"
    if tally.quarantined:
        text += f"  in quarantine: {ranges(sorted(tally.quarantined))}"
    return text


def worker_lines(tally: Tally, limit: int = 8) -> list[str]:
    """Return a line per worker: what it is at, and for how long."""
    now = tally.clock()
    lines = []
    for name, (state, shard, since) in sorted(tally.workers.items())[:limit]:
        at = f"shard {shard}" if shard is not None else state
        lines.append(f"{name:<12} {at:<14} {duration(now - since)}")
    more = len(tally.workers) - limit
    return [*lines, f"and {more} more workers"] if more > 0 else lines
