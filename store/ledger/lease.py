"""One driver per store: a lease with a heartbeat, taken over when its holder is dead.

Leases are numbered, and each is created once: ``ledger/lease/00000003.json``. The highest number
holds, until ``…3.released`` says that it ended or its holder is found dead: at once where the
holder's process is gone from this very boot of this host, otherwise when its counter
(``…3.beat``) has stood still for 60 s by the newcomer's own clock. A lease is fencing for drivers
only; what protects the rows is that shards are created once.

A beat also says how the run stands, for those who look on from elsewhere::

    {"count": 17, "run": {"n_rows_done": 65536, ...}}
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from actlas.store.errors import CorruptDataError, LeaseHeldError
from actlas.store.objects.base import Objects

FOLDER = "ledger/lease"

STANDSTILL_S = 60.0

BEAT_S = 5.0

BEAT_LIMIT_S = 10.0
"""A request of a beat is given up after this: there are two, and several beats in a standstill."""

MAX_BEAT_BYTES = 64 << 10
"""A beat that would be larger says nothing of the run, and of one that is, nothing is read."""

_HELD_HERE: set[tuple[str, int]] = set()
"""Leases of this process (url, number): one whose release failed is not held by us for ever."""

_AROUND: ContextVar[Lease | None] = ContextVar("lease around", default=None)
"""The lease that holds of this thread join."""

Tell = Callable[[], dict[str, Any]]
"""Returns how the run stands, as plain values for JSON; called from the thread that beats."""


class Beat(NamedTuple):
    """What a holder said last: how often it has beaten, and how its run stands.

    Whoever wrote the store may have written anything in ``run``.
    """

    n_beats: int
    run: dict[str, Any]


class Lease:
    """A held lease. Its thread beats until :meth:`release`."""

    def __init__(self, objects: Objects, number: int, beat_s: float, tell: Tell = dict) -> None:
        self.objects = objects
        self.number = number
        self.pid = os.getpid()
        self._tell = tell
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._beat_s = beat_s
        _HELD_HERE.add((objects.url, number))
        self._thread = threading.Thread(target=self._beat, name="actlas-lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        # An outage may be tried out for longer than a standstill: whoever does looks dead.
        objects, count = self.objects.within(BEAT_LIMIT_S), 0
        while not self._stop.wait(self._beat_s):
            count += 1
            try:
                if highest(objects) != self.number:
                    self.lost.set()
                    return
                objects.replace(_key(self.number, "beat"), self._words(count))
            except Exception:  # noqa: BLE001 - whatever it is, the thread must go on beating
                # A beat that cannot be written is a beat missed: the run itself will meet the
                # same fault and say so.
                continue

    def _words(self, count: int) -> bytes:
        """Return a beat. What cannot be told of the run does not keep the lease from beating."""
        try:
            run = self._tell()
            words = json.dumps({"count": count, "run": run}, allow_nan=False).encode()
        except Exception as error:  # noqa: BLE001 - it is told to who looks on; the lease goes on
            words = json.dumps({"count": count, "run": {"error": type(error).__name__}}).encode()
        if len(words) > MAX_BEAT_BYTES:
            return json.dumps({"count": count, "run": {"error": "too large"}}).encode()
        return words

    def require(self) -> None:
        """Raise where another driver took over while this one stood still.

        Raises
        ------
        LeaseHeldError
        """
        if self.lost.is_set():
            raise LeaseHeldError(
                f"{self.objects.url}: another driver took over the lease while this one stood "
                "still. Nothing is lost: it goes on."
            )

    @contextmanager
    def telling(self, tell: Tell) -> Iterator[Lease]:
        """Let the beats tell of a part of this drive."""
        before, self._tell = self._tell, tell
        try:
            yield self
        finally:
            self._tell = before

    def release(self) -> None:
        """Stop beating and let the next driver in at once."""
        self._stop.set()
        self._thread.join()
        _HELD_HERE.discard((self.objects.url, self.number))
        self.objects.create(_key(self.number, "released"), [b"released\n"])


@contextmanager
def hold(
    objects: Objects,
    *,
    say: Callable[[str], None] = lambda _: None,
    standstill_s: float = STANDSTILL_S,
    beat_s: float = BEAT_S,
    tell: Tell = dict,
    around: bool = False,
) -> Iterator[Lease]:
    """Hold a store's lease, or say who does.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    say : callable
        Is told when another holder's heartbeat is waited for.
    standstill_s : float
        How long a holder's counter must stand still before it counts as dead.
    beat_s : float
        Between two beats of our own.
    tell : callable
        Returns how the run stands, to go with each beat.
    around : bool
        Whether holds of this store inside this one, by this thread, are this one: a drive that
        goes through several jobs lets nobody in between them.

    Raises
    ------
    LeaseHeldError
        Another driver is alive, or took over the lease around this hold.
    """
    outer = _AROUND.get()
    if outer is not None and outer.pid != os.getpid():
        outer = None  # of the process that this one was forked from
    if outer is not None and outer.objects.url == objects.url:
        outer.require()
        with outer.telling(tell):
            yield outer
        return
    lease = _acquire(objects, say, standstill_s, beat_s, tell)
    token = _AROUND.set(lease if around else outer)
    try:
        yield lease
    except BaseException:
        # What went wrong is on its way; that the disk is too full to say goodbye adds nothing.
        with suppress(OSError):
            lease.release()
        raise
    finally:
        _AROUND.reset(token)
    lease.release()


def highest(objects: Objects) -> int:
    """Return the number of the newest lease, 0 where there is none."""
    numbers = (name.partition(".") for name in objects.names(FOLDER))
    return max((int(n) for n, _, end in numbers if n.isdigit() and end == "json"), default=0)


def holder(objects: Objects) -> dict[str, Any] | None:
    """Return who holds the lease (host, pid, since), or None where nobody does."""
    number = highest(objects)
    if number == 0 or objects.size(_key(number, "released")) is not None:
        return None
    who = _read(objects, number)
    return None if _dead_here(objects, number, who) else who


def last_beat(objects: Objects) -> Beat | None:
    """Return the newest lease's last beat, or None where there is none that can be read.

    Earlier versions wrote the count alone.
    """
    try:
        raw = objects.read(_key(highest(objects), "beat"), 0, MAX_BEAT_BYTES + 1)
        body = json.loads(raw) if len(raw) <= MAX_BEAT_BYTES else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if isinstance(body, int):
        return Beat(body, {})
    if not isinstance(body, dict) or not isinstance(body.get("count"), int):
        return None
    run = body.get("run")
    return Beat(body["count"], run if isinstance(run, dict) else {})


def beside_us(who: dict[str, Any]) -> bool:
    """Whether a holder's process numbers are ours: whether it lives is then seen at once."""
    same = {"host": socket.gethostname(), "boot": _boot(), "pid_namespace": _pid_namespace()}
    return all(who.get(key) == value for key, value in same.items()) and _boot() is not None


