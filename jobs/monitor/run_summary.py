"""Lines about the statistics of a run, for a display and for a log."""

from __future__ import annotations

from actlas.jobs.formatting import count, counted, duration, ranges
from actlas.jobs.monitor.run_stats import RunStats
from actlas.jobs.scheduler.protocols import STAGES


def stage_line(stats: RunStats) -> str | None:
    """Return one line with the workers' time by stage; None if it was not measured."""
    if not stats.stages["forward_s"]:
        return None
    whole = stats.seconds_made() * max(1, len(stats.makers))
    shares = {words: stats.stages[stage] / whole for stage, words in STAGES.items()}
    rest = max(0.0, 1 - sum(shares.values()))
    parts = [f"{words} {share:.1%}" for words, share in {**shares, "other": rest}.items()]
    padding = 1 - stats.n_tokens_fed / stats.n_tokens_padded if stats.n_tokens_padded else 0.0
    return (
        f"time: {', '.join(parts)}; writing overlapped with compute "
        f"({stats.stages['write_s'] / whole:.1%} of the time); "
        f"{padding:.1%} of the computed tokens were padding"
    )


def headline(stats: RunStats) -> str:
    """Return the progress of a run in one line."""
    if stats.first_busy is None:
        n_in, n = stats.n_in(), len(stats.workers)
        if n and n_in.get("waiting", 0) == n:
            state = f"{counted(n, 'worker')} waiting for a machine"
        else:
            state = f"{n:,} workers loading the model" if n > 1 else "loading the model"
        return f"{state}, {duration(stats.seconds())} so far" + troubles(stats)
    return "  ".join(head_parts(stats)) + troubles(stats)


def head_parts(stats: RunStats) -> list[str]:
    """Return the progress of a run in parts, to be laid out on one or more lines."""
    if stats.first_busy is None:
        return [headline(stats)]
    done = stats.n_rows_before + stats.n_rows_done
    rows = counted(stats.n_rows, stats.rows.removesuffix("s"))
    return [
        f"{stats.share():4.0%}  {count(done)} of {rows}",
        *rate_parts(stats),
        _left(stats),
    ]


def _left(stats: RunStats) -> str:
    if stats.n_rows_before + stats.n_rows_done >= stats.n_rows:
        return "all done"
    if stats.stopping:
        n = stats.n_in_flight()
        return f"stopping, {counted(n, 'shard')} in flight" if n else "stopping"
    left = stats.seconds_left()
    return "time left unknown" if left is None else f"{duration(left)} left"


def troubles(stats: RunStats) -> str:
    """Return the number of retries and the quarantine; empty without any."""
    text = ""
    if retries := sum(stats.faults.values()) - len(stats.quarantined):
        text += f"  {counted(retries, 'retry')}"
    if stats.quarantined:
        text += f"  in quarantine: {ranges(sorted(stats.quarantined))}"
    return text


def rate_parts(stats: RunStats) -> list[str]:
    """Return the current and mean rates in rows and in tokens.

    The list is empty before the first shard is done, and has no current rates once all is done or
    no worker is left.
    """
    if not stats.n_rows_done:
        return []
    if not stats.workers or stats.share() >= 1:
        means = [f"{count(stats.mean_rate())} {stats.rows}/s mean"]
        return [*means, *([f"{count(stats.mean_tokens())} tokens/s"] if stats.n_tokens_fed else [])]
    parts = [f"{count(stats.rate_now())} {stats.rows}/s now, {count(stats.mean_rate())} mean"]
    if stats.n_tokens_fed:
        tokens = f"{count(stats.tokens_now())} tokens/s now, {count(stats.mean_tokens())} mean"
        parts.append(tokens)
    return parts


def states_line(stats: RunStats) -> str:
    """Return the number of workers by state in one line.

    >>> stats = RunStats(10, 0, 2)
    >>> stats.on_state("worker 1", "busy", 0); stats.on_state("worker 2", "starting", None)
    >>> states_line(stats)
    '2 workers: 1 busy, 1 starting'
    """
    n = len(stats.workers)
    parts = [f"{n:,} {state}" for state, n in stats.n_in().items()]
    if stats.n_gone:
        parts.append(f"{stats.n_gone:,} ended")
    return counted(n, "worker") + (f": {', '.join(parts)}" if parts else "")


def worker_lines(stats: RunStats, limit: int = 8) -> list[str]:
    """Return a line per worker, the longest with a shard first, and the number of the others."""
    now = stats.clock()
    flights = stats.in_flight()
    lines = [f"{name:<14} shard {n:<10} {duration(s)}" for n, name, s in flights[:limit]]
    others = [(name, at) for name, at in list(stats.workers.items()) if not at.shards]
    for name, at in sorted(others, key=lambda item: item[1].since)[: limit - len(lines)]:
        lines.append(f"{name:<14} {at.state:<16} {duration(now - at.since)}")
    more = len(stats.workers) - len(lines)
    return [*lines, f"and {counted(more, 'more worker')}"] if more > 0 else lines
