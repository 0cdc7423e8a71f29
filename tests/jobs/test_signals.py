"""A process that was told twice to stop ends, whatever it hangs in."""

from __future__ import annotations

import subprocess
import sys

from actlas.store.errors import EXIT_RESUME

HANGS = """
import logging, os, signal, time
from actlas.jobs import signals

signals.LAST_S = {last_s}
signals.terminate_as_interrupt()
with signals.Stop(lambda text: None):
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep({hangs_s})  # as where the signal met the holder of a lock
"""


def run(last_s: float, hangs_s: float) -> int:
    code = HANGS.format(last_s=last_s, hangs_s=hangs_s)
    return subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode


def test_a_hanging_process_is_ended() -> None:
    assert run(last_s=0.5, hangs_s=45) == EXIT_RESUME


def test_one_that_ends_by_itself_is_left_alone() -> None:
    assert run(last_s=30, hangs_s=0.1) == 0
