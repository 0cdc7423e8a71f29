"""Checks of Ray: whether it starts here, or what a cluster at an address is."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from actlas.jobs.doctor.check import Check, ok, problem, warning
from actlas.jobs.formatting import counted, n_bytes
from actlas.jobs.ray.address import accepts_token, authenticate, check_port, host_and_port
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ActlasError, ConfigError

ANSWER_S = 20.0
"""How long all nodes together may take to answer."""

MAX_NODES = 64
"""Of a larger cluster so many nodes are asked."""

PACKAGES = ("actlas", "ray", "torch", "transformers", "zarr")


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
    if address is not None and (refused := check_port(address)):
        remedy = "is the head up, and is this port open to this machine? `ray start --head` says it"
        yield problem("ray", refused, remedy)
        return
    if address is not None and (where := host_and_port(address)) is not None:
        try:
            authenticate(where)
        except ConfigError as error:
            found, _, remedy = str(error).partition(". ")
            yield problem("ray", found, remedy)
            return
    from actlas.jobs.ray.cluster import connected

    try:
        with connected(RunOptions(executor="ray", workers=1, address=address)):
            yield from _joined(version, address)
    except ActlasError as error:
        own = "`--executor inline` needs no Ray"
        remedy = own if address is None else "the same Ray and Python on both sides?"
        yield problem("ray", " ".join(str(error).split()), remedy)


def _joined(version: str, address: str | None) -> Iterator[Check]:
    """Say what the cluster is that this process is part of now."""
    import ray

    library: Any = ray
    nodes = [node for node in library.nodes() if node["Alive"]]
    resources = library.cluster_resources()
    amounts = ", ".join(f"{resources.get(n, 0):g} {n}" for n in ("CPU", "GPU"))
    n = counted(len(nodes), "node")
    yield ok("ray", f"{version}, Python {platform.python_version()}: {n}, {amounts}")
    if address is None:
        return
    yield from compare(about(), *_ask(library, nodes))
    yield _security(address)


def _security(address: str) -> Check:
    """Say whether a head lets in who has no token."""
    where = host_and_port(address)
    without = None if where is None else accepts_token(where, None)
    if without is None:
        found = f"not asked whether {address} lets in who has no token"
        return ok("ray security", f"{found}: give its host and port to know")
    if without:
        found = "lets in who has no token: whoever reaches the head may run anything there"
        return warning("ray security", found, "start the head with RAY_AUTH_MODE=token")
    return ok("ray security", "who has no token is refused")


def about() -> dict[str, Any]:
    """Return what a node of a cluster is asked for: versions, and its shared memory."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None
    return {"versions": versions, "shm_bytes": shm}


def _ask(ray: Any, nodes: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the nodes answer, and why others did not, each by the node's name."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes[:MAX_NODES]:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(about)
        asked[task.remote()] = node
    ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=ANSWER_S)
    told: dict[str, Any] = {}
    silent: dict[str, str] = {}
    for reference, node in asked.items():
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        if name in told or name in silent:
            name += f" {node['NodeID'][:8]}"
        if reference not in ready:
            silent[name] = f"no answer in {ANSWER_S:.0f} s"
            continue
        try:
            answer = ray.get(reference)
        except Exception as error:  # noqa: BLE001 - it is told, by node
            words = str(error).strip().splitlines() or [type(error).__name__]
            silent[name] = words[-1]
            continue
        told[name] = {**answer, "store_bytes": node["Resources"].get("object_store_memory", 0.0)}
    return told, silent


def compare(
    here: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]], silent: Mapping[str, str]
) -> Iterator[Check]:
    """Compare the nodes of a cluster with this process, and with each other.

    Parameters
    ----------
    here : mapping
        :func:`about` of this process.
    told : mapping
        The same of each node by its name, with ``store_bytes``: Ray's object store there.
    silent : mapping
        Why other nodes did not say.
    """
    for name, why in [*silent.items()][:4]:
        yield problem("node", f"{name}: {why}", "actlas and Ray in its environment, then again")
    if len(silent) > 4:
        more = counted(len(silent) - 4, "more node")
        yield problem("node", f"{more} without an answer", "see above")
    if not told:
        return
    differ: list[str] = []
    for package, version in here["versions"].items():
        others = Counter(node["versions"].get(package, "missing") for node in told.values())
        others.pop(version, None)
        differ += [f"{package} {version} here, {v} on {n:,}" for v, n in sorted(others.items())]
    n = counted(len(told), "node")
    if differ:
        remedy = "one image or one environment for all: rows may differ in bits, or a worker fail"
        yield warning("same versions", f"of {n}: {'; '.join(differ)}", remedy)
    else:
        yield ok("same versions", f"{n} as here: {', '.join(here['versions'])}")
    yield from _object_store(told)


def _object_store(told: Mapping[str, Mapping[str, Any]]) -> Iterable[Check]:
    largest = max(node["store_bytes"] for node in told.values())
    found = f"at most {n_bytes(largest)} on a node"
    small = [
        name
        for name, node in told.items()
        if node["shm_bytes"] is not None and node["shm_bytes"] < node["store_bytes"]
    ]
    if small:
        remedy = "`ray start --object-store-memory=209715200` is plenty, or enlarge /dev/shm"
        yield warning("object store", f"{found}; more than /dev/shm has on {small[0]}", remedy)
    else:
        yield ok("object store", found)
