"""``actlas``: a group of commands, each in its own module, imported when it is called."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.verbs import Verbs
from actlas.jobs.redaction import redacted
from actlas.jobs.terminal import echo, echo_text, guard
from actlas.store.errors import (
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_RESUME,
    ActlasError,
    InterruptedRunError,
    LeaseHeldError,
)
from actlas.store.extras import explained
from actlas.store.voice import shell

VERBS: Mapping[str, str] = {
    "hookpoints": "List the hookpoints of a model and their width.",
    "plan": "Create a store's plan: model, corpus, windows, hookpoints.",
    "extract": "Compute and store the activations; create the plan first, or resume.",
    "submit": "Run an extraction on a Ray cluster, from any machine that reaches its head.",
    "status": "Show the progress of an extraction.",
    "verify": "Check a store's files against its plan and receipts.",
    "repair": "Recompute the damaged shards that `verify` finds.",
    "doctor": "Check this machine, Ray and a store's location.",
    "info": "Show the contents of a store.",
    "show": "Show a document: text, tokens and norms.",
    "export": "Write a plain Zarr copy that every Zarr library reads.",
    "localize": "Select the units that prefer one condition, by Welch's t-test.",
    "ablate": "Measure a model without the units of a mask, and without random units.",
    "sae": "Train, encode and index with sparse autoencoders.",
    "contexts": "Show the tokens where a feature or unit is most active.",
}

STOPS = (InterruptedRunError, LeaseHeldError)
"""Ends of a run that are no errors: it was stopped, or another driver is at work."""


class Actlas(Verbs):
    """All commands; an error becomes one line and an exit code."""

    verbs = VERBS
    prefix = "actlas.jobs.cli."

    def invoke(self, ctx: click.Context) -> None:
        """Run a command and exit with its code."""
        with shell():
            self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> None:
        try:
            code = super().invoke(ctx)
        except KeyboardInterrupt:
            echo("stopped; finished work is kept: run the same command again", err=True)
            ctx.exit(EXIT_RESUME)
        except ActlasError as error:
            _print_error(error, ctx.meta)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if (plain := explained(error)) is None:
                raise
            _print_error(plain, ctx.meta, error)
            ctx.exit(plain.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click exits silently if its reader is gone
            _print_error(_plain(error), ctx.meta, error)
            ctx.exit(EXIT_ERROR)
        ctx.exit(code if isinstance(code, int) else EXIT_DONE)


def _plain(error: OSError) -> ActlasError:
    """Return an error of the operating system as one line with its paths."""
    paths = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return ActlasError(": ".join([*paths, reason]))


def _print_error(
    error: ActlasError, meta: Mapping[str, Any], cause: Exception | None = None
) -> None:
    if meta.get("actlas.debug"):
        trace = "".join(traceback.format_exception(cause or error))
        echo_text(redacted(trace), err=True)
    line = redacted(str(error))
    stop = isinstance(error, STOPS)
    if meta.get("actlas.json"):
        from actlas.jobs.run.reports.base import ErrorDetail, ErrorReport

        detail = ErrorDetail(kind=error.kind, message=redacted(error.message))
        echo(ErrorReport(error=detail).to_json())
        echo(line if stop else f"error ({error.kind}): {line}", err=True)
    else:
        echo(line if stop else f"error: {line}", err=True)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from actlas import __version__

        echo(f"actlas {__version__}")
        ctx.exit()


@click.group(
    cls=Actlas,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success; 1 error; 2 usage error; 3 finished with shards in quarantine; "
    "4 damage found; 75 stopped, or another driver is running: run the command again.",
)
@debug_option
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version.",
)
def cli() -> None:
    """Store and analyse the activations of every token of a transformer, in one Zarr store."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    from actlas.jobs.scheduler.stop import terminate_as_interrupt

    guard()
    terminate_as_interrupt()
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="actlas")
    except KeyboardInterrupt:
        sys.exit(EXIT_RESUME)
