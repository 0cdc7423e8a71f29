"""A simulated cluster in simulated time: machines and workers with faults, under the real driver.

A worker behaves like :class:`actlas.jobs.scheduler.worker_loop.WorkerLoop`: it computes one shard
at a time and writes the shard before meanwhile, so that it holds two at most. The cluster checks
the driver's requests: never a third shard, and a shard that failed before runs alone.
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
from actlas.jobs.scheduler.faults import Fault, FaultBudget, FaultKind
from actlas.jobs.scheduler.protocols import Answer, Done, Event, Job, Lost, Placed, Ready
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ModelError
from actlas.store.objects.base import Objects

_KIND: Mapping[str, FaultKind] = {"raise": "task", "hang": "task", "die": "process"}

EMPTY_WAITS = 20_000
"""Consecutive waits without an event or a request, after which the driver is considered stuck.

They are 10,000 s; the longest limit of a shard is eight times the floor, 7,200 s.
"""


@dataclass(frozen=True)
class Scene:
    """A scenario: the work, the machines and the faults.

    ``suffering`` lists the faults of a shard in order: raise, die or hang. Rates are events per
    second of simulated time, and everything is drawn from ``seed``.
    """

    n_shards: int
    n_machines: int
    places: int = 8
    """Workers per machine."""
    workers: int | str = "auto"
    compute_s: float = 60.0
    write_s: float = 20.0
    spread: float = 0.3
    """Standard deviation of the logarithm of both times."""
    load_s: float = 90.0
    takes: Mapping[int, float] = field(default_factory=dict)
    """Compute time of single shards, in seconds."""
    suffering: Mapping[int, Sequence[str]] = field(default_factory=dict)
    follows: frozenset[int] = frozenset()
    deaths_per_s: float = 0.0
    """Rate of deaths of processes."""
    losses_per_s: float = 0.0
    """Rate of losses of machines; a third of them freeze first, unnoticed for ``freeze_s``."""
    freeze_s: float = 64.0
    joins_after_s: float = 300.0
    """Seconds after the loss of a machine at which another joins."""
    late_machines: Sequence[float] = ()
    """Times at which further machines join."""
    leaving: Sequence[float] = ()
    """Times of further losses of a machine."""
    bad_starts: Mapping[int, str] = field(default_factory=dict)
    """Faults of workers while loading, by number: die, hang, raise, or the model is refused."""
    bad_machines: Mapping[int, str] = field(default_factory=dict)
    """Faults of all workers of a machine, by number, after ``bad_load_s``."""
    bad_load_s: float = 30.0
    blips: Sequence[tuple[float, float]] = ()
    """Times from and to which every answer on its way to the driver is lost."""
    until_s: float = math.inf
    """Time after which deaths and losses end."""
    seed: int = 0
    run: Mapping[str, object] = field(default_factory=dict)
    """Further options of the run: budgets, deadlines."""


@dataclass(slots=True)
class _SimulatedWorker:
    """The state of a simulated worker."""

    machine: int | None = None
    ready: bool = False
    frozen: bool = False
    held: list[int] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)
    computing: int | None = None
    computed: int | None = None
    """The shard that waits until the shard before is written."""
    writing: int | None = None
    unheard: list[Event] = field(default_factory=list)
    """Answers that a blip has lost, which a ping brings again."""


class Stopless:
    """A stop switch that is never pressed."""

    requested = False
    signalled = False


class Shelf:
    """The part of a store's objects that a ledger needs."""

    def __init__(self) -> None:
        self.written: dict[str, bytes] = {}

    def replace(self, key: str, data: bytes) -> None:
        self.written[key] = data


