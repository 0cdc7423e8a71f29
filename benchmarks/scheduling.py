"""Cost of the driver: units per second on real Ray, and on a simulated cluster of 1,000 workers.

On Ray, two to four actors answer at once, so that only the driver takes time; the limit is bare
calls of the same actors in the same run. The simulated cluster (:mod:`benchmarks.simulated`) has a
thousand workers with faults, in simulated time.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from actlas.jobs.ray.cluster import connected
from actlas.jobs.scheduler.faults import Fault, FaultBudget
from actlas.jobs.scheduler.protocols import Done, Job
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt
from actlas.store.objects.local import LocalObjects
from benchmarks import harness, simulated
from benchmarks.harness import Contender, Report, Table

FATES = ("raise", "die", "hang")


def run(quick: bool) -> Report:
    """Dispatch to actors that answer at once, and to a thousand simulated workers."""
    report = Report("Scheduling")
    report.tables += [_on_ray(report, quick), _simulated(report, quick)]
    return report


class Instant:
    """A worker that answers at once without any work."""

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        return Receipt.model_construct(
            shard=shard, start=0, stop=1, objects=(), n_nonfinite={}, run={}, attempt=attempt
        )

    def bare_forward_rate(self, shard: int = 0) -> None:
        return None


def make_instant(_store: str, _run: RunOptions) -> Instant:
    return Instant()


class Counting:
    """A watch that counts, and keeps the times of the first start and the last end."""

    def __init__(self) -> None:
        self.n_done, self.began, self.ended = 0, 0.0, 0.0

    def log(self, text: str) -> None: ...

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        if not self.began and shard is not None:
            self.began = time.perf_counter()

    def done(self, done: Done) -> None:
        self.n_done += 1
        self.ended = time.perf_counter()

    def fault(self, fault: Fault, quarantined: bool) -> None:
        raise AssertionError(fault)

    def tick(self) -> None: ...


def _on_ray(report: Report, quick: bool) -> Table:
    n_units = 200 if quick else 4_000
    table = Table(
        f"{n_units:,} units that take no time, on Ray's actors",
        ("workers", "", "units per second", "of the limit"),
        notes=(
            "The limit: every unit a bare call to the same kind of actor, `ray.get` of two per "
            "worker at a time. The loading of workers is not timed.",
        ),
    )
    with connected(RunOptions(executor="ray", workers=4)):
        for workers in (2,) if quick else (2, 4):
            seconds = _seconds(n_units, workers, rounds=1 if quick else 3)
            for name, (median_s, ratio) in seconds.items():
                cells = f"{n_units / median_s:,.0f}", f"{ratio:.2f}"
                table.rows.append((str(workers), name, *cells))
                key = harness.figure_name("ray", workers, name)
                report.figures[f"{key}.units_per_s"] = n_units / median_s
                report.figures[f"{key}.ratio"] = ratio
    return table


def _seconds(n_units: int, workers: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds of each contender, and its speed relative to the limit."""
    import ray

    from actlas.jobs.executors.ray import RayCluster
    from actlas.jobs.executors.ray_worker import RayWorker
    from actlas.jobs.scheduler.driver import Driver
    from actlas.jobs.scheduler.roster import IN_FLIGHT

    run = RunOptions(executor="ray", workers=workers)
    actor_class: Any = ray.remote(RayWorker)
    actors = [actor_class.options(num_cpus=0).remote() for _ in range(workers)]
    job = Job("", run, (0,), make_instant)
    ray.get([a.prepare.remote(job, run, "bare") for a in actors])
    turns = [itertools.count() for _ in actors]
    spent: dict[str, list[float]] = {"bare calls": [], "the driver": []}
    watches: list[Counting] = []

    def bare() -> None:
        at_once = IN_FLIGHT * workers
        for first in range(0, n_units, at_once):
            units = range(first, min(first + at_once, n_units))
            one_per_unit = [(i, i % workers) for i in units]
            ray.get([actors[w].attempt.remote(i, next(turns[w])) for i, w in one_per_unit])

    def driver() -> None:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(folder, run, tuple(range(n_units)), make_instant)
            ledger = FaultBudget(LocalObjects(str(Path(folder))), "extract", run)
            watch = Counting()
            watches.append(watch)
            stop: Any = simulated.Stopless()
            Driver(job, ledger, watch, stop, RayCluster(job), time.monotonic).run()
            assert watch.n_done == n_units

    contenders = [Contender("bare calls", bare), Contender("the driver", driver)]
    measured = {m.name: m for m in harness.alternate(contenders, rounds, limit="bare calls")}
    for actor in actors:
        ray.kill(actor)
    spent["bare calls"] = list(measured["bare calls"].seconds)
    spent["the driver"] = [watch.ended - watch.began for watch in watches[1:]]
    found = {}
    for name, seconds in spent.items():
        ratios = [a / b for a, b in zip(spent["bare calls"], seconds, strict=True)]
        found[name] = sorted(seconds)[len(seconds) // 2], sorted(ratios)[len(ratios) // 2]
    return found


def _scene(scale: int) -> tuple[simulated.Scene, set[int]]:
    """Return a scenario at some scale, and the shards that must end in quarantine."""
    n_shards, n_machines = 100 * scale, max(2, scale // 8)
    rng = random.Random(scale)
    chosen = rng.sample(range(n_shards), max(6, min(60, n_shards // 200)))
    poison, unwell = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
    suffering = {shard: [FATES[i % 3]] * 9 for i, shard in enumerate(poison)}
    suffering |= {shard: [FATES[i % 3]] for i, shard in enumerate(unwell)}
    hours = 100 * 60.0
    scene = simulated.Scene(
        n_shards=n_shards,
        n_machines=n_machines,
        suffering=suffering,
        deaths_per_s=0.7 * scale / hours,
        losses_per_s=0.3 * n_machines / hours,
        late_machines=[300.0] * (n_machines // 5),
        follows=frozenset(range(0, n_shards, 3)),
        until_s=hours,
        seed=scale,
        bad_starts={5: "die", 17: "hang", 29: "raise"},
    )
    return scene, set(poison)


def _simulated(report: Report, quick: bool) -> Table:
    table = Table(
        "Simulated clusters: 100 units of about 60 s a worker, deaths, losses, hangs, poison",
        (
            "workers",
            "units",
            "deaths",
            "machines lost",
            "quarantine",
            "further attempts",
            "driver, CPU µs per unit",
            "wall, s",
            "added memory, MiB",
            "99.9 % done, of ideal",
            "all done, of ideal",
        ),
        notes=(
            "Every unit is done exactly once or is in quarantine, which is the planted set: "
            "asserted. Ideal: the computing alone, shared evenly by the workers of the beginning "
            "and those that join. What is last are units that hang, by plan, three times 900 s.",
        ),
    )
    for scale in (16,) if quick else (10, 100, 1000):
        scene, poison = _scene(scale)
        worlds: list[simulated.World] = []
        began, cpu_began = time.perf_counter(), time.process_time()
        added = harness.peak_of(lambda s=scene, w=worlds: w.append(simulated.play(s)))  # type: ignore[misc]
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        world = worlds[0]
        assert world.quarantined == poison, world.quarantined ^ poison
        n_places = (scene.n_machines + len(scene.late_machines)) * scene.places
        ideal = world.worked_s / n_places
        almost = sorted(world.done_at)[int(0.999 * len(world.done_at))]
        driver_us = (cpu - world.spent_s) / scene.n_shards * 1e6
        further = sum(world.sent.values()) - scene.n_shards
        key = f"imagined.{scale}"
        report.figures |= {
            f"{key}.driver_us_per_unit": driver_us,
            f"{key}.wall_s": wall,
            f"{key}.further_attempts": further,
            f"{key}.makespan_of_ideal": world.now / ideal,
        }
        table.rows.append(
            (
                f"{n_places:,}",
                f"{scene.n_shards:,}",
                f"{world.n_died:,}",
                f"{world.n_lost:,}",
                f"{len(world.quarantined):,}",
                f"{further:,}",
                f"{driver_us:.0f}",
                f"{wall:.1f}",
                f"{added / 2**20:.0f}",
                f"{almost / ideal:.2f}",
                f"{world.now / ideal:.2f}",
            )
        )
    return table


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.scheduling", run))
