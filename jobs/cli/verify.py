"""``actlas verify``: every receipt against the bytes."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, n_bytes, ranges
from actlas.jobs.logs import NowAndThen
from actlas.store.errors import EXIT_DAMAGE, EXIT_DONE
from actlas.store.verify.verify import Report, open_to_verify
from actlas.store.verify.verify import verify as check


def report_of(report: Report, path: str, seconds: float) -> dict[str, Any]:
    """Return a report as plain values."""
    return {
        "store": path,
        "ok": report.ok,
        "complete": not report.missing and not report.missing_pooled,
        "full": report.full,
        "n_objects": report.n_objects,
        "n_bytes": report.n_bytes,
        "seconds": seconds,
        "missing": list(report.missing),
        "missing_pooled": list(report.missing_pooled),
        "unclaimed": list(report.unclaimed),
        "damages": [dataclasses.asdict(damage) for damage in report.damages],
    }


def _lines(report: Report, path: str, seconds: float) -> list[str]:
    lines = [f"damaged: {damage}" for damage in report.damages]
    if report.missing:
        lines.append(f"not extracted yet: shards {ranges(list(report.missing))}")
    if report.missing_pooled:
        lines.append(f"not pooled yet: shards {ranges(list(report.missing_pooled))}")
    if report.unclaimed:
        lines.append(
            f"{counted(len(report.unclaimed), 'object')} of shards without a receipt: the next "
            "`actlas extract` adopts them"
        )
    what = "every byte" if report.full else "sizes, metadata and receipts"
    checked = (
        f"{what} of {counted(report.n_objects, 'object')}, {n_bytes(report.n_bytes)}, in "
        f"{duration(seconds)}"
    )
    if not report.ok:
        n, strays = len(report.damages), all(damage.stray for damage in report.damages)
        found = counted(n, "finding")
        trust = "; no row is harmed" if strays else ""
        if any(damage.start is not None for damage in report.damages):
            trust = "; the rows named are not to be trusted"
        mend = shell("repair", path, *(["--remove-strays"] if strays else []))
        lines.append(f"damaged: {found}; checked {checked}{trust} -> next: {mend}")
    elif report.missing or report.missing_pooled:
        lines.append(f"whole so far: {checked} -> next: {shell('extract', path)}")
    else:
        then = ("show", path, "--doc", "0") if report.full else ("verify", path, "--full")
        lines.append(f"whole: {checked} -> next: {shell(*then)}")
    return lines


@click.command("verify", short_help="Prove a store against its receipts.")
@click.argument("store")
@click.option(
    "--full",
    is_flag=True,
    help="Read every byte; without it sizes, metadata and receipts.  [default: no]",
)
@json_option
@debug_option
def command(store: str, full: bool, as_json: bool) -> int:
    """Prove STORE: its metadata against the plan, its shards against their receipts.

    Names every damaged, missing, truncated, empty or stray object, with its rows; exits with 4
    where there is one.
    """
    opened = open_to_verify(store)
    began = time.perf_counter()
    say = NowAndThen()
    report = check(
        opened,
        full=full,
        progress=lambda done, of: say(f"{count(done)} of {counted(of, 'object')} checked"),
    )
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(json.dumps(report_of(report, opened.path, seconds)))
    else:
        click.echo("\n".join(_lines(report, opened.path, seconds)))
    return EXIT_DONE if report.ok else EXIT_DAMAGE
