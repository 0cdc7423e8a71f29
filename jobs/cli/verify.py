"""``actlas verify``: check a store's files against its plan and receipts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, n_bytes, numbered
from actlas.jobs.logs import NowAndThen
from actlas.jobs.run.reports.checks import VerifyReport
from actlas.jobs.terminal import echo
from actlas.store.errors import EXIT_DAMAGE, EXIT_DONE, MaskError
from actlas.store.verify.damage import Damage
from actlas.store.verify.verify import Report, open_to_verify
from actlas.store.verify.verify import verify as check


def _lines(report: Report, path: str, seconds: float) -> list[str]:
    lines = [f"damaged: {damage}" for damage in report.damages]
    if report.missing:
        lines.append(f"not extracted yet: {numbered(list(report.missing), 'shard')}")
    if report.missing_pooled:
        lines.append(f"not pooled yet: {numbered(list(report.missing_pooled), 'shard')}")
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


def _verify_files(path: Path) -> tuple[Report, str, bool] | None:
    """Check an autoencoder's, a training's or a mask's files; None for any other path.

    Returns the report, what was checked, and whether the training is finished.
    """
    if not path.exists() or any((path / name).exists() for name in ("zarr.json", "ledger")):
        return None
    from actlas.analysis.localizer.masks import FILE_NAME, Mask
    from actlas.analysis.sae.train.verify import Verified, is_sae_folder, verify_sae

    mask = path / FILE_NAME if path.is_dir() else path
    if mask.is_file() and (mask.name == FILE_NAME or _is_record(mask)):
        found = Verified("a mask against its SHA-256", (), 1, mask.stat().st_size)
        try:
            Mask.load(mask)
        except MaskError as error:
            found = found._replace(damages=((mask.name, error.message),))
    elif path.is_dir() and is_sae_folder(path):
        found = verify_sae(path)
    else:
        return None
    report = Report(
        full=True,
        n_objects=found.n_files,
        n_bytes=found.n_bytes,
        missing=(),
        damages=tuple(Damage(name, why) for name, why in found.damages),
    )
    return report, found.what, found.finished


def _is_record(path: Path) -> bool:
    """Return whether a file begins as a mask's does, whatever its name is."""
    if not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        return file.read(10) == b'{"record":'


def _file_lines(report: Report, what: str, finished: bool, seconds: float) -> list[str]:
    checked = f"{what}: {counted(report.n_objects, 'file')}, {n_bytes(report.n_bytes)}, in "
    checked += duration(seconds)
    lines = [f"damaged: {damage}" for damage in report.damages]
    if not report.ok:
        return [*lines, f"damaged: {counted(len(report.damages), 'finding')}; checked {checked}"]
    if not finished:
        again = "run the same `actlas sae train` again to finish it"
        return [f"whole so far: checked {checked} -> next: {again}"]
    return [f"whole: checked {checked}"]


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
    is 4 if there is any. The folder of a sparse autoencoder, of a training or of a mask is checked
    too, every byte against the checksums in it.
    """
    began = time.perf_counter()
    if (files := _verify_files(Path(store).expanduser())) is not None:
        report, what, finished = files
        seconds = time.perf_counter() - began
        made = VerifyReport.of(report, store, seconds).model_copy(update={"complete": finished})
        lines = _file_lines(report, what, finished, seconds)
        echo(*([made.to_json()] if as_json else lines))
        return EXIT_DONE if report.ok else EXIT_DAMAGE
    opened = open_to_verify(store)
    with NowAndThen() as say:
        report = check(
            opened,
            full=full,
            progress=lambda done, of: say(f"{count(done)} of {counted(of, 'object')} checked"),
        )
    seconds = time.perf_counter() - began
    if as_json:
        echo(VerifyReport.of(report, opened.path, seconds).to_json())
    else:
        echo(*_lines(report, opened.path, seconds))
    return EXIT_DONE if report.ok else EXIT_DAMAGE
