"""A cluster that is only imagined, in time that is too: machines, workers, and what befalls them.

The driver on it is the real one. A worker behaves as
:class:`actlas.jobs.scheduler.worker_loop.WorkerLoop` does: it computes one shard at a time and
writes the one before meanwhile, holding two at most. The cluster checks what it is told: never a
third shard, and a shard that failed before alone.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from actlas.jobs.scheduler.driver import Driver
from actlas.jobs.scheduler.faults import Fault, FaultKind, Ledger
from actlas.jobs.scheduler.protocols import Answer, Done, Event, Job, Lost, Placed, Ready
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ModelError
from actlas.store.objects.base import Objects

_KIND: Mapping[str, FaultKind] = {"raise": "task", "hang": "task", "die": "process"}

EMPTY_WAITS = 20_000
"""So many waits in a row without an event, and the driver waits for nothing."""


@dataclass(frozen=True)
class Scene:
    """What there is to do, where, and what goes wrong.

    ``suffering`` gives a shard's faults, one after the other: raise, die or hang. Rates are events
    per second of the imagined time, and everything is drawn from ``seed``.
    """

    n_shards: int
    n_machines: int
    places: int = 8
    """Workers that one machine holds."""
    workers: int | str = "auto"
    compute_s: float = 60.0
    write_s: float = 20.0
    spread: float = 0.3
    """The standard deviation of the logarithm of both."""
    load_s: float = 90.0
    takes: Mapping[int, float] = field(default_factory=dict)
    """Seconds that these shards are computed for, whatever the others take."""
    suffering: Mapping[int, Sequence[str]] = field(default_factory=dict)
    follows: frozenset[int] = frozenset()
    deaths_per_s: float = 0.0
    """Of processes, anywhere."""
    losses_per_s: float = 0.0
    """Of machines; a third of them freeze first, and are missed after ``freeze_s``."""
    freeze_s: float = 64.0
    joins_after_s: float = 300.0
    """How long after a machine is lost another joins."""
    late_machines: Sequence[float] = ()
    """When further machines join."""
    leaving: Sequence[float] = ()
    """When some machine is lost besides."""
    bad_starts: Mapping[int, str] = field(default_factory=dict)
    """Workers, by number, that die or hang while they load, raise, or are refused the model."""
    bad_machines: Mapping[int, str] = field(default_factory=dict)
    """Machines, by number, on which all do, after ``bad_load_s``."""
    bad_load_s: float = 30.0
    until_s: float = math.inf
    """When deaths and losses end."""
    seed: int = 0
    run: Mapping[str, object] = field(default_factory=dict)
    """Further options of the run: budgets, deadlines."""


@dataclass(slots=True)
class _Imagined:
    """A worker: what it has, what it is at, and where."""

    machine: int | None = None
    ready: bool = False
    frozen: bool = False
    held: list[int] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)
    computing: int | None = None
    computed: int | None = None
    """Waits until the one before is written."""
    writing: int | None = None


class Stopless:
    """Nobody presses Ctrl-C here."""

    requested = False
    signalled = False


class Shelf:
    """As much of a store's objects as a ledger needs."""

    def __init__(self) -> None:
        self.written: dict[str, bytes] = {}

    def replace(self, key: str, data: bytes) -> None:
        self.written[key] = data


