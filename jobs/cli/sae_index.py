"""``actlas sae index``: order feature activations by feature, the largest first."""

from __future__ import annotations

from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.options import Count, asked_for, run_options
from actlas.jobs.derived.index import index
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, n_bytes
from actlas.jobs.run.reports.analysis import SaeIndexReport
from actlas.jobs.terminal import echo
from actlas.store.errors import ConfigError
from actlas.store.store import Store, open_store


def _line(store: Store, made: SaeIndexReport) -> str:
    """Return the size of the index, and a command that shows a feature of medium density."""
    features = store.features(made.name)
    some = max(1, made.n_codes)
    alive = int((features.count > 0).sum())
    shown = _example(features.density)
    look = shell("contexts", store.path, "--sae", made.name, "--feature", str(shown))
    return (
        f"done: {count(made.n_codes)} activations of {counted(made.n_features, 'feature')} "
        f"({count(alive)} ever active), {n_bytes(made.n_bytes)} by feature and "
        f"{n_bytes(made.n_bytes_by_token)} by token "
        f"({made.n_bytes / some:.2f} + {made.n_bytes_by_token / some:.2f} bytes per activation), "
        f"{duration(made.seconds)} -> next: {look}"
    )


def _example(density: Any) -> int:
    """Return a feature that is active on about one token in a hundred."""
    import numpy as np

    with np.errstate(divide="ignore"):
        return int(np.argmin(np.abs(np.log10(density) + 2)))


@click.command("index", short_help="Order the feature activations by feature.")
@click.argument("store")
@click.option("--sae", "name", required=True, metavar="NAME", help="Name of the set of features.")
@click.option(
    "--max-memory-bytes",
    type=Count(),
    help="Memory of each worker; less memory takes more passes.  [default: 1 GiB]",
)
@run_options("executor", "workers", "address", "deadline_floor_s", "retry_quarantined")
@json_option
@debug_option
def command(
    store: str, name: str, max_memory_bytes: int | None, as_json: bool, **values: Any
) -> int:
    """Order a set of feature activations by feature, so that a feature's top tokens are one slice.

    The same command resumes an interrupted run.
    """
    if max_memory_bytes is not None and max_memory_bytes < 1 << 20:
        raise ConfigError(f"--max-memory-bytes: got {max_memory_bytes}, expected 1 MiB or more")
    opened = open_store(store)
    run = asked_for(values).run.model_copy(update={"max_memory_bytes": max_memory_bytes})
    outcome, size = index(opened, name, run)
    if size is None:
        if as_json:
            outcome.raise_error()
        echo(*outcome.lines)
        return outcome.exit_code
    made = SaeIndexReport(**size)
    echo(made.to_json() if as_json else _line(opened, made))
    return 0
