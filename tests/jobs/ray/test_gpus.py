"""Machines with GPUs that join when the driver has begun: on a Ray that only keeps what is asked.

Nothing is started; who has a place, and what an actor answers, is what a test says.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray import exceptions as ray_errors
from support.jobs import options

from actlas.jobs.executors import ray as ray_executor
from actlas.jobs.executors.ray import RayCluster
from actlas.jobs.executors.ray_worker import Loaded
from actlas.jobs.ray import cluster as ray_cluster
from actlas.jobs.scheduler.protocols import Event, Job, Placed, Ready

HEAD = {"NodeID": "head", "Resources": {"CPU": 16.0}}
GPUS = {"NodeID": "gpus", "Resources": {"CPU": 16.0, "GPU": 4.0}}


class Call:
    """A method of an actor, and the answer to its one call."""

    def __init__(self) -> None:
        self.answer: Future[Any] = Future()

    def remote(self, *_arguments: object) -> Call:
        return self

    def future(self) -> Future[Any]:
        return self.answer


class Actor:
    """What was asked for."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.gpus, self.killed = asked["num_gpus"], False
        self.place, self.prepare = Call(), Call()

    def kill(self) -> None:
        """As Ray does: whatever it was asked is answered with an error."""
        self.killed = True
        for call in (self.place, self.prepare):
            if not call.answer.done():
                call.answer.set_exception(ray_errors.ActorDiedError())


class Imagined:
    """Ray's machines, the actors in the order in which they were asked for, and what was said."""

    def __init__(self) -> None:
        self.nodes, self.actors, self.said, self.n_looks = [HEAD], list[Actor](), list[str](), 0

    def alive(self) -> list[dict[str, Any]]:
        self.n_looks += 1
        return self.nodes

    def living(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.killed]

    def cluster(self, **asked: Any) -> RayCluster:
        run = options("ray", **{"address": "there:6379", "workers": 4, **asked})
        return RayCluster(Job("store", run, (0, 1), _nobody), self.said.append)

    def options(self, **asked: Any) -> Imagined:
        self.asked = asked
        return self

    def remote(self) -> Actor:
        self.actors.append(Actor(self.asked))
        return self.actors[-1]


def heard(cluster: RayCluster) -> list[tuple[type[Event], int]]:
    """What happened by now: events of two kinds may be equal, being tuples."""
    return [(type(event), event.worker) for event in cluster.wait(0.01)]


def _nobody(_store: str, _run: object) -> Any:
    raise AssertionError("no worker is made here")


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> Imagined:
    found = Imagined()
    remote: Callable[[type], Imagined] = lambda _class: found  # noqa: E731
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: actor.kill())
    monkeypatch.setattr(ray_cluster, "alive_nodes", found.alive)
    monkeypatch.setattr(ray_executor, "alive_nodes", found.alive)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


def test_whoever_has_no_place_is_asked_for_again_with_a_gpu(imagined: Imagined) -> None:
    cluster = imagined.cluster(workers="auto")
    assert cluster.room() == 16
    for worker in range(3):
        cluster.start(worker, f"worker {worker}")
    first = imagined.actors[0]
    first.place.answer.set_result("head")
    assert heard(cluster) == [(Placed, 0)]

    imagined.nodes = [HEAD, GPUS]
    cluster.start(3, "worker 3")
    assert cluster.room() == 4
    assert [actor.gpus for actor in imagined.living()] == [0, 1, 1, 1], "who works is left alone"
    assert heard(cluster) == [], "what the killed ones say is no one's fault"
    for actor in imagined.living()[1:]:
        actor.place.answer.set_result("gpus")
        actor.prepare.answer.set_result(Loaded(1))
    expected = [(kind, worker) for worker in (1, 2, 3) for kind in (Placed, Ready)]
    assert heard(cluster) == expected
    for worker in range(4):
        cluster.kill(worker)
    assert imagined.living() == []


def test_a_place_without_a_gpu_on_a_machine_that_just_joined_is_not_taken(
    imagined: Imagined,
) -> None:
    """Ray gives it to whoever waits, before the driver has seen the machine."""
    cluster = imagined.cluster()
    for worker in range(2):
        cluster.start(worker, f"worker {worker}")
    imagined.nodes = [HEAD, GPUS]
    for actor in imagined.actors:
        actor.place.answer.set_result("gpus")
    assert heard(cluster) == []
    assert [actor.gpus for actor in imagined.living()] == [1, 1]
    imagined.living()[1].place.answer.set_result("gpus")
    assert heard(cluster) == [(Placed, 1)]


def test_it_is_looked_though_nobody_is_started(
    imagined: Imagined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no CPU for those that wait, so nothing else would show it."""
    cluster = imagined.cluster()
    cluster.start(0, "worker 0")
    imagined.nodes = [HEAD, {"NodeID": "gpus", "Resources": {"GPU": 4.0}}]
    assert cluster.wait(0.0) == []
    assert [actor.gpus for actor in imagined.living()] == [0], "not at every wait"
    monkeypatch.setattr(ray_executor, "GPU_POLL_S", 0.0)
    cluster.wait(0.0)
    assert [actor.gpus for actor in imagined.living()] == [1]
    n_looks = imagined.n_looks
    cluster.wait(0.0)
    cluster.start(1, "worker 1")
    assert imagined.n_looks == n_looks, "once one was seen nobody looks again"


def test_what_is_said_of_gpus(imagined: Imagined) -> None:
    imagined.cluster()
    assert imagined.said == [
        "the cluster has no GPU yet: workers run on CPUs (--gpus-per-worker 1 waits for GPUs)"
    ]


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({"gpus_per_worker": 0.0}, 0),
        ({"gpus_per_worker": 1.0}, 1),
        ({"device": "cpu"}, 0),
        ({"address": None}, 0),
    ],
)
def test_what_was_asked_for_stays(imagined: Imagined, asked: dict[str, Any], gpus: int) -> None:
    cluster = imagined.cluster(**asked)
    cluster.start(0, "worker 0")
    imagined.nodes = [HEAD, GPUS]
    cluster.start(1, "worker 1")
    assert [actor.gpus for actor in imagined.living()] == [gpus, gpus]
    assert len(imagined.actors) == 2
    assert imagined.said == []
