"""Shards that cannot be done: they are put aside, and everything else is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.jobs import attempted, options, plant
from support.runs import FEW, MANY, planned

from actlas.jobs.scheduler.faults import FaultBudget, Quarantined
from actlas.store.errors import EXIT_DONE, EXIT_QUARANTINE
from actlas.store.store import Store
from chaos.conftest import Oracles, Start
from chaos.count import NONE, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos

WORDS = {
    "raise": "is poison",
    "memory": "MemoryError",
    "die": "the worker's process died",
    "hang": "TimeoutError: not done after",
}
"""What the quarantine says of each kind. ``memory`` is what the operating system refuses to a
process with a limit; what it kills for memory looks like ``die``, a SIGKILL from outside."""
WELL_AGAIN = (["raise"], ["memory", "raise"])


def quarantined(store: Store) -> dict[int, Quarantined]:
    return FaultBudget(store.objects, "extract", options()).quarantined()


@pytest.mark.parametrize("where", ["inline", "ray"])
def test_quarantine_is_exactly_the_poison(
    chaos: Chaos,
    start: Start,
    request: pytest.FixtureRequest,
    oracles: Oracles,
    ground: Path,
    where: str,
) -> None:
    begin = start if where == "inline" else request.getfixturevalue("start_on")
    kinds = ["raise", "memory"] if where == "inline" else list(WORDS)
    n_each, size = chaos.count(1, 8), FEW if chaos.form == "short" else MANY
    more = ["--max-process-deaths=3", "--deadline-floor-s=4"]
    if where == "ray":
        more += ["--workers=4"]
    store = planned(ground / "run", size, slow_s=0.01)
    chosen = chaos.rng.sample(range(store.plan.n_shards), len(kinds) * n_each * 2)
    poison = {shard: kinds[i % len(kinds)] for i, shard in enumerate(chosen[: len(chosen) // 2])}
    faults = {shard: [kind] * 9 for shard, kind in poison.items()}
    faults |= {s: WELL_AGAIN[i % 2] for i, s in enumerate(chosen[len(chosen) // 2 :])}
    plant(ground / "run", faults, slow_s=0.01)
    driver = begin(store.path, *more)
    code = driver.wait(300)
    found, missing = quarantined(store), store.missing()
    n_before = len(attempted(ground / "run"))
    again = start(store.path)  # nothing is left to do: no executor is started
    code_again = again.wait()
    n_after = len(attempted(ground / "run"))

    plant(ground / "run")
    last = start(store.path, "--retry-quarantined")
    last_code = last.wait()
    rows, said = oracles(size).count(store.path), complaints(store.path)
    wrongly = set(found) ^ set(poison)
    chaos.record(
        f"units that {', '.join(kinds)} ({where})".replace("memory", "run out of memory"),
        len(poison),
        **rows._asdict(),
        in_quarantine=len(found),
        in_quarantine_wrongly_or_not=len(wrongly),
        others_that_failed_once_or_twice=len(faults) - len(poison),
    )
    assert code == EXIT_QUARANTINE, driver.said()
    assert wrongly == set()
    assert missing == sorted(poison)
    for shard, kind in poison.items():
        assert WORDS[kind] in found[shard].error, found[shard]
        assert found[shard].faults["process" if kind == "die" else "task"] == 3
    assert code_again == EXIT_QUARANTINE
    assert n_after == n_before, "a shard in quarantine was tried again"
    assert last_code == EXIT_DONE, last.said()
    assert quarantined(store) == {}
    assert (rows, said) == (NONE, [])
