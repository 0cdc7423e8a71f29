"""Checks of Ray: whether it starts here, or what a cluster at an address is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from actlas.jobs.checks import Check, ok, problem, warning
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ActlasError


def cluster(address: str | None, start: bool) -> Iterator[Check]:
    """Say which Ray there is; start it or join the cluster where that is asked."""
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        remedy = "for several workers: pip install 'actlas[extract]'; --executor inline needs none"
        yield warning("ray", "not installed", remedy)
        return
    if address is None and not start:
        yield ok("ray", f"{version}; --ray tries to start it, --address to join a cluster")
        return
    from actlas.jobs.ray_cluster import connected

    try:
        with connected(RunOptions(executor="ray", workers=1, address=address)):
            import ray

            library: Any = ray
            resources = library.cluster_resources()
            n_nodes = sum(node["Alive"] for node in library.nodes())
    except ActlasError as error:
        yield problem("ray", str(error).splitlines()[0], "see above")
        return
    amounts = ", ".join(f"{resources.get(n, 0):g} {n}" for n in ("CPU", "GPU"))
    yield ok(
        "ray",
        f"{version}, Python {platform.python_version()}: {n_nodes} nodes, {amounts}",
    )
    if address is None:
        return
    if os.environ.get("RAY_AUTH_MODE") == "token":
        yield ok("ray security", "this side sends a token")
    else:
        found = "no token: whoever reaches the head may run anything there"
        yield warning("ray security", found, "start head and drivers with RAY_AUTH_MODE=token")
