"""``actlas sae index``: a set of features by feature, the largest activations first."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.flags import debug_option, json_option
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, n_bytes
from actlas.jobs.options import Count
from actlas.jobs.progress import NowAndThen
from actlas.store import lease
from actlas.store.errors import ConfigError
from actlas.store.store import Store, open_store

if TYPE_CHECKING:
    from actlas.store.features import Features


def index_sae(store: Store | str | os.PathLike[str], name: str) -> Features:
    """Index a set of features, as ``actlas sae index`` does, and return it.

    Raises
    ------
    FeatureError
        There is no such set, or not every token is encoded.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    index(opened, name)
    return opened.features(name)


def index(store: Store, name: str, memory_bytes: int | None = None) -> dict[str, Any]:
    """Index a set of features and return what was made as plain values.

    Raises
    ------
    FeatureError
        There is no such set, or not every token is encoded.
    LeaseHeldError
        Another driver works on this store.
    """
    from actlas.analysis.index import MEMORY_BYTES, index_features

    features = store.features(name)
    began = time.perf_counter()
    say = NowAndThen()
    with lease.hold(store.objects, say=lambda text: click.echo(text, err=True)):
        made = index_features(
            store,
            features,
            attempt=socket.gethostname(),
            memory_bytes=memory_bytes or MEMORY_BYTES,
            progress=lambda what, done, of: say(f"{what}: {done:,} of {counted(of, 'shard')}"),
        )
    return {
        "store": store.path,
        "name": name,
        "n_features": features.n_features,
        "n_codes": made.n_codes,
        "n_blocks": made.n_blocks,
        "n_passes": made.n_passes,
        "n_bytes": made.n_bytes,
        "n_bytes_by_token": made.n_bytes_by_token,
        "seconds": time.perf_counter() - began,
    }


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
