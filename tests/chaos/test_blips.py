"""Three hosts on a bridge, and the cable of one is pulled for a while: nothing waits for ever.

A connection over which nothing is sent does not break when the cable is pulled; but an answer that
is sent meanwhile is given up after 20 s by its sender alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts import Hosts, unavailable
from support.processes import until
from support.runs import SMALL, planned

from actlas.store.errors import EXIT_DONE
from chaos.conftest import Oracles
from chaos.count import NONE, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos

PHASES = ("loading", "computing", "writing")
LENGTHS_S = (25, 35, 100)
PHASE_S = 2.0
"""How long a worker takes for the phase in which the cable is pulled: its answer is sent soon,
and given up before the cable is back."""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if (reason := unavailable()) is not None:
        pytest.skip(f"NO NETWORK BLIP IS TRIED: {reason}")
    with Hosts(tmp_path) as hosts:
        yield hosts


@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("length_s", LENGTHS_S)
def test_a_pulled_cable(
    chaos: Chaos, hosts: Hosts, oracles: Oracles, ground: Path, phase: str, length_s: int
) -> None:
    store = planned(ground, SMALL, slow_in=phase, slow_s=PHASE_S)
    driver = hosts.drive(store.path, "--workers=2")
    marks = ground / f"{phase}.txt"
    assert until(lambda: marks.exists() and len(marks.read_text().split()) >= 2, 120) is not None
    with hosts.cut(1):
        time.sleep(length_s)
    assert driver.wait(300) == EXIT_DONE, hosts.said()
    rows = oracles(SMALL).count(store.path)
    chaos.record("network blip", 1, **rows._asdict(), seconds=length_s)
    assert (rows, complaints(store.path)) == (NONE, [])


@pytest.fixture(autouse=True)
def _long_form(chaos: Chaos) -> None:
    """In the short form the simulated cluster has the blips: a cluster of hosts starts slowly."""
    if chaos.form == "short":
        pytest.skip("in the long form: each takes a minute or more")