class World:
    """The simulated cluster with its clock and its observer."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.now = scene, 0.0
        self.rng = random.Random(scene.seed)
        self.spent_s = 0.0
        """CPU seconds of the simulation, without the driver."""
        self.done: Counter[int] = Counter()
        self.done_at: list[float] = []
        self.sent: Counter[int] = Counter()
        self.faults: dict[int, Counter[FaultKind]] = {}
        self.start_faults: Counter[FaultKind] = Counter()
        self.quarantined: set[int] = set()
        self.by_worker: dict[int, list[int]] = {}
        self.said: list[str] = []
        self.states: list[tuple[float, str, str]] = []
        """Times of reports that a worker is waiting, starting or gone."""
        self.n_lost = self.n_died = self.n_started = self.most = 0
        self.worked_s = 0.0
        self._failed: set[int] = set()
        self._suffered: Counter[int] = Counter()
        self._workers: dict[int, _SimulatedWorker] = {}
        self._machines: dict[int, set[int]] = {}
        self._free: dict[int, None] = {}
        """Machines with a free place."""
        self._waiting: dict[int, None] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._out: list[Event] = []
        self.n_pings = 0
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
        """Return the simulated time in seconds."""
        return self.now

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), what))

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._at(self.now + seconds, what)

    def _again(self, rate: float, what: Callable[[], None]) -> None:
        """Schedule a random event with a rate, repeatedly."""

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
        """Queue a worker for a place."""
        with self._inside():
            assert worker not in self._workers
            self._n_empty = 0
            self._workers[worker] = _SimulatedWorker()
            self._waiting[worker] = None
            self.n_started += 1
            self._later(0.0, self._seat)

    def send(self, worker: int, shard: int) -> None:
        """Check the request, and start the shard."""
        with self._inside():
            self._n_empty = 0
            state = self._workers[worker]
            assert state.ready, "a shard for a worker that has not loaded"
            assert len(state.held) < 2, "a third shard"
            assert not state.held or not self._failed & {shard, *state.held}, "not alone"
            assert self.done[shard] == 0
            assert shard not in self.quarantined
            state.held.append(shard)
            state.queue.append(shard)
            self.sent[shard] += 1
            self.by_worker.setdefault(worker, []).append(shard)
            self.most = max(self.most, len(state.held))
            self._compute(worker, state)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Advance the time to the next event that the driver sees."""
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

    def ping(self, worker: int) -> None:
        """Bring the answers again that were lost, if this one is not lost as well."""
        with self._inside():
            self.n_pings += 1
            self._later(0.1, lambda: self._repeat(worker))

    def kill(self, worker: int) -> None:
        """End a worker."""
        with self._inside():
            self._n_empty = 0
            self._gone(worker)

    def log(self, text: str) -> None:
        """Keep a message."""
        self.said.append(text)

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Keep the state of a worker."""
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
        """Draw no progress bar."""

    # Answers

    def _tell(self, event: Event) -> None:
        """Let an answer arrive, or keep it with its worker during a blip."""
        if any(start <= self.now < stop for start, stop in self.scene.blips):
            self._workers[event.worker].unheard.append(event)
        else:
            self._out.append(event)

    def _repeat(self, worker: int) -> None:
        state = self._workers.get(worker)
        if state is not None and not state.frozen:
            events, state.unheard = state.unheard, []
            for event in events:
                self._tell(event)

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
            self._tell(Placed(worker))
            bad = machine in self.scene.bad_machines
            load_s = self.scene.bad_load_s if bad else self.scene.load_s
            self._later(self._long(load_s), lambda w=worker: self._loaded(w))  # type: ignore[misc]

    def _loaded(self, worker: int) -> None:
        state = self._workers.get(worker)
        if state is None or state.frozen:
            return
        there = self.scene.bad_machines.get(-1 if state.machine is None else state.machine)
        fate = self.scene.bad_starts.get(worker, there)
        if fate == "die":
            self._die(worker, "process")
        if fate in ("raise", "refuse"):
            stops = ModelError("not the plan's") if fate == "refuse" else None
            fault = Fault(None, "task", "RuntimeError: no model", "", f"worker {worker}", stops)
            self._tell(Answer(worker, fault))
        if fate is not None:
            return
        state.ready = True
        self._tell(Ready(worker))

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
        state = self._workers.get(worker)
        if state is None:
            return
        state.frozen = True  # it stops working; the driver is notified, and ends it
        if not state.ready or state.held:
            self._out.append(Lost(worker, kind, f"it died ({kind})", ""))
        else:  # the driver notices when it sends a shard
            state.queue.clear()

    def _gone(self, worker: int) -> None:
        state = self._workers.pop(worker)
        self._waiting.pop(worker, None)
        if state.machine is not None:
            self._machines[state.machine].discard(worker)
            self._free[state.machine] = None
            self._later(0.0, self._seat)

    # Workers

    def _long(self, mean_s: float) -> float:
        return mean_s * math.exp(self.rng.gauss(0.0, self.scene.spread))

    def _compute(self, worker: int, state: _SimulatedWorker) -> None:
        """Start the next shard, if the worker is free."""
        if state.frozen:
            if state.queue:  # the unnoticed death is noticed here
                state.queue.clear()
                self._out.append(Lost(worker, "process", "it was dead", ""))
            return
        if state.computing is not None or state.computed is not None or not state.queue:
            return
        shard = state.computing = state.queue.popleft()
        fate = self._fate(shard)
        if fate == "hang":
            return
        compute_s = self.scene.takes.get(shard) or self._long(self.scene.compute_s)
        self._later(compute_s, lambda: self._end_compute(worker, shard, fate, compute_s))

    def _fate(self, shard: int) -> str:
        """Return the next fault of a shard; one that was not charged to the shard comes again."""
        planned, n = self.scene.suffering.get(shard, ()), self._suffered[shard]
        return planned[n] if n < len(planned) else "well"

    def _end_compute(self, worker: int, shard: int, fate: str, compute_s: float) -> None:
        state = self._workers.get(worker)
        if state is None or state.frozen or state.computing != shard:
            return
        state.computing = None
        if fate == "die":
            self._die(worker, "process")
        elif fate == "raise":
            state.held.remove(shard)
            fault = Fault(shard, "task", "RuntimeError: poison", "", f"worker {worker}")
            self._tell(Answer(worker, fault))
            self._compute(worker, state)
        else:
            self.worked_s += compute_s
            state.computed = shard
            self._write(worker, state)

    def _write(self, worker: int, state: _SimulatedWorker) -> None:
        if state.writing is not None or state.computed is None:
            return
        shard = state.writing = state.computed
        state.computed = None
        self._later(self._long(self.scene.write_s), lambda: self._written(worker, shard))
        self._compute(worker, state)

    def _written(self, worker: int, shard: int) -> None:
        state = self._workers.get(worker)
        if state is None or state.frozen or state.writing != shard:
            return
        state.writing = None
        state.held.remove(shard)
        seconds = self.scene.takes.get(shard, self.scene.compute_s) + self.scene.write_s
        self._tell(Answer(worker, Done(shard, 1, 1, 0, seconds, f"worker {worker}", {})))
        self._write(worker, state)


class _Onlooker:
    """The same world by the names that a watch has."""

    def __init__(self, world: World) -> None:
        self.log, self.state, self.fault = world.log, world.state, world.fault
        self.done, self.tick = world.finished, world.tick


def play(scene: Scene, world: World | None = None) -> World:
    """Run the real driver on a simulated cluster, and return the world afterwards."""
    world = world or World(scene)
    run = RunOptions.model_validate(
        {"executor": "ray", "workers": scene.workers, "deadline_floor_s": 900, **scene.run}
    )
    shelf: Objects = Shelf()  # type: ignore[assignment]
    ledger = FaultBudget(shelf, "extract", run)
    job = Job("state", run, tuple(range(scene.n_shards)), _nobody, scene.follows)
    driver = Driver(job, ledger, _Onlooker(world), Stopless(), world, world.clock)  # type: ignore[arg-type]
    driver.run()
    check(world)
    return world


def check(world: World) -> None:
    """Assert that each shard was done exactly once, or is in quarantine with its budget used up."""
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
    raise AssertionError("a simulated cluster makes no workers")
