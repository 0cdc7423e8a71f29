"""``actlas``: one group of verbs, each in its own file, loaded when it is called."""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.verbs import Verbs
from actlas.jobs.formatting import printable
from actlas.jobs.redaction import redacted
from actlas.store.errors import EXIT_DONE, EXIT_ERROR, EXIT_RESUME, ActlasError

VERBS: Mapping[str, str] = {
    "hookpoints": "The places of a model that can be stored, and how wide they are.",
    "plan": "Fix what the rows are: model, corpus, windows, hookpoints.",
    "extract": "Compute and write them; plans first where there is no plan, resumes else.",
    "submit": "The same on a Ray cluster, from any machine that reaches its head.",
    "status": "How far an extraction is.",
    "verify": "Prove a store against its receipts.",
    "repair": "Put back what verify finds damaged, and compute again only that.",
    "doctor": "Whether this machine is fit for a run, and what to do.",
    "info": "What a store holds.",
    "show": "A document: its text, tokens and norms.",
    "localize": "Which units prefer one condition: Welch's t-test, a mask, pictures.",
    "ablate": "What the model is without a mask's units, and without random ones.",
    "sae": "Train a sparse autoencoder, encode every token by it, index its features.",
    "contexts": "The tokens where a feature or a unit fires most, in their context.",
}


class Actlas(Verbs):
    """All verbs; turns errors into one line and an exit code."""

    verbs = VERBS
    prefix = "actlas.jobs.cli."

    def invoke(self, ctx: click.Context) -> None:
        """Run a verb and exit with its code."""
        try:
            code = super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("stopped; nothing done is lost: run the same command again", err=True)
            ctx.exit(EXIT_RESUME)
        except ActlasError as error:
            _tell(error, ctx.meta)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly where its reader is gone
            _tell(_plain(error), ctx.meta, error)
            ctx.exit(EXIT_ERROR)
        ctx.exit(code if isinstance(code, int) else EXIT_DONE)


def _plain(error: OSError) -> ActlasError:
    """Return what the operating system refused, in one line with its path."""
    places = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return ActlasError(": ".join([*places, reason]))


def _tell(error: ActlasError, meta: Mapping[str, Any], cause: Exception | None = None) -> None:
    if meta.get("actlas.debug"):
        told = "".join(traceback.format_exception(cause or error))
        click.echo(redacted(told), err=True, nl=False)
    line = printable(redacted(str(error)))  # it may hold names that came from a stranger's file
    if meta.get("actlas.json"):
        click.echo(json.dumps({"error": {"kind": error.kind, "message": redacted(error.message)}}))
        click.echo(f"error ({error.kind}): {line}", err=True)
    else:
        click.echo(f"error: {line}", err=True)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from actlas import __version__

        click.echo(f"actlas {__version__}")
        ctx.exit()


@click.group(
    cls=Actlas,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all done; 1 an error; 2 usage; 3 done with shards in quarantine; "
    "4 verify found damage; 75 stopped, or another driver is at work: run it again.",
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
    """Every token's activation of a transformer, in one plain Zarr store."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    from actlas.jobs.scheduler.stop import terminate_as_interrupt

    terminate_as_interrupt()
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="actlas")
    except KeyboardInterrupt:
        sys.exit(EXIT_RESUME)
