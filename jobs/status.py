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
from actlas.store.receipts import EXTRACT
from actlas.store.schema import Receipt
from actlas.store.store import Store, open_store

BREAK_S = 600.0
"""Receipts further apart than this, and than ten times the median, lie in different runs."""


def status_of(store: Store) -> dict[str, Any]:
    """Return a run's state as plain values, read from receipts, quarantine and lease."""
    done = sorted(store.done())
    receipts = [store.receipts().read(shard) for shard in done]
    quarantined = Ledger(store.objects, EXTRACT, RunOptions()).quarantined()
    plan = store.plan
    n_rows = sum(receipt.stop - receipt.start for receipt in receipts)
    rate = rows_per_s(receipts)
    held = lease.holder(store.objects)
    left = plan.n_tokens - n_rows
    return {
        "store": store.path,
        "complete": len(done) == plan.n_shards,
        "shards": {
            "all": plan.n_shards,
            "done": len(done),
            "missing": plan.n_shards - len(done) - len(set(quarantined) - set(done)),
            "quarantined": sorted(set(quarantined) - set(done)),
        },
        "rows": {"all": plan.n_tokens, "done": n_rows},
        "n_bytes": sum(record.n_bytes for receipt in receipts for record in receipt.objects),
        "n_nonfinite": sum(sum(receipt.n_nonfinite.values()) for receipt in receipts),
        "rows_per_s": rate,
        "seconds_left": left / rate if rate and held is not None else None,
        "newest_receipt_unix_s": max((r.created_unix_s for r in receipts), default=None),
        "running": held is not None,
        "holder": held,
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
    shards, rows = status["shards"], status["rows"]
    yield status["store"]
    share = rows["done"] / rows["all"]
    yield f"rows        {count(rows['done'])} of {count(rows['all'])} ({share:.1%})"
    waiting = f", {shards['missing']:,} to do" if shards["missing"] else ""
    yield f"shards      {shards['done']:,} of {shards['all']:,} done{waiting}"
    yield f"stored      {n_bytes(status['n_bytes'])}"
    if status["rows_per_s"]:
        yield f"speed       {count(status['rows_per_s'])} rows/s, from the receipts' times"
    if status["running"]:
        holder = status["holder"]
        yield f"driver      process {holder.get('pid')} on {holder.get('host')} holds the lease"
        if status["seconds_left"] is not None:
            yield f"left        about {duration(status['seconds_left'])}"
    else:
        newest = status["newest_receipt_unix_s"]
        ago = "" if newest is None else f"; last receipt {duration(time.time() - newest)} ago"
        yield f"driver      none{ago}"
    if status["n_nonfinite"]:
        yield f"non-finite  {count(status['n_nonfinite'])} values are NaN or infinite"
    if shards["quarantined"]:
        yield f"quarantine  shards {ranges(shards['quarantined'])}"
        for record in status["quarantine"][:5]:
            yield f"            {record['shard']}: {printable(record['error'])[:200]}"
    yield _next(status)


def _next(status: dict[str, Any]) -> str:
    path, shards = status["store"], status["shards"]
    if status["complete"]:
        return f"next: {shell('verify', path)}"
    if status["running"]:
        return "next: wait for the driver; this command may be run at any time"
    if not shards["missing"]:
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
