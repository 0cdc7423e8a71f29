"""A driver of another user, from whom ``/proc`` hides ours (``hidepid=2``), on the same store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.namespaces import in_surroundings, open_to_others, require
from support.processes import until
from support.runs import SMALL, planned
from support.workers import attempts, open_gate

from actlas.store.errors import EXIT_DONE, EXIT_RESUME
from chaos.conftest import Oracles, Start
from chaos.count import NONE, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos

HIDDEN = "hidepid=2"


def open_to_all(folder: Path) -> None:
    for where, _, names in os.walk(folder):
        Path(where).chmod(0o777)
        for name in names:
            (Path(where) / name).chmod(0o666)


def test_a_driver_that_another_user_cannot_see(
    chaos: Chaos, start: Start, oracles: Oracles, ground: Path
) -> None:
    """While it lives it keeps its lease; once it is killed, the other takes over at once."""
    require(HIDDEN)
    open_to_others(ground)
    wanted, rows, said, taken_from_the_living = chaos.count(1, 10), NONE, [], 0
    for n in range(wanted):
        folder = ground / str(n)
        store = planned(folder, SMALL, {2: ["gate"]})
        theirs = start(store.path, ACTLAS_TEST_STANDSTILL="1")
        assert until(lambda folder=folder: len(attempts(folder)) > 2, 60) is not None
        open_to_all(ground)

        def ours(path: str = store.path) -> tuple[int, str]:
            driver = start(path, before=in_surroundings(HIDDEN), ACTLAS_TEST_STANDSTILL="60")
            return driver.wait(), driver.said()

        code, words = ours()
        taken_from_the_living += code != EXIT_RESUME
        assert "is working on this store" in words
        assert theirs.code() is None
        assert theirs.kill()
        open_gate(folder)
        open_to_all(ground)
        code, words = ours()
        assert code == EXIT_DONE, words
        assert "holds this store" not in words, "the lease of the dead was waited for"
        rows += oracles(SMALL).count(store.path)
        said += complaints(store.path)
    chaos.record(
        "another user's driver, hidden by hidepid=2: alive, then killed",
        2 * wanted,
        **rows._asdict(),
        leases_taken_from_the_living=taken_from_the_living,
    )
    assert (rows, said, taken_from_the_living) == (NONE, [], 0)