class World:
    """The cluster, its clock, and the one who looks on."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.now = scene, 0.0
        self.rng = random.Random(scene.seed)
        self.spent_s = 0.0
        """Processor seconds spent in here, not in the driver."""
        self.done: Counter[int] = Counter()
        self.done_at: list[float] = []
        self.sent: Counter[int] = Counter()
        self.faults: dict[int, Counter[FaultKind]] = {}
        self.start_faults: Counter[FaultKind] = Counter()
        self.quarantined: set[int] = set()
        self.by_worker: dict[int, list[int]] = {}
        self.said: list[str] = []
        self.states: list[tuple[float, str, str]] = []
        """When a worker was said to be waiting, starting or gone."""
        self.n_lost = self.n_died = self.n_started = self.most = 0
        self.worked_s = 0.0
        self._failed: set[int] = set()
        self._suffered: Counter[int] = Counter()
        self._workers: dict[int, _Imagined] = {}
        self._machines: dict[int, set[int]] = {}
        self._free: dict[int, None] = {}
        """Machines with a place."""
        self._waiting: dict[int, None] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._out: list[Event] = []
        self._n_empty = 0
        self._next_machine = itertools.count()
        for _ in range(scene.n_machines):
            self._join()
        for when in scene.late_machines:
            self._at(when, self._join)
        for when in scene.leaving:
            self._at(when, self._machine_goes)
        if scene.deaths_per_s:
            self._again(scene.deaths_per_s, self._someone_dies)
        if scene.losses_per_s:
            self._again(scene.losses_per_s, self._machine_goes)

    # The clock

    def clock(self) -> float:
        """Return the imagined seconds."""
        return self.now

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), what))

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._at(self.now + seconds, what)

    def _again(self, rate: float, what: Callable[[], None]) -> None:
        """Have something happen at random, this often."""

        def happen() -> None:
            if self.now < self.scene.until_s:
                what()
                self._later(self.rng.expovariate(rate), happen)

        self._later(self.rng.expovariate(rate), happen)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self.spent_s += time.process_time() - began

    # What the driver sees

    def room(self) -> int:
        """Return the places of all machines."""
        return len(self._machines) * self.scene.places

    def start(self, worker: int, name: str) -> None:
        """Put a worker in line for a place."""
        with self._inside():
            assert worker not in self._workers
            self._workers[worker] = _Imagined()
            self._waiting[worker] = None
            self.n_started += 1
            self._later(0.0, self._seat)

    def send(self, worker: int, shard: int) -> None:
        """Check what a worker is given, and let it begin."""
        with self._inside():
            imagined = self._workers[worker]
            assert imagined.ready, "a shard for a worker that has not loaded"
            assert len(imagined.held) < 2, "a third shard"
            assert not imagined.held or not self._failed & {shard, *imagined.held}, "not alone"
            assert self.done[shard] == 0
            assert shard not in self.quarantined
            imagined.held.append(shard)
            imagined.queue.append(shard)
            self.sent[shard] += 1
            self.by_worker.setdefault(worker, []).append(shard)
            self.most = max(self.most, len(imagined.held))
            self._compute(worker, imagined)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Let time pass until something is heard."""
        with self._inside():
            end = self.now + timeout_s
            while self._agenda and not self._out and self._agenda[0][0] <= end:
                self.now, _, what = heapq.heappop(self._agenda)
                what()
            out, self._out = self._out, []
            if not out:
                self.now = end
                self._n_empty += 1
                assert self._n_empty < EMPTY_WAITS, "the driver waits for nothing"
            else:
                self._n_empty = 0
            return out

    def kill(self, worker: int) -> None:
        """End a worker."""
        with self._inside():
            self._gone(worker)

    def log(self, text: str) -> None:
        """Keep what was said."""
        self.said.append(text)

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Keep what a worker is at."""
        if state not in ("busy", "idle"):
            self.states.append((self.now, worker, state))

    def finished(self, done: Done) -> None:
        """Count a shard's end."""
        self.done[done.shard] += 1
        self.done_at.append(self.now)

    def fault(self, fault: Fault, quarantined: bool) -> None:
        """Count a fault."""
        if fault.shard is None:
            self.start_faults[fault.kind] += 1
            return
        if _KIND.get(self._fate(fault.shard)) == fault.kind:
            self._suffered[fault.shard] += 1
        self.faults.setdefault(fault.shard, Counter())[fault.kind] += 1
        self._failed.add(fault.shard)
        if quarantined:
            self.quarantined.add(fault.shard)

    def tick(self) -> None:
        """Nothing is drawn."""

    # Machines

    def _join(self) -> None:
        machine = next(self._next_machine)
        self._machines[machine] = set()
        self._free[machine] = None
        self._later(0.0, self._seat)

    def _seat(self) -> None:
        while self._waiting and self._free:
            worker = next(iter(self._waiting))
            del self._waiting[worker]
            machine = next(iter(self._free))
            there = self._machines[machine]
            there.add(worker)
            if len(there) == self.scene.places:
                del self._free[machine]
            self._workers[worker].machine = machine
            self._out.append(Placed(worker))
            bad = machine in self.scene.bad_machines
            load_s = self.scene.bad_load_s if bad else self.scene.load_s
            self._later(self._long(load_s), lambda w=worker: self._loaded(w))  # type: ignore[misc]

    def _loaded(self, worker: int) -> None:
        imagined = self._workers.get(worker)
        if imagined is None or imagined.frozen:
            return
        there = self.scene.bad_machines.get(-1 if imagined.machine is None else imagined.machine)
        fate = self.scene.bad_starts.get(worker, there)
        if fate == "die":
            self._die(worker, "process")
        if fate in ("raise", "refuse"):
            stops = ModelError("not the plan's") if fate == "refuse" else None
            fault = Fault(None, "task", "RuntimeError: no model", "", f"worker {worker}", stops)
            self._out.append(Answer(worker, fault))
        if fate is not None:
            return
        imagined.ready = True
        self._out.append(Ready(worker))

    def _someone_dies(self) -> None:
        if self._workers:
            worker = self.rng.choice(list(self._workers))
            if self._workers[worker].machine is not None and not self._workers[worker].frozen:
                self.n_died += 1
                self._die(worker, "process")

    def _machine_goes(self) -> None:
        if not self._machines:
            return
        machine = self.rng.choice(list(self._machines))
        there = sorted(self._machines.pop(machine))
        self._free.pop(machine, None)
        self.n_lost += 1
        frozen = self.rng.random() < 1 / 3
        for worker in there:
            self._workers[worker].frozen = True
            self._workers[worker].machine = None
            delay = self.scene.freeze_s if frozen else self.rng.uniform(0.0, 2.0)
            self._later(delay, lambda w=worker: self._die(w, "node"))  # type: ignore[misc]
        self._later(self.scene.joins_after_s, self._join)

    def _die(self, worker: int, kind: FaultKind) -> None:
        imagined = self._workers.get(worker)
        if imagined is None:
            return
        imagined.frozen = True  # it does no more; the driver is told, and ends it
        if not imagined.ready or imagined.held:
            self._out.append(Lost(worker, kind, f"it died ({kind})", ""))
        else:  # nobody hears of it before it is given a shard
            imagined.queue.clear()

    def _gone(self, worker: int) -> None:
        imagined = self._workers.pop(worker)
        self._waiting.pop(worker, None)
        if imagined.machine is not None:
            self._machines[imagined.machine].discard(worker)
            self._free[imagined.machine] = None
            self._later(0.0, self._seat)

    # Workers

    def _long(self, mean_s: float) -> float:
        return mean_s * math.exp(self.rng.gauss(0.0, self.scene.spread))

    def _compute(self, worker: int, imagined: _Imagined) -> None:
        """Begin the next shard, if this worker is free to."""
        if imagined.frozen:
            if imagined.queue:  # it died unheard, and this is how it comes out
                imagined.queue.clear()
                self._out.append(Lost(worker, "process", "it was dead", ""))
            return
        if imagined.computing is not None or imagined.computed is not None or not imagined.queue:
            return
        shard = imagined.computing = imagined.queue.popleft()
        fate = self._fate(shard)
        if fate == "hang":
            return
        compute_s = self.scene.takes.get(shard) or self._long(self.scene.compute_s)
        self._later(compute_s, lambda: self._end_compute(worker, shard, fate, compute_s))

    def _fate(self, shard: int) -> str:
        """Return what befalls a shard next: what it was not charged for comes again."""
        planned, n = self.scene.suffering.get(shard, ()), self._suffered[shard]
        return planned[n] if n < len(planned) else "well"

    def _end_compute(self, worker: int, shard: int, fate: str, compute_s: float) -> None:
        imagined = self._workers.get(worker)
        if imagined is None or imagined.frozen or imagined.computing != shard:
            return
        imagined.computing = None
        if fate == "die":
            self._die(worker, "process")
        elif fate == "raise":
            imagined.held.remove(shard)
            fault = Fault(shard, "task", "RuntimeError: poison", "", f"worker {worker}")
            self._out.append(Answer(worker, fault))
            self._compute(worker, imagined)
        else:
            self.worked_s += compute_s
            imagined.computed = shard
            self._write(worker, imagined)

    def _write(self, worker: int, imagined: _Imagined) -> None:
        if imagined.writing is not None or imagined.computed is None:
            return
        shard = imagined.writing = imagined.computed
        imagined.computed = None
        self._later(self._long(self.scene.write_s), lambda: self._written(worker, shard))
        self._compute(worker, imagined)

    def _written(self, worker: int, shard: int) -> None:
        imagined = self._workers.get(worker)
        if imagined is None or imagined.frozen or imagined.writing != shard:
            return
        imagined.writing = None
        imagined.held.remove(shard)
        seconds = self.scene.takes.get(shard, self.scene.compute_s) + self.scene.write_s
        self._out.append(Answer(worker, Done(shard, 1, 1, 0, seconds, f"worker {worker}", {})))
        self._write(worker, imagined)


