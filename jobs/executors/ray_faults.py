"""Ray's errors by cause: a failed task, a dead process, a lost machine."""

from __future__ import annotations

from functools import partial

from actlas.jobs.scheduler.faults import FaultKind
from actlas.jobs.scheduler.protocols import Lost


def loss(worker: int, shard: int | None, error: BaseException, *, lost_machine: bool) -> Lost:
    """Return the loss of a worker that an error of Ray's reports.

    Parameters
    ----------
    worker : int
        The worker's number.
    shard : int or None
        The shard that the failed call was for; None for a call at the worker's start.
    error : exception
        The error that Ray raised.
    lost_machine : bool
        Whether the worker's machine is no longer alive.

    Raises
    ------
    RayError
        The error is not about the worker: Ray itself failed.
    """
    from ray.exceptions import RayTaskError

    lost = partial(Lost, worker, traceback=str(error))
    if isinstance(error, RayTaskError):
        return lost(kind="task", error=first_line(error), shard=shard)
    kind = kind_of(error, lost_machine=lost_machine)
    return lost(kind=kind, error=_words(kind, error))


def kind_of(error: BaseException, *, lost_machine: bool) -> FaultKind:
    """Distinguish a lost machine from a process that died on a living machine.

    Ray 2.60 raises these errors for a call to an actor:

    - ``ActorUnavailableError``: the process cannot be reached, and Ray has had no report of its
      death for a second. A machine reports the death of a process at once, so this is the first
      sign of a lost machine.
    - ``ActorDiedError``: the process is dead; ``preempted`` if its machine was taken away.
    - ``OutOfMemoryError``: Ray's memory monitor killed the process. The shard is charged for a
      dead process, since it may be the one that needs too much memory.
    - ``WorkerCrashedError``, ``NodeDiedError``: the process, or its machine, is dead.

    Parameters
    ----------
    error : exception
        The error that Ray raised.
    lost_machine : bool
        Whether the worker's machine is no longer alive.

    Raises
    ------
    RayError
        Any other error is not about the actor. The driver itself owns the answer, so the loss of an
        owner, of an object or of Ray's system is a failure of the driver's own Ray.
    """
    from ray import exceptions as ray_errors

    if isinstance(error, ray_errors.ActorUnavailableError | ray_errors.NodeDiedError):
        return "node"
    if isinstance(error, ray_errors.RayActorError):
        return "node" if lost_machine or error.preempted else "process"
    if isinstance(error, ray_errors.OutOfMemoryError | ray_errors.WorkerCrashedError):
        return "node" if lost_machine else "process"
    raise error


def _words(kind: FaultKind, error: BaseException) -> str:
    from ray.exceptions import OutOfMemoryError

    if kind == "node":
        return "the worker's machine was lost"
    if isinstance(error, OutOfMemoryError):
        return "Ray killed the worker's process because its machine ran out of memory"
    return "the worker's process died (killed, crashed, or out of memory)"


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message.

    Parameters
    ----------
    error : exception
        The error.
    """
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"
