"""Checks of Ray: starting it on this machine, or comparing the nodes of a cluster."""

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
"""Seconds that all nodes together may take to answer."""

MAX_NODES = 64
"""Largest number of nodes that are compared."""

PACKAGES = ("actlas", "ray", "torch", "transformers", "zarr")
"""Packages whose versions are compared."""


def cluster(address: str | None, start: bool) -> Iterator[Check]:
    """Check the installed Ray; start it or join a cluster if requested.

    Parameters
    ----------
    address : str or None
        Address of a cluster to join.
    start : bool
        Whether to start Ray on this machine.
    """
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        remedy = "for several workers: pip install 'actlas[extract]'; --executor inline needs none"
        yield warning("ray", "not installed", remedy)
        return
    if address is None and not start:
        yield ok("ray", f"{version}; --ray tests starting it, --address tests joining a cluster")
        return
    if address is not None and (refused := check_port(address)):
        remedy = "check that the head runs and that its port is open to this machine (`ray status`)"
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
        remedy = own if address is None else "use the same versions of Ray and Python on both sides"
        yield problem("ray", " ".join(str(error).split()), remedy)


def _joined(version: str, address: str | None) -> Iterator[Check]:
    """Check the cluster that this process is connected to."""
    import ray

    library: Any = ray
    nodes = [node for node in library.nodes() if node["Alive"]]
    resources = library.cluster_resources()
    amounts = ", ".join(f"{resources.get(n, 0):g} {n}" for n in ("CPU", "GPU"))
    n = counted(len(nodes), "node")
    yield ok("ray", f"{version}, Python {platform.python_version()}: {n}, {amounts}")
    if address is None:
        yield _reach(nodes[0]["NodeManagerAddress"])
        return
    yield from compare(about(), *_ask(library, nodes))
    yield _security(address)


def _reach(address: str) -> Check:
    """Check that a Ray of our own listens for this machine alone."""
    if address in ("127.0.0.1", "::1"):
        return ok("ray ports", f"{address} only: no other machine reaches them")
    found = f"this Ray listens on every address of the machine ({address})"
    remedy = "its metrics ask for no token: keep other machines out by a firewall"
    return warning("ray ports", found, remedy)


def _security(address: str) -> Check:
    """Check whether a head accepts clients without a token."""
    where = host_and_port(address)
    without = None if where is None else accepts_token(where, None)
    if without is None:
        found = f"unknown whether {address} accepts clients without a token"
        return ok("ray security", f"{found}: give its host and port to check")
    if without:
        found = (
            "no token required: anyone who can reach the Ray port can execute code on the cluster"
        )
        return warning("ray security", found, "start the head with RAY_AUTH_MODE=token")
    return ok("ray security", "clients without a token are refused")


def about() -> dict[str, Any]:
    """Return this node's package versions and free shared memory."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None
    return {"versions": versions, "shm_bytes": shm}


def _ask(ray: Any, nodes: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the answers of the nodes, and the errors of those without one, by name."""
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
        except Exception as error:  # noqa: BLE001 - reported by node
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
        The same of each node by name, with ``store_bytes``, the size of its object store.
    silent : mapping
        Errors of the nodes without an answer, by name.
    """
    for name, why in [*silent.items()][:4]:
        yield problem(
            "node", f"{name}: {why}", "install actlas and Ray in its environment, then check again"
        )
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
        remedy = "use one environment for all: rows may differ in their bits, or workers fail"
        yield warning("same versions", f"of {n}: {'; '.join(differ)}", remedy)
    else:
        yield ok(
            "same versions", f"{n} with the versions of this machine: {', '.join(here['versions'])}"
        )
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
        remedy = "`ray start --object-store-memory=209715200` suffices; or enlarge /dev/shm"
        yield warning("object store", f"{found}; more than /dev/shm has free on {small[0]}", remedy)
    else:
        yield ok("object store", found)
