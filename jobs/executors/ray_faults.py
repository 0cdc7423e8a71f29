"""What an error of Ray's means: a task that failed, a process that died, a machine that is lost."""

from __future__ import annotations

from functools import partial

from actlas.jobs.scheduler.faults import FaultKind
from actlas.jobs.scheduler.protocols import Lost


def loss(worker: int, shard: int | None, error: BaseException, *, lost_machine: bool) -> Lost:
    """Return what an error of Ray's means for a worker.

    Raises
    ------
    RayError
        It is no worker's: Ray itself failed.
    """
    from ray.exceptions import RayTaskError

    told = partial(Lost, worker, traceback=str(error))
    if isinstance(error, RayTaskError):
        return told(kind="task", error=first_line(error), shard=shard)
    kind = kind_of(error, lost_machine=lost_machine)
    return told(kind=kind, error=_words(kind, error))


def kind_of(error: BaseException, *, lost_machine: bool) -> FaultKind:
    """Tell a machine that is lost from a process that died on a living one.

    What Ray 2.60 raises for a call to an actor:

    - ``ActorUnavailableError``: its process cannot be reached, and for a second Ray has not heard
      that it died. A process that dies alone is reported by its machine at once, so this is how
      the loss of a machine shows first.
    - ``ActorDiedError``: the process is dead; ``preempted`` where its machine was taken away.
    - ``OutOfMemoryError``: Ray's memory monitor killed the process. Its shard is charged for a
      dead process: it may well be the one that takes too much.
    - ``WorkerCrashedError``, ``NodeDiedError``: what they say.

    Raises
    ------
    RayError
        Anything else is not about the actor: the answer's owner is the driver itself, so where an
        owner, an object or Ray's system is lost, the driver's own Ray failed.
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
        return "its machine was lost"
    if isinstance(error, OutOfMemoryError):
        return "Ray killed its process, for its machine ran out of memory"
    return "its process died (killed, crashed, or out of memory)"


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    first = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {first}"
