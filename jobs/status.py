"""``actlas status``: how far an extraction is, from the store alone, from any machine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
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

BREAK_S = 600.0
"""Receipts further apart than this, and than ten times the median, lie in different runs."""
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
        "last_beat_unix_s": held.snapshot.written_unix_s,
        "run": held.snapshot.plain() if held.alive and held.snapshot.n_rows else None,
        "pooled": others[0] if others else None,
        "derived": [_derived(store, job) for job in derived_jobs(store)],
    }


def _job_status(store: Store, job: str, full: bool) -> dict[str, Any]:
    """Return how far one job is."""
    done = sorted(store.done(job))
    read = done if full or len(done) <= N_SAMPLE else spread(done, N_SAMPLE)
    receipts = [store.receipts(job).read(shard) for shard in read]
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
    """Return how many units of a derived job are done, from the names of its receipts alone."""
    folders = ("receipts", "quarantine")
    done, quarantined = ({*_numbers(store, f"ledger/{f}/{job}")} for f in folders)
    return {"job": job, "done": len(done), "quarantined": sorted(quarantined - done)}


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
    limit = max(BREAK_S, 10 * sorted(gaps)[len(gaps) // 2])
    kept = [(gap, r.stop - r.start) for gap, r in zip(gaps, in_time[1:], strict=True)]
    seconds = sum(gap for gap, _ in kept if gap <= limit)
    rows = sum(n for gap, n in kept if gap <= limit)
    return rows / seconds if seconds > 0 else None


def _lines(status: dict[str, Any], snapshot: Snapshot) -> Iterable[str]:
    pooled = status["pooled"]
    yield status["store"]
    yield from _job_lines(status)
    if pooled is not None:
        yield from _job_lines(pooled)
    for job in status["derived"]:
        out = f", {len(job['quarantined']):,} in quarantine" if job["quarantined"] else ""
        yield f"derived     {printable(job['job'])}: {job['done']:,} done{out}"
    yield from _driver_lines(status, snapshot)
    yield _next(status)


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
    yield f"driver      {who} holds the lease"
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
        yield f"speed       {about}{count(job['rows_per_s'])} {of}/s, from the receipts' times"
    if job["n_nonfinite"]:
        yield f"non-finite  {about}{count(job['n_nonfinite'])} values are NaN or infinite"
    if shards["quarantined"]:
        yield f"quarantine  shards {ranges(shards['quarantined'])}"
        for record in job["quarantine"][:5]:
            yield f"            {record['shard']}: {printable(record['error'])[:200]}"


def _next(status: dict[str, Any]) -> str:
    path = status["store"]
    jobs = [status] if status["pooled"] is None else [status, status["pooled"]]
    if status["complete"]:
        return f"next: {shell('verify', path)}"
    if status["running"]:
        return "next: wait for the driver; this command may be run at any time"
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
    if watch and not as_json:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(Text(words(holding)), console=Console(), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_S)
                holding = look(opened.objects, holding)
                live.update(Text(words(holding), overflow="ellipsis", no_wrap=True), refresh=True)
    while True:
        click.echo(words(holding))
        if not watch:
            return
        time.sleep(WATCH_S)
        holding = look(opened.objects, holding)
