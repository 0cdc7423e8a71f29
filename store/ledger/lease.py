"""One driver per store: a lease with a heartbeat, taken over once its holder is dead.

Leases are numbered, and each lease file is created once: ``ledger/lease/00000003.json``. The lease
of the highest number is valid until ``…3.released`` exists or its holder is found dead: at once if
the holder was a process of this PID namespace, boot and host and has provably ended; otherwise if
its counter (``…3.beat``) has not changed for 60 s by the newcomer's own clock. A lease only keeps
two drivers from working on one store; the rows are safe without it: shards are created once.

A heartbeat also reports the state of the run, to be read from other machines::

    {"count": 17, "run": {"n_rows_done": 65536, ...}}
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

from actlas.store.errors import CorruptDataError, LeaseHeldError
from actlas.store.objects import processes
from actlas.store.objects.base import Objects
from actlas.store.objects.conditions import require_conditions

FOLDER = "ledger/lease"

TIMEOUT_S = 60.0
"""Seconds without a heartbeat after which a holder that cannot be looked up counts as dead."""

HEARTBEAT_S = 5.0
"""Seconds between two heartbeats."""

REQUEST_LIMIT_S = 10.0
"""Time limit of a heartbeat's requests. Each heartbeat makes two, so that several heartbeats fit
into ``TIMEOUT_S`` even while the object store is slow."""

MAX_HEARTBEAT_BYTES = 64 << 10
"""The maximum size of a heartbeat. A larger one is not written, and not read."""

_HELD_HERE: set[tuple[str, int]] = set()
"""The (url, number) of the leases that this process holds. A lease whose release failed is removed,
so that it does not count as held by a living process."""

_OUTER: ContextVar[Lease | None] = ContextVar("outer lease", default=None)
"""The reentrant lease that further holds of this thread join."""

RunState = Callable[[], dict[str, Any]]
"""Returns the state of a run as JSON values; called from the heartbeat's thread."""


class Heartbeat(NamedTuple):
    """The last heartbeat of a lease.

    Attributes
    ----------
    n_beats : int
        The number of heartbeats so far.
    run : dict
        The state of the run. It comes from the store's files and is not validated.
    """

    n_beats: int
    run: dict[str, Any]


