"""Starting Ray on this machine, quietly, or joining a cluster; and what a worker may reserve."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actlas.jobs
from actlas.pipeline.cpus import n_cpus
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ConfigError, RunFaultError

OBJECT_STORE_BYTES = 100 << 20
"""Results are a few hundred bytes; Ray's default would be 30 % of the memory."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"[\s\S]*",  # dead workers: the driver reports them itself
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def address_of(run: RunOptions) -> str | None:
    """Return the address of the cluster to join; None for a Ray of our own."""
    return run.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def connected(run: RunOptions) -> Iterator[None]:
    """Be connected to Ray: to one that is already initialized, a cluster, or one of our own.

    A Ray of our own listens with a token made for this process: no other user of the machine can
    reach it, and nothing is written to ``~/.ray``. On a cluster Ray's own authentication stays.

    Raises
    ------
    ConfigError
        No cluster answers at the address.
    RunFaultError
        Ray does not start here.
    """
    address = address_of(run)
    _prepare_environment(own=address is None)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--executor ray needs Ray ({error}): pip install 'actlas[extract]', or use "
            "--executor inline."
        ) from error
    if ray.is_initialized():
        yield
        return
    with _environment(_for_own_ray() if address is None else {}):
        try:
            if address is None:
                _start(ray, run)
            else:
                _join(ray, address)
            yield
        finally:
            ray.shutdown()


def _prepare_environment(own: bool) -> None:
    """Set what Ray reads once, as it is imported: silence, and the token of a Ray of our own."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if own and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start(ray: Any, run: RunOptions) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=max(n_cpus(), int(-(-run.workers * run.cpus_per_worker // 1))),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            configure_logging=False,
            logging_level="error",
            log_to_driver=False,
        )
    except (RuntimeError, OSError, TimeoutError) as error:
        raise RunFaultError(
            f"Ray does not start on this machine: {error}. `--executor inline` needs no Ray."
        ) from error


def _join(ray: Any, address: str) -> None:
    from ray.exceptions import RayError

    try:
        ray.init(
            address=address, configure_logging=False, logging_level="error", log_to_driver=False
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError, RayError) as error:
        raise ConfigError(
            f"no Ray cluster to join at {address!r}: {error}. Start one with `ray start --head`, "
            "or leave --address out to run on this machine.",
            address=address,
        ) from error


def _for_own_ray() -> dict[str, str]:
    """Return what a Ray of our own should find in its environment, and hand to its workers."""
    package_root = Path(actlas.jobs.__file__).absolute().parents[2]
    before = os.environ.get("PYTHONPATH")
    paths = [str(Path(p).absolute()) for p in before.split(os.pathsep) if p] if before else []
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys([str(package_root), *paths]))}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def alive_nodes() -> list[dict[str, Any]]:
    """Return what Ray knows of each living machine."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def reservation(run: RunOptions) -> dict[str, Any]:
    """Return the resources of one worker, as options of a Ray actor.

    Raises
    ------
    ConfigError
        No machine of a cluster without an autoscaler could ever hold one worker.
    """
    nodes = [node["Resources"] for node in alive_nodes()]
    gpus = run.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if run.device != "cpu" and any(n.get("GPU", 0) for n in nodes) else 0.0
    if not any(n.get("CPU", 0) >= run.cpus_per_worker and n.get("GPU", 0) >= gpus for n in nodes):
        cpus = max((n.get("CPU", 0) for n in nodes), default=0)
        most = max((n.get("GPU", 0) for n in nodes), default=0)
        raise ConfigError(
            f"a worker asks for {run.cpus_per_worker:g} CPUs and {gpus:g} GPUs, and no machine of "
            f"this Ray has both (at most {cpus:g} CPUs, {most:g} GPUs): lower --cpus-per-worker or "
            "--gpus-per-worker, or add machines."
        )
    return {
        "num_cpus": run.cpus_per_worker,
        "num_gpus": gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
    }


def worker_options(run: RunOptions) -> RunOptions:
    """Return the options that workers get: what they cannot know of Ray is put in.

    CPU threads are a worker's share of one machine, or its reservation; and there is an address
    wherever there may be several machines.
    """
    address, many = address_of(run), len(alive_nodes()) > 1
    share = int(run.cpus_per_worker) if many else n_cpus() // run.workers
    return run.model_copy(
        update={
            "threads": run.threads or max(1, share),
            "address": "auto" if many and address is None else address,
        }
    )
