"""``actlas sae index``: a set of features by feature, the largest activations first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.options import Count
from actlas.jobs.derived.index import index
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, duration, n_bytes
from actlas.store.errors import ConfigError
from actlas.store.store import Store, open_store

if TYPE_CHECKING:
    pass


def _line(store: Store, made: dict[str, Any]) -> str:
    """Return what was made, and a feature to look at: a busy one that is not always on."""
    features = store.features(made["name"])
    some = max(1, made["n_codes"])
    alive = int((features.count > 0).sum())
    shown = _example(features.density)
    look = shell("contexts", store.path, "--sae", made["name"], "--feature", str(shown))
    return (
        f"done: {count(made['n_codes'])} codes of {count(made['n_features'])} features "
        f"({count(alive)} ever fire), {n_bytes(made['n_bytes'])} by feature beside "
        f"{n_bytes(made['n_bytes_by_token'])} by token "
        f"({made['n_bytes'] / some:.2f} + {made['n_bytes_by_token'] / some:.2f} bytes per code), "
        f"{duration(made['seconds'])} -> next: {look}"
    )


def _example(density: Any) -> int:
    """Return a feature that fires on about one token in a hundred."""
    import numpy as np

    with np.errstate(divide="ignore"):
        return int(np.argmin(np.abs(np.log10(density) + 2)))


@click.command("index", short_help="The features, largest activations first.")
@click.argument("store")
@click.option("--sae", "name", required=True, metavar="NAME", help="The set of features.")
@click.option(
    "--max-memory-bytes",
    type=Count(),
    help="About as much is used; less makes more passes.  [default: 1 GiB]",
)
@json_option
@debug_option
def command(store: str, name: str, max_memory_bytes: int | None, as_json: bool) -> int:
    """Order a set of features by feature: top, bottom and counts become slices.

    The same command again goes on where it was stopped.
    """
    if max_memory_bytes is not None and max_memory_bytes < 1 << 20:
        raise ConfigError(f"--max-memory-bytes: got {max_memory_bytes}, expected 1 MiB or more")
    opened = open_store(store)
    made = index(opened, name, max_memory_bytes)
    click.echo(json.dumps(made) if as_json else _line(opened, made))
    return 0
