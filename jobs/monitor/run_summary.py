"""How a run stands, in words: lines for a display and for a log, from its tally."""

from __future__ import annotations

from actlas.jobs.formatting import count, counted, duration, ranges
from actlas.jobs.monitor.run_stats import Tally
from actlas.jobs.scheduler.protocols import STAGES


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
        n_in, n = tally.n_in(), len(tally.workers)
        if n and n_in.get("waiting", 0) == n:
            who = f"{counted(n, 'worker')} {'waits' if n == 1 else 'wait'} for a place"
        else:
            who = f"{n:,} workers load the model" if n > 1 else "loading the model"
        return f"{who}, {duration(tally.seconds())} so far" + troubles(tally)
    return "  ".join(head_parts(tally)) + troubles(tally)


def head_parts(tally: Tally) -> list[str]:
    """Return where a run stands, in parts that may stand on one line or below each other."""
    if tally.first_busy is None:
        return [headline(tally)]
    done = tally.n_rows_before + tally.n_rows_done
    return [
        f"{tally.share():4.0%}  {count(done)} of {count(tally.n_rows)} {tally.rows}",
        *rate_parts(tally),
        _left(tally),
    ]


def _left(tally: Tally) -> str:
    if tally.n_rows_before + tally.n_rows_done >= tally.n_rows:
        return "all done"
    if tally.stopping:
        n = tally.n_in_flight()
        return f"stopping, {counted(n, 'shard')} in flight" if n else "stopping"
    left = tally.seconds_left()
    return "time left unknown" if left is None else f"{duration(left)} left"


def troubles(tally: Tally) -> str:
    """Return retries and quarantine in a few words, or nothing."""
    text = ""
    if retries := sum(tally.faults.values()) - len(tally.quarantined):
        text += f"  {retries} {'retry' if retries == 1 else 'retries'}"
    if tally.quarantined:
        text += f"  in quarantine: {ranges(sorted(tally.quarantined))}"
    return text


def rate_parts(tally: Tally) -> list[str]:
    """Return how fast it goes, now and on average, in rows and in tokens fed.

    Nothing before the first shard is done, and no "now" once all is done or no worker is left.
    """
    if not tally.n_rows_done:
        return []
    if not tally.workers or tally.share() >= 1:
        means = [f"{count(tally.mean_rate())} {tally.rows}/s mean"]
        return [*means, *([f"{count(tally.mean_tokens())} tokens/s"] if tally.n_tokens_fed else [])]
    parts = [f"{count(tally.rate_now())} {tally.rows}/s now, {count(tally.mean_rate())} mean"]
    if tally.n_tokens_fed:
        tokens = f"{count(tally.tokens_now())} tokens/s now, {count(tally.mean_tokens())} mean"
        parts.append(tokens)
    return parts


def states_line(tally: Tally) -> str:
    """Return how many workers are at what, in one line.

    >>> tally = Tally(10, 0, 2)
    >>> tally.on_state("worker 1", "busy", 0); tally.on_state("worker 2", "starting", None)
    >>> states_line(tally)
    '2 workers: 1 busy, 1 starting'
    """
    n = len(tally.workers)
    parts = [f"{n:,} {state}" for state, n in tally.n_in().items()]
    if tally.n_gone:
        parts.append(f"{tally.n_gone:,} ended")
    return counted(n, "worker") + (f": {', '.join(parts)}" if parts else "")


def worker_lines(tally: Tally, limit: int = 8) -> list[str]:
    """Return a line per worker, those that are longest at a shard first; then how many more."""
    now = tally.clock()
    flights = tally.flights()
    lines = [f"{name:<14} shard {n:<10} {duration(s)}" for n, name, s in flights[:limit]]
    others = [(name, at) for name, at in list(tally.workers.items()) if not at.shards]
    for name, at in sorted(others, key=lambda item: item[1].since)[: limit - len(lines)]:
        lines.append(f"{name:<14} {at.state:<16} {duration(now - at.since)}")
    more = len(tally.workers) - len(lines)
    return [*lines, f"and {counted(more, 'more worker')}"] if more > 0 else lines
