"""``actlas verify``: check a store's files against its plan and receipts."""

from __future__ import annotations

import time

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, n_bytes, ranges
from actlas.jobs.logs import NowAndThen
from actlas.jobs.run.reports.checks import VerifyReport
from actlas.store.errors import EXIT_DAMAGE, EXIT_DONE
from actlas.store.verify.verify import Report, open_to_verify
from actlas.store.verify.verify import verify as check


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
        lines.append(_damaged(report, path, checked))
    elif report.missing or report.missing_pooled:
        lines.append(f"whole so far: {checked} -> next: {shell('extract', path)}")
    else:
        then = ("show", path, "--doc", "0") if report.full else ("verify", path, "--full")
        lines.append(f"whole: {checked} -> next: {shell(*then)}")
    return lines


def _damaged(report: Report, path: str, checked: str) -> str:
    """Return the last line of a report with damage: its extent and the command to repair it."""
    orphans = all(damage.orphan for damage in report.damages)
    extent = "; no row is affected" if orphans else ""
    if any(damage.start is not None for damage in report.damages):
        extent = "; the rows named are not reliable"
    repair = shell("repair", path, *(["--remove-orphans"] if orphans else []))
    found = counted(len(report.damages), "finding")
    return f"damaged: {found}; checked {checked}{extent} -> next: {repair}"


@click.command("verify", short_help="Check a store's files against its plan and receipts.")
@click.argument("store")
@click.option(
    "--full",
    is_flag=True,
    help="Read every byte and check its checksum, not only sizes, metadata and receipts.  "
    "[default: no]",
)
@json_option
@debug_option
def command(store: str, full: bool, as_json: bool) -> int:
    """Check STORE: its metadata against the plan, its shards against their receipts.

    Lists every damaged, missing, truncated, empty or orphaned object with its rows; the exit code
    is 4 if there is any.
    """
    opened = open_to_verify(store)
    began = time.perf_counter()
    progress = NowAndThen()
    report = check(
        opened,
        full=full,
        progress=lambda done, of: progress(f"{count(done)} of {counted(of, 'object')} checked"),
    )
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(VerifyReport.of(report, opened.path, seconds).to_json())
    else:
        click.echo("\n".join(_lines(report, opened.path, seconds)))
    return EXIT_DONE if report.ok else EXIT_DAMAGE
