"""``actlas status``: how far an extraction is, from the store alone, from any machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from actlas.jobs.flags import debug_option, json_option
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, duration, n_bytes, printable, ranges
from actlas.jobs.holding import Holding, look
from actlas.jobs.ledger import Ledger
from actlas.jobs.snapshot import Snapshot
from actlas.pipeline.options import RunOptions
from actlas.store.receipts import EXTRACT, POOLED
from actlas.store.schema import Receipt
from actlas.store.store import Store, open_store

BREAK_S, N_GAPS, N_SURE = 10.0, 10, 32
"""Receipts further apart than ``BREAK_S`` and three of the longest shards, and than ``N_GAPS`` of
the median, lie in different runs. A speed from fewer than ``N_SURE`` receipts is a rough one."""
N_SAMPLE = 512
"""Of more receipts than these only so many are read, evenly spread."""
WATCH_S = 2.0


def status_of(
    store: Store, *, full: bool = False, holding: Holding | None = None
) -> dict[str, Any]:
    """Return a run's state as plain values, read from receipts, quarantine and lease.

    The numbers are of tokens' rows, with those of pooled ones under ``pooled``; in a store that has
    pooled rows alone they are of these, and ``of`` is ``documents``. Where more than ``N_SAMPLE``
    receipts are there, bytes and rates are estimates from a sample of them, and ``estimated`` is
    true, unless ``full``.
    """
    main, *others = (_job_status(store, job, full) for job in store.jobs)
    held = holding or look(store.objects)
    if held.holder is None:
        main["seconds_left"] = None
    return {
        "store": store.path,
        **main,
        "complete": all(job["complete"] for job in (main, *others)),
        "running": held.alive,
        "holder": held.holder,
        "perhaps_dead": held.holder is not None and not held.alive,
        "last_beat_unix_s": held.snapshot.written_unix_s or None,
        "run": held.snapshot.plain() if held.alive and held.snapshot.n_rows else None,
        "pooled": others[0] if others else None,
        "derived": [_derived(store, job) for job in derived_jobs(store)],
    }


def _job_status(store: Store, job: str, full: bool) -> dict[str, Any]:
    """Return how far one job is."""
    done = sorted(store.done(job))
    read = done if full or len(done) <= N_SAMPLE else spread(done, N_SAMPLE)
    receipts = [*store.receipts(job).read_many(read)]
    scale = len(done) / len(read) if read else 1.0
    quarantined = Ledger(store.objects, job, RunOptions()).quarantined()
    n_shards, plan = store.n_shards(job), store.plan
    n_all = plan.n_documents if job == POOLED else plan.n_tokens
    n_rows = sum(stop - start for start, stop in (store.covered(shard, job) for shard in done))
    rate = rows_per_s(receipts)
    if rate is not None:  # between two receipts of a sample lie those that were not read
        rate *= scale
    kept_out = sorted(set(quarantined) - set(done))
    return {
        "complete": len(done) == n_shards,
        "of": "documents" if job == POOLED else "rows",
        "estimated": len(read) < len(done),
        "shards": {
            "all": n_shards,
            "done": len(done),
            "missing": n_shards - len(done) - len(kept_out),
            "quarantined": kept_out,
        },
        "rows": {"all": n_all, "done": n_rows},
        "n_bytes": round(scale * sum(record.n_bytes for r in receipts for record in r.objects)),
        "n_nonfinite": round(scale * sum(sum(r.n_nonfinite.values()) for r in receipts)),
        "rows_per_s": rate,
        "seconds_left": (n_all - n_rows) / rate if rate else None,
        "newest_receipt_unix_s": max((r.created_unix_s for r in receipts), default=None),
        "quarantine": [
            {"shard": shard, "faults": quarantined[shard].faults, "error": quarantined[shard].error}
            for shard in kept_out
        ],
    }


def spread(shards: list[int], n: int) -> list[int]:
    """Return ``n`` of ascending shards, evenly spread, the first and the last among them.

    >>> spread([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    return [shards[i * (len(shards) - 1) // (n - 1)] for i in range(n)]


def derived_jobs(store: Store) -> list[str]:
    """Return the jobs made from rows that have receipts or a quarantine: ``encode.sae``, ..."""
    found = {*store.objects.names("ledger/receipts"), *store.objects.names("ledger/quarantine")}
    return sorted(found - {EXTRACT, POOLED})


def _derived(store: Store, job: str) -> dict[str, Any]:
    """Return how many units of a derived job are done, from the names of its receipts alone.

    Encoding has as many as extraction has shards. How many blocks an index will have is not known
    (``all`` is None) before the table over all of them is written, last.
    """
    done = {*_numbers(store, f"ledger/receipts/{job}")}
    quarantined = {*_numbers(store, f"ledger/quarantine/{job}")}
    kind, _, name = job.partition(".")
    n_all: int | None = 1
    if kind == "encode":
        n_all = store.plan.n_shards
    elif kind == "index":
        n_all = len(done) if [*_numbers(store, f"ledger/receipts/indexed.{name}")] else None
    return {
        "job": job,
        "all": n_all,
        "done": len(done),
        "complete": n_all is not None and len(done) >= n_all,
        "quarantined": sorted(quarantined - done),
    }


def _numbers(store: Store, folder: str) -> Iterable[int]:
    for name in store.objects.names(folder):
        stem, _, end = name.partition(".")
        if end == "json" and len(stem) == 8 and stem.isascii() and stem.isdigit():
            yield int(stem)


def rows_per_s(receipts: Iterable[Receipt]) -> float | None:
    """Return rows per second between receipts, breaks between runs left out; None below two."""
    in_time = sorted(receipts, key=lambda receipt: receipt.created_unix_s)
    gaps = [b.created_unix_s - a.created_unix_s for a, b in itertools.pairwise(in_time)]
    if not gaps:
        return None
    longest = max(_seconds(receipt) for receipt in in_time)
    limit = max(BREAK_S, 3 * longest, N_GAPS * sorted(gaps)[len(gaps) // 2])
    kept = [(gap, r.stop - r.start) for gap, r in zip(gaps, in_time[1:], strict=True)]
    seconds = sum(gap for gap, _ in kept if gap <= limit)
    rows = sum(n for gap, n in kept if gap <= limit)
    return rows / seconds if seconds > 0 else None


def _seconds(receipt: Receipt) -> float:
    """Return how long a shard was computed and written; a stranger's receipt may say anything."""
    values = (receipt.run.get(name) for name in ("compute_s", "write_s"))
    return sum(v for v in values if isinstance(v, int | float) and 0 <= v < math.inf)


def _lines(status: dict[str, Any], snapshot: Snapshot) -> Iterable[str]:
    pooled = status["pooled"]
    yield status["store"]
    told = status["running"] and snapshot.number("rows_per_s") > 0  # by the driver, and better
    for job in (status, pooled) if pooled is not None else (status,):
        yield from _job_lines(job | {"rows_per_s": None} if told else job)
    for job in status["derived"]:
        yield f"derived     {_derived_words(status['store'], job)}"
    yield from _driver_lines(status, snapshot)
    yield _next(status)


def _derived_words(path: str, job: dict[str, Any]) -> str:
    """Return how far a derived job is, and what goes on with it."""
    kind, _, name = job["job"].partition(".")
    units = {"encode": "shards", "index": "blocks"}.get(kind, "tables")
    of = f" of {job['all']:,}" if job["all"] is not None else ""
    words = f"{printable(job['job'])}: {job['done']:,}{of} {units}"
    if job["quarantined"]:
        words += f", in quarantine: {ranges(job['quarantined'])}"
    if not job["complete"] and kind in ("encode", "index"):
        words += f" -> {shell('sae', kind, path, '--sae', printable(name))}"
    return words


def _driver_lines(status: dict[str, Any], snapshot: Snapshot) -> Iterable[str]:
    """Yield who works on it, and what its run is at."""
    holder = status["holder"]
    if holder is None:
        jobs = (status, status["pooled"]) if status["pooled"] is not None else (status,)
        newest = max((job["newest_receipt_unix_s"] or 0 for job in jobs), default=0)
        ago = f"; last receipt {duration(time.time() - newest)} ago" if newest else ""
        yield f"driver      none{ago}"
        return
    who = printable(f"process {holder.get('pid')} on {holder.get('host')}")
    if status["perhaps_dead"]:
        beat = status["last_beat_unix_s"]
        last = f"{duration(max(0.0, time.time() - beat))} ago by its clock" if beat else "unknown"
        yield f"driver      {who}: perhaps dead: last beat {last}; a new run takes over after 60 s"
        return
    at = ", stopping: it finishes the shards in flight" if snapshot.stopping else ""
    yield f"driver      {who} holds the lease{at}"
    if snapshot.n_rows:
        yield from snapshot.lines()
    elif status["seconds_left"]:
        yield f"left        about {duration(status['seconds_left'])}"


def _job_lines(job: dict[str, Any]) -> Iterable[str]:
    """Yield how far one job is, and what went wrong."""
    shards, rows, of = job["shards"], job["rows"], job["of"]
    about = "about " if job["estimated"] else ""
    share = rows["done"] / rows["all"] if rows["all"] else 1.0
    name = "rows" if of == "rows" else "pooled"
    yield f"{name:<12}{count(rows['done'])} of {count(rows['all'])}" + (
        f" ({share:.1%})" if of == "rows" else f" documents ({share:.1%})"
    )
    waiting = f", {shards['missing']:,} to do" if shards["missing"] else ""
    yield f"shards      {shards['done']:,} of {shards['all']:,} done{waiting}"
    yield f"stored      {about}{n_bytes(job['n_bytes'])}"
    if job["rows_per_s"]:
        rough = "about " if job["shards"]["done"] < N_SURE else about
        yield f"speed       {rough}{count(job['rows_per_s'])} {of}/s, from the receipts' times"
    if job["n_nonfinite"]:
        yield f"non-finite  {about}{count(job['n_nonfinite'])} values are NaN or infinite"
    if shards["quarantined"]:
        yield f"quarantine  shards {ranges(shards['quarantined'])}"
        for record in job["quarantine"][:5]:
            yield f"            {record['shard']}: {printable(record['error'])[:200]}"


def _next(status: dict[str, Any]) -> str:
    path = status["store"]
    jobs = [status] if status["pooled"] is None else [status, status["pooled"]]
    if status["running"]:
        return "next: wait for the driver; this command may be run at any time"
    if status["complete"]:
        return f"next: {shell('verify', path)}"
    if not any(job["shards"]["missing"] for job in jobs):
        return f"next: {shell('extract', path, '--retry-quarantined')}"
    return f"next: {shell('extract', path)}"


@click.command("status", short_help="How far an extraction is.")
@click.argument("store")
@click.option("--watch", is_flag=True, help="Show it anew every 2 s, until Ctrl-C.  [default: no]")
@click.option("--full", is_flag=True, help="Read every receipt, not a sample.  [default: no]")
@json_option
@debug_option
def command(store: str, watch: bool, full: bool, as_json: bool) -> None:
    """Say how far the extraction of STORE is: from its receipts, and its driver's last beat.

    It works during a run and after, from any machine that reads the store. The exit code is 0 for
    every store that can be read.
    """
    opened = open_store(store)

    def words(holding: Holding) -> str:
        status = status_of(opened, full=full, holding=holding)
        return json.dumps(status) if as_json else "\n".join(_lines(status, holding.snapshot))

    holding = look(opened.objects)
    if not watch:
        click.echo(words(holding))
        return
    with contextlib.suppress(KeyboardInterrupt), _screen(lines=as_json) as show:
        while True:
            show(words(holding))
            time.sleep(WATCH_S)
            holding = look(opened.objects, holding)


@contextlib.contextmanager
def _screen(*, lines: bool) -> Iterator[Callable[[str], None]]:
    """Yield what shows a text in the place of the one before; below it where that cannot be."""
    from rich.console import Console

    console = Console()
    if lines or not console.is_terminal or console.is_dumb_terminal:
        yield click.echo
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as live:
        yield lambda text: live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)
