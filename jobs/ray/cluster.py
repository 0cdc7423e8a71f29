"""Starting Ray on this machine or joining a cluster, and the resources of a worker."""

from __future__ import annotations

import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actlas.jobs
from actlas.jobs.ray.address import TOKEN_SOURCES, authenticate, check_port, host_and_port
from actlas.pipeline.model.host import n_cpus
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ConfigError, RunFaultError

OBJECT_STORE_BYTES = 100 << 20
"""Size of Ray's object store. Results are a few hundred bytes; Ray's default is 30 % of memory."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"[\s\S]*",  # dead workers: the driver reports them itself
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def address_of(run: RunOptions) -> str | None:
    """Return the address of the cluster to join; None to start Ray on this machine."""
    return run.address or os.environ.get("RAY_ADDRESS")


def planning_device(run: RunOptions) -> str | None:
    """Return the device to choose a plan's compute dtype on; None if only the workers have it.

    Workers on a cluster have devices that this machine need not have, and so do workers that
    reserve GPUs.
    """
    elsewhere = address_of(run) is not None or bool(run.gpus_per_worker)
    return None if run.executor == "ray" and elsewhere else run.device


@contextmanager
def connected(run: RunOptions) -> Iterator[None]:
    """Connect to Ray: an already initialized one, a cluster, or a new one on this machine.

    A new Ray uses a token made for this process, so that no other user of the machine can reach
    it, and nothing is written to ``~/.ray``. It listens on the loopback address alone: its ports
    for metrics ask for no token. A cluster keeps its own authentication.

    Parameters
    ----------
    run : RunOptions
        Options with the address and the resources.

    Raises
    ------
    ConfigError
        No cluster answers at the address, or it refuses the token.
    RunFaultError
        Ray cannot be started on this machine.
    """
    address = address_of(run)
    _prepare_environment(own=address is None)
    there = sys.modules.get("ray")
    if address is not None and not (there is not None and there.is_initialized()):
        _check_head(address)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--executor ray requires Ray ({error}): pip install 'actlas[extract]', or use "
            "--executor inline."
        ) from error
    if ray.is_initialized():
        yield
        return
    with _environment(_for_own_ray() if address is None else {}), _own_signal_handler():
        try:
            if address is None:
                _start(ray, run)
            else:
                _join(ray, address)
            yield
        finally:
            ray.shutdown()


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Put back this process's handler of SIGTERM, which ``ray.init`` replaces for good."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _prepare_environment(own: bool) -> None:
    """Set the variables that Ray reads at its import: silence, and the token of a new Ray."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if own and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start(ray: Any, run: RunOptions) -> None:
    try:
        with _on_loopback():
            ray.init(
                address="local",
                num_cpus=max(n_cpus(), math.ceil(run.n_workers * run.cpus_per_worker)),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                configure_logging=False,
                logging_level="error",
                log_to_driver=False,
            )
    except (RuntimeError, OSError, TimeoutError) as error:
        raise RunFaultError(
            f"Ray cannot be started on this machine: {error}. `--executor inline` needs no Ray."
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray choose 127.0.0.1 as this machine's address while the context is open.

    All of Ray's servers then listen there alone. Ray 2.60 replaces a loopback address that it is
    given by the machine's own, except where clusters are disabled, as they are on macOS (by the
    environment variable ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER``, which Ray reads at its import).
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _check_head(address: str) -> None:
    """Check that a head answers at an address and accepts this user, before Ray retries for long.

    Call it before Ray is imported, which reads at import whether to send a token.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    if (where := host_and_port(address)) is None:
        return
    if (reason := check_port(address)) is not None:
        raise _not_joined(address, reason)
    authenticate(where)


def _join(ray: Any, address: str) -> None:
    from ray.exceptions import RayError

    try:
        ray.init(
            address=address, configure_logging=False, logging_level="error", log_to_driver=False
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError, RayError) as error:
        reason = str(error).rstrip(".")
        if address == "auto":  # its head was not checked before
            reason += f" (its token is read from {TOKEN_SOURCES})"
        raise _not_joined(address, reason) from error


def _not_joined(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot join a Ray cluster at {address!r}: {reason}. Start one with `ray start --head`, "
        "or omit --address to run on this machine.",
        address=address,
    )


def _for_own_ray() -> dict[str, str]:
    """Return the environment variables of a new Ray and its workers."""
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
    """Return Ray's records of the live machines."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def reservation(run: RunOptions) -> dict[str, Any]:
    """Return the resources of one worker as options of a Ray actor.

    Parameters
    ----------
    run : RunOptions
        Options of the run.

    Raises
    ------
    ConfigError
        The new Ray on this machine cannot hold one worker. (A cluster may grow.)
    """
    nodes = [node["Resources"] for node in alive_nodes()]
    cpus, gpus = run.cpus_per_worker, run.gpus_per_worker
    most_cpus = max((n.get("CPU", 0.0) for n in nodes), default=0.0)
    most_gpus = max((n.get("GPU", 0.0) for n in nodes), default=0.0)
    if gpus is None:
        gpus = 1.0 if run.device != "cpu" and most_gpus else 0.0
    own = address_of(run) is None
    if own and not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
        raise ConfigError(
            f"a worker requires {cpus:g} CPUs and {gpus:g} GPUs, and no machine of "
            f"this Ray has both (at most {most_cpus:g} CPUs, {most_gpus:g} GPUs): lower "
            "--cpus-per-worker or --gpus-per-worker, or add machines."
        )
    if own and run.workers == "auto" and gpus:
        cpus = 0.0  # only the GPUs limit the number of workers
    return {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}


def hopes_for_gpus(run: RunOptions, reserved: dict[str, Any]) -> bool:
    """Return whether a worker would take a GPU if a machine with one joined the cluster.

    Parameters
    ----------
    run : RunOptions
        Options of the run.
    reserved : dict
        One worker's :func:`reservation`.
    """
    joins = address_of(run) is not None and not reserved["num_gpus"]
    return joins and run.gpus_per_worker is None and run.device != "cpu"


def room(run: RunOptions, reserved: dict[str, Any]) -> int:
    """Return the number of workers that the live machines could hold if they ran nothing else.

    On a new Ray without GPUs it is one, with all threads of the processor.

    Parameters
    ----------
    run : RunOptions
        Options of the run.
    reserved : dict
        One worker's :func:`reservation`.
    """
    asked = {"CPU": reserved["num_cpus"], "GPU": reserved["num_gpus"]}
    if address_of(run) is None and not asked["GPU"]:
        return 1
    fit = 0
    for node in alive_nodes():
        there = node["Resources"]
        shares = [there.get(name, 0.0) / amount for name, amount in asked.items() if amount]
        fit += int(min(shares, default=1.0) + 1e-6)
    return fit


def worker_options(run: RunOptions) -> RunOptions:
    """Return the options of the workers, with the values that depend on the cluster filled in.

    A worker's CPU threads are its share of one machine, or its reservation. The address is set if
    there may be several machines.

    Parameters
    ----------
    run : RunOptions
        Options of the run.
    """
    address, many = address_of(run), len(alive_nodes()) > 1
    if isinstance(run.workers, int):
        workers = run.workers
    else:
        workers = max(1, room(run, reservation(run)))
        many = many or address is not None  # machines may join
    share = int(run.cpus_per_worker) if many else n_cpus() // workers
    return run.model_copy(
        update={
            "workers": workers,
            "threads": run.threads or max(1, share),
            "address": "auto" if many and address is None else address,
        }
    )
