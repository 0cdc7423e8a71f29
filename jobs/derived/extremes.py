"""The top and bottom tokens of raw units, gathered where they are not yet."""

from __future__ import annotations

import socket

import click

from actlas.jobs.formatting import counted
from actlas.jobs.logs import NowAndThen
from actlas.store.errors import FeatureError
from actlas.store.features.unit_extremes import Units
from actlas.store.ledger import lease
from actlas.store.store import Store


def units_of(store: Store, hookpoint: str) -> Units:
    """Return a hookpoint's units; where they are not gathered yet, gather them all in one pass."""
    try:
        return store.units(hookpoint)
    except FeatureError:
        from actlas.analysis.features.extremes import gather_extremes

        click.echo(
            f"gathering the top and bottom tokens of all units of {hookpoint}: one pass over the "
            "store, the first time only",
            err=True,
        )
        say = NowAndThen()
        with lease.hold(store.objects, log=lambda text: click.echo(text, err=True)):
            return gather_extremes(
                store,
                hookpoint,
                attempt=socket.gethostname(),
                progress=lambda done, of: say(f"{done:,} of {counted(of, 'shard')}"),
            )