def _acquire(
    objects: Objects,
    say: Callable[[str], None],
    standstill_s: float,
    beat_s: float,
    tell: Tell = dict,
) -> Lease:
    number = highest(objects)
    if number and objects.size(_key(number, "released")) is None:
        who = _read(objects, number)
        if not _dead_here(objects, number, who):
            if beside_us(who):
                raise _held(objects, who)
            _wait_for_standstill(objects, number, who, say, standstill_s)
    me = {**_me(), "nonce": uuid.uuid4().hex}
    if not objects.create(_key(number + 1, "json"), [json.dumps(me).encode()]):
        raise _held(objects, _read(objects, number + 1))
    return Lease(objects, number + 1, beat_s, tell)


def _wait_for_standstill(
    objects: Objects,
    number: int,
    who: dict[str, Any],
    say: Callable[[str], None],
    standstill_s: float,
) -> None:
    say(f"{_words(who)} holds this store; waiting {standstill_s:.0f} s to see whether it is alive")
    first = _counter(objects, number)
    deadline = time.monotonic() + standstill_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, standstill_s / 10))
        if highest(objects) != number or objects.size(_key(number, "released")) is not None:
            return
        if _counter(objects, number) != first:
            raise _held(objects, who)


def _counter(objects: Objects, number: int) -> bytes:
    try:
        return objects.read(_key(number, "beat"))
    except FileNotFoundError:
        return b""


def _held(objects: Objects, who: dict[str, Any]) -> LeaseHeldError:
    return LeaseHeldError(
        f"{objects.url}: {_words(who)} is working on this store, and one driver at a time may. "
        f"Wait for it, or stop it; `actlas status {objects.url}` shows how far it is.",
        holder=who,
    )


def _words(who: dict[str, Any]) -> str:
    return f"process {who.get('pid')} on {who.get('host')}"


def _key(number: int, end: str) -> str:
    return f"{FOLDER}/{number:08d}.{end}"


def _read(objects: Objects, number: int) -> dict[str, Any]:
    key = _key(number, "json")
    try:
        who = json.loads(objects.read(key))
    except ValueError as error:
        raise CorruptDataError(f"{objects.url}/{key}: not a lease. Remove it.") from error
    if not isinstance(who, dict):
        raise CorruptDataError(f"{objects.url}/{key}: not a lease. Remove it.")
    return who


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "pid_namespace": _pid_namespace(),
        "process_start": _process_start(pid),
        "since_unix_s": time.time(),
    }


def _boot() -> str | None:
    """Return the kernel's id of this boot, where it has one."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else None


def _pid_namespace() -> str | None:
    """Return which numbering of processes this one is in: containers have their own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks: pids are used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def _dead_here(objects: Objects, number: int, who: dict[str, Any]) -> bool:
    """Whether the holder was a process of this boot of this host and is gone, or done with it."""
    if not beside_us(who):
        return False
    pid = who.get("pid")
    if not isinstance(pid, int):
        return True
    started = _process_start(pid)
    if started is None or started != who.get("process_start") or _zombie(pid):
        return True
    return pid == os.getpid() and (objects.url, number) not in _HELD_HERE


def _zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
