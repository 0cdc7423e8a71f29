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
from actlas.jobs.ledger import Ledger
from actlas.pipeline.options import RunOptions
from actlas.store import lease
from actlas.store.receipts import POOLED
from actlas.store.schema import Receipt
from actlas.store.store import Store, open_store

BREAK_S = 600.0
"""Receipts further apart than this, and than ten times the median, lie in different runs."""


def status_of(store: Store) -> dict[str, Any]:
    """Return a run's state as plain values, read from receipts, quarantine and lease.

    The numbers are of tokens' rows, with those of pooled ones under ``pooled``; in a store that has
    pooled rows alone they are of these, and ``of`` is ``documents``.
    """
    main, *others = (_job_status(store, job) for job in store.jobs)
    held = lease.holder(store.objects)
    if held is None:
        main["seconds_left"] = None
    return {
        "store": store.path,
        **main,
        "complete": all(job["complete"] for job in (main, *others)),
        "running": held is not None,
        "holder": held,
        "pooled": others[0] if others else None,
    }


def _job_status(store: Store, job: str) -> dict[str, Any]:
    """Return how far one job is."""
    done = sorted(store.done(job))
    receipts = [store.receipts(job).read(shard) for shard in done]
    quarantined = Ledger(store.objects, job, RunOptions()).quarantined()
    n_shards, plan = store.n_shards(job), store.plan
    n_all = plan.n_documents if job == POOLED else plan.n_tokens
    n_rows = sum(receipt.stop - receipt.start for receipt in receipts)
    rate = rows_per_s(receipts)
    return {
        "complete": len(done) == n_shards,
        "of": "documents" if job == POOLED else "rows",
        "shards": {
            "all": n_shards,
            "done": len(done),
            "missing": n_shards - len(done) - len(set(quarantined) - set(done)),
            "quarantined": sorted(set(quarantined) - set(done)),
        },
        "rows": {"all": n_all, "done": n_rows},
        "n_bytes": sum(record.n_bytes for receipt in receipts for record in receipt.objects),
        "n_nonfinite": sum(sum(receipt.n_nonfinite.values()) for receipt in receipts),
        "rows_per_s": rate,
        "seconds_left": (n_all - n_rows) / rate if rate else None,
        "newest_receipt_unix_s": max((r.created_unix_s for r in receipts), default=None),
        "quarantine": [
            {"shard": q.shard, "faults": q.faults, "error": q.error}
            for q in quarantined.values()
            if q.shard not in set(done)
        ],
    }


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


def _lines(status: dict[str, Any]) -> Iterable[str]:
    pooled = status["pooled"]
    yield status["store"]
    yield from _job_lines(status)
    if pooled is not None:
        yield from _job_lines(pooled)
    if status["running"]:
        holder = status["holder"]
        yield f"driver      process {holder.get('pid')} on {holder.get('host')} holds the lease"
        if status["seconds_left"]:
            yield f"left        about {duration(status['seconds_left'])}"
    else:
        jobs = (status, pooled) if pooled is not None else (status,)
        newest = max((job["newest_receipt_unix_s"] or 0 for job in jobs), default=0)
        ago = f"; last receipt {duration(time.time() - newest)} ago" if newest else ""
        yield f"driver      none{ago}"
    yield _next(status)


def _job_lines(job: dict[str, Any]) -> Iterable[str]:
    """Yield how far one job is, and what went wrong."""
    shards, rows, of = job["shards"], job["rows"], job["of"]
    share = rows["done"] / rows["all"]
    name = "rows" if of == "rows" else "pooled"
    yield f"{name:<12}{count(rows['done'])} of {count(rows['all'])}" + (
        f" ({share:.1%})" if of == "rows" else f" documents ({share:.1%})"
    )
    waiting = f", {shards['missing']:,} to do" if shards["missing"] else ""
    yield f"shards      {shards['done']:,} of {shards['all']:,} done{waiting}"
    yield f"stored      {n_bytes(job['n_bytes'])}"
    if job["rows_per_s"]:
        yield f"speed       {count(job['rows_per_s'])} {of}/s, from the receipts' times"
    if job["n_nonfinite"]:
        yield f"non-finite  {count(job['n_nonfinite'])} values are NaN or infinite"
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
@json_option
@debug_option
def command(store: str, as_json: bool) -> None:
    """Say how far the extraction of STORE is: from its receipts alone, during a run and after."""
    status = status_of(open_store(store))
    click.echo(json.dumps(status) if as_json else "\n".join(_lines(status)))