class _Onlooker:
    """The same world by the names that a watch has."""

    def __init__(self, world: World) -> None:
        self.log, self.state, self.fault = world.log, world.state, world.fault
        self.done, self.tick = world.finished, world.tick


def play(scene: Scene, world: World | None = None) -> World:
    """Run the real driver on an imagined cluster, and return the world as it is afterwards."""
    world = world or World(scene)
    run = RunOptions.model_validate(
        {"executor": "ray", "workers": scene.workers, "deadline_floor_s": 900, **scene.run}
    )
    shelf: Objects = Shelf()  # type: ignore[assignment]
    ledger = Ledger(shelf, "extract", run)
    job = Job("imagined", run, tuple(range(scene.n_shards)), _nobody, scene.follows)
    driver = Driver(job, ledger, _Onlooker(world), Stopless(), world, world.clock)  # type: ignore[arg-type]
    driver.run()
    check(world)
    return world


def check(world: World) -> None:
    """Assert that each shard was done exactly once or is in quarantine, its budget used up."""
    scene = world.scene
    assert max(world.done.values(), default=0) <= 1, "a shard was done twice"
    done = {shard for shard, n in world.done.items() if n}
    assert done.isdisjoint(world.quarantined)
    assert done | world.quarantined == set(range(scene.n_shards)), "shards are lost"
    assert world.most <= 2
    assert not world._workers, "workers are left behind"
    budgets = RunOptions.model_validate({"workers": scene.workers, **scene.run})
    limits: dict[FaultKind, int] = {
        "task": budgets.max_task_faults,
        "process": budgets.max_process_deaths,
        "node": budgets.max_node_losses,
    }
    for shard, faults in world.faults.items():
        used_up = [kind for kind, n in faults.items() if n >= limits[kind]]
        assert all(n <= limits[kind] for kind, n in faults.items())
        assert len(used_up) == (shard in world.quarantined)


def _nobody(_store: str, _run: RunOptions) -> object:
    raise AssertionError("no worker is made in an imagined cluster")
