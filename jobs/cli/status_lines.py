"""How far an extraction is, in words: what ``actlas status`` prints."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, n_bytes, printable, ranges
from actlas.jobs.monitor.heartbeat import Snapshot
from actlas.store.ledger import lease_holder

N_SURE = 32
"""A speed from fewer receipts than these is a rough one."""


def lines(status: dict[str, Any], snapshot: Snapshot) -> Iterable[str]:
    """Yield lines of text for what ``status_of`` found and for the driver's heartbeat."""
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
    kind = job["job"].partition(".")[0]
    unit = {"encode": "shard", "index": "block"}.get(kind, "table")
    n_all = job["done"] if job["all"] is None else job["all"]
    of = f"{job['done']:,} of " if job["all"] is not None else ""
    words = f"{printable(job['job'])}: {of}{counted(n_all, unit)}"
    if job["quarantined"]:
        words += f", in quarantine: {ranges(job['quarantined'])}"
    goes_on = _goes_on(path, job)
    return words if goes_on is None else f"{words} -> {goes_on}"


def _goes_on(path: str, job: dict[str, Any]) -> str | None:
    """Return the command that goes on with a derived job; None where there is nothing to do."""
    kind, _, name = job["job"].partition(".")
    if job["complete"] or kind not in ("encode", "index"):
        return None
    tried = job["done"] + len(job["quarantined"])
    stuck = job["quarantined"] and job["all"] is not None and tried >= job["all"]
    again = ["--retry-quarantined"] if stuck else []
    return shell("sae", kind, path, "--sae", printable(name), *again)


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
        last = _last_heard(status)
        yield f"driver      {who}: perhaps dead: {last}; a new run takes over after 60 s"
        return
    at = ", stopping: it finishes the shards in flight" if snapshot.stopping else ""
    heard = "" if lease_holder.is_local(holder) else f"; {_last_heard(status)}"
    yield f"driver      {who} holds the lease{at}{heard}"
    if snapshot.n_rows:
        yield from snapshot.lines()
    elif status["seconds_left"]:
        yield f"left        about {duration(status['seconds_left'])}"


def _last_heard(status: dict[str, Any]) -> str:
    """Say when a driver of another machine was heard of: by our clock only if we saw it beat."""
    if status["last_heard_s"] is not None:
        return f"last heard {duration(status['last_heard_s'])} ago"
    if status["last_beat_unix_s"]:
        ago = max(0.0, time.time() - status["last_beat_unix_s"])
        return f"last beat {duration(ago)} ago by its clock"
    return "no beat of it yet"


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
        noun = "shard" if len(shards["quarantined"]) == 1 else "shards"
        yield f"quarantine  {noun} {ranges(shards['quarantined'])}"
        for record in job["quarantine"][:5]:
            yield f"            {record['shard']}: {printable(record['error'])[:200]}"


def _next(status: dict[str, Any]) -> str:
    path = status["store"]
    jobs = [status] if status["pooled"] is None else [status, status["pooled"]]
    if status["running"]:
        return "next: wait for the driver; this command may be run at any time"
    if status["complete"]:
        goes_on = (_goes_on(path, job) for job in status["derived"])
        return f"next: {next(filter(None, goes_on), shell('verify', path))}"
    if not any(job["shards"]["missing"] for job in jobs):
        return f"next: {shell('extract', path, '--retry-quarantined')}"
    return f"next: {shell('extract', path)}"
