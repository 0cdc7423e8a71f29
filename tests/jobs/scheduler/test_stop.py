"""What a signal ends: all that is left to do, and a process that was told twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import state_machine as machine
from support.jobs import options

from actlas.jobs.run.run import run_extraction
from actlas.store.errors import EXIT_DONE, EXIT_RESUME
from actlas.store.store import open_store
from actlas.store.write.commit import commit_pooled

HANGS = """
import logging, os, signal, time
from actlas.jobs.scheduler import stop

stop.LAST_S = {last_s}
stop.terminate_as_interrupt()
with stop.Stop(lambda text: None):
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


def test_a_signal_in_the_last_shard_of_rows_begins_no_pooled_ones(tmp_path: Path) -> None:
    store = machine.plan_store(str(tmp_path / "run.zarr"), "first")
    computed: list[str] = []

    class Worker:
        def __init__(self, job: str) -> None:
            self.job = job

        def extract(self, shard: int, *, attempt: str) -> Any:
            computed.append(f"{self.job} {shard}")
            opened = open_store(store.path)
            if self.job == "pooled":
                return commit_pooled(
                    opened, shard, machine.pooled_rows(opened, shard), attempt=attempt
                )
            if shard == store.plan.n_shards - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            machine.commit_one(store.path, attempt, shard)
            return opened.receipt(shard)

        def bare_forward_rate(self, shard: int = 0) -> None:
            """There is no model."""

    def run() -> Any:
        return run_extraction(
            store, options(), lambda *_: Worker("rows"), lambda *_: Worker("pooled")
        )

    stopped = run()
    assert stopped.exit_code == EXIT_RESUME and "stopped before pooling" in stopped.line
    assert not any("pooled" in one for one in computed)
    assert run().exit_code == EXIT_DONE
    assert len(set(computed)) == len(computed) == 3 + 2