class Lease:
    """A held lease. A thread writes its heartbeats until :meth:`release`.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    number : int
        The lease's number.
    heartbeat_s : float
        Seconds between two heartbeats.
    run_state : callable
        Returns the state of the run, which each heartbeat reports.
    """

    def __init__(
        self, objects: Objects, number: int, heartbeat_s: float, run_state: RunState = dict
    ) -> None:
        self.objects = objects
        self.number = number
        self.pid = os.getpid()
        self._run_state = run_state
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._heartbeat_s = heartbeat_s
        _HELD_HERE.add((objects.url, number))
        self._thread = threading.Thread(target=self._beat, name="actlas-lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        # Retrying through an outage could take longer than the timeout: the holder would look dead.
        objects, count = self.objects.within(REQUEST_LIMIT_S), 0
        while not self._stop.wait(self._heartbeat_s):
            count += 1
            try:
                if highest(objects) != self.number:
                    self.lost.set()
                    return
                objects.replace(_key(self.number, "beat"), self._heartbeat(count))
            except Exception:  # noqa: BLE001 - the thread must go on whatever happens
                # A heartbeat that cannot be written is a missed one. The run itself will meet
                # the same fault and report it.
                continue

    def _heartbeat(self, count: int) -> bytes:
        """Return a heartbeat as JSON. If the run's state fails, its error takes its place."""
        try:
            run = self._run_state()
            encoded = json.dumps({"count": count, "run": run}, allow_nan=False).encode()
        except Exception as error:  # noqa: BLE001 - the heartbeat reports it; the lease goes on
            encoded = json.dumps({"count": count, "run": {"error": type(error).__name__}}).encode()
        if len(encoded) > MAX_HEARTBEAT_BYTES:
            return json.dumps({"count": count, "run": {"error": "too large"}}).encode()
        return encoded

    def require(self) -> None:
        """Raise if another driver has taken over this lease.

        Raises
        ------
        LeaseHeldError
            This process was suspended for longer than the timeout.
        """
        if self.lost.is_set():
            raise LeaseHeldError(
                f"{self.objects.url}: another driver took over the lease while this one was "
                "suspended. Nothing is lost: the other driver continues the run."
            )

    @contextmanager
    def reporting(self, run_state: RunState) -> Iterator[Lease]:
        """Let the heartbeats report another state while the context is open."""
        before, self._run_state = self._run_state, run_state
        try:
            yield self
        finally:
            self._run_state = before

    def release(self) -> None:
        """Stop the heartbeats and let the next driver take the lease at once."""
        self._stop.set()
        self._thread.join()
        _HELD_HERE.discard((self.objects.url, self.number))
        self.objects.create(_key(self.number, "released"), [b"released\n"])


@contextmanager
def hold(
    objects: Objects,
    *,
    log: Callable[[str], None] = lambda _: None,
    timeout_s: float = TIMEOUT_S,
    heartbeat_s: float = HEARTBEAT_S,
    run_state: RunState = dict,
    reentrant: bool = False,
) -> Iterator[Lease]:
    """Hold a store's lease while the context is open.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    log : callable
        Called with a message when the heartbeat of another holder is waited for.
    timeout_s : float
        Seconds without a heartbeat after which another holder counts as dead.
    heartbeat_s : float
        Seconds between two heartbeats of this lease.
    run_state : callable
        Returns the state of the run, which each heartbeat reports.
    reentrant : bool
        Whether holds of the same store by the same thread inside this context join this lease, so
        that no other driver can take it between the jobs of one drive.

    Raises
    ------
    LeaseHeldError
        Another driver is alive, or has taken over the lease that this hold would join.
    ConfigError
        The store is in a bucket whose server ignores conditional writes.
    """
    outer = _OUTER.get()
    if outer is not None and outer.pid != os.getpid():
        outer = None  # held by the process that this one was forked from
    if outer is not None and outer.objects.url == objects.url:
        outer.require()
        with outer.reporting(run_state):
            yield outer
        return
    lease = _acquire(objects, log, timeout_s, heartbeat_s, run_state)
    token = _OUTER.set(lease if reentrant else outer)
    try:
        yield lease
    except BaseException:
        # The exception is what matters; a release that fails, as on a full disk, adds nothing.
        with suppress(OSError):
            lease.release()
        raise
    finally:
        _OUTER.reset(token)
    lease.release()


def highest(objects: Objects) -> int:
    """Return the number of the newest lease, or 0 if there is none."""
    numbers = (name.partition(".") for name in objects.names(FOLDER))
    return max((int(n) for n, _, end in numbers if n.isdigit() and end == "json"), default=0)


def holder(objects: Objects) -> dict[str, Any] | None:
    """Return the holder of the lease (host, pid, since), or None if nobody holds it."""
    number = highest(objects)
    if number == 0 or objects.size(_key(number, "released")) is not None:
        return None
    found = _read(objects, number)
    return None if _state(objects, number, found) == "ended" else found


def last_heartbeat(objects: Objects) -> Heartbeat | None:
    """Return the newest lease's last heartbeat, or None if there is none that can be read.

    Earlier versions wrote only the count.
    """
    try:
        raw = objects.read(_key(highest(objects), "beat"), 0, MAX_HEARTBEAT_BYTES + 1)
        body = json.loads(raw) if len(raw) <= MAX_HEARTBEAT_BYTES else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if isinstance(body, int):
        return Heartbeat(body, {})
    if not isinstance(body, dict) or not isinstance(body.get("count"), int):
        return None
    run = body.get("run")
    return Heartbeat(body["count"], run if isinstance(run, dict) else {})


def _acquire(
    objects: Objects,
    log: Callable[[str], None],
    timeout_s: float,
    heartbeat_s: float,
    run_state: RunState = dict,
) -> Lease:
    number = highest(objects)
    if number and objects.size(_key(number, "released")) is None:
        other = _read(objects, number)
        state = _state(objects, number, other)
        if state == "running":
            raise _held(objects, other)
        if state == "unknown":
            _wait_for_timeout(objects, number, other, log, timeout_s)
    ours = {
        **processes.this_process(),
        "since_unix_s": time.time(),
        "nonce": uuid.uuid4().hex,
    }
    if not objects.create(_key(number + 1, "json"), [json.dumps(ours).encode()]):
        raise _held(objects, _read(objects, number + 1))
    # The store may have been planned elsewhere and copied: each bucket is asked.
    again = json.dumps({**ours, "nonce": uuid.uuid4().hex}).encode()
    require_conditions(objects, _key(number + 1, "json"), again)
    return Lease(objects, number + 1, heartbeat_s, run_state)


def _wait_for_timeout(
    objects: Objects,
    number: int,
    other: dict[str, Any],
    log: Callable[[str], None],
    timeout_s: float,
) -> None:
    """Wait until the heartbeat of a holder that cannot be looked up has not changed for a while.

    Raises
    ------
    LeaseHeldError
        The heartbeat changed: the holder is alive.
    """
    who = processes.description(other)
    log(f"{who} holds this store; waiting {timeout_s:.0f} s to see whether it is alive")
    first = _counter(objects, number)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, timeout_s / 10))
        if highest(objects) != number or objects.size(_key(number, "released")) is not None:
            return
        if _counter(objects, number) != first:
            raise _held(objects, other)


def _counter(objects: Objects, number: int) -> bytes:
    try:
        return objects.read(_key(number, "beat"))
    except FileNotFoundError:
        return b""


def _held(objects: Objects, other: dict[str, Any]) -> LeaseHeldError:
    who = processes.description(other)
    return LeaseHeldError(
        f"{objects.url}: {who} is working on this store, and one driver at a time may. Wait for "
        f"it, or stop it; `actlas status {objects.url}` shows its progress.",
        holder=other,
    )


def _key(number: int, end: str) -> str:
    return f"{FOLDER}/{number:08d}.{end}"


def _read(objects: Objects, number: int) -> dict[str, Any]:
    key = _key(number, "json")
    try:
        found = json.loads(objects.read(key))
    except ValueError as error:
        raise CorruptDataError(f"{objects.url}/{key}: this is no lease. Remove it.") from error
    if not isinstance(found, dict):
        raise CorruptDataError(f"{objects.url}/{key}: this is no lease. Remove it.")
    return found


def _state(objects: Objects, number: int, found: dict[str, Any]) -> processes.State:
    """Return the state of a lease's holder; "ended" also if this process gave up the lease."""
    state = processes.state_of(found)
    given_up = found.get("pid") == os.getpid() and (objects.url, number) not in _HELD_HERE
    return "ended" if state == "running" and given_up else state
