"""Indexing of feature activations by feature, from Python."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.formatting import counted
from actlas.jobs.logs import NowAndThen
from actlas.store.ledger import lease
from actlas.store.store import Store, open_store

if TYPE_CHECKING:
    from actlas.store.features.features import Features


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
    from actlas.analysis.features.index import index_features
    from actlas.analysis.features.index_plan import MEMORY_BYTES

    features = store.features(name)
    began = time.perf_counter()
    say = NowAndThen()
    with lease.hold(store.objects, log=lambda text: click.echo(text, err=True)):
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
