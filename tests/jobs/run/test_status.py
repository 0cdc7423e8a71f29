from __future__ import annotations

import json
import time
from typing import Any

import pytest
from click.testing import CliRunner
from support.stores import fill

from actlas.jobs.cli import status as status_verb
from actlas.jobs.cli import status_lines
from actlas.jobs.monitor import heartbeat as holding
from actlas.jobs.monitor.heartbeat import Snapshot
from actlas.jobs.monitor.run_stats import RunStats
from actlas.jobs.run import status
from actlas.jobs.scheduler.protocols import Done
from actlas.store.errors import FormatError
from actlas.store.format.schema import Receipt
from actlas.store.ledger import lease
from actlas.store.objects import processes
from actlas.store.store import Store

STRANGE: list[bytes] = [
    b"", b"12", b"[]", b"{", b'{"count": 1, "run": []}', b"[" * 50_000, b"\xff\xfe",
    b'{"count": 3, "run": {"n_rows": "x", "workers": [1, {"worker": 3, "shards": "ab"}], '
    b'"states": [], "faults": {"a\\u001b[31m": 1e999}, "seconds_left": NaN}}',
    b'{"count": 3, "run": {"n_rows": 5, "workers": [{"worker": "\\u001b[2J", "seconds": -1}]}}',
    b" " * (lease.MAX_HEARTBEAT_BYTES + 5),
]  # fmt: skip


def elsewhere(store: Store, beat: bytes, since_unix_s: float = 0.0) -> None:
    """A driver of another host holds the lease."""
    who = {"host": "elsewhere", "boot": "x", "pid": 7, "since_unix_s": since_unix_s}
    store.objects.create(f"{lease.FOLDER}/00000001.json", [json.dumps(who).encode()])
    store.objects.replace(f"{lease.FOLDER}/00000001.beat", beat)


@pytest.mark.parametrize("beat", STRANGE)
def test_no_beat_breaks_it(store: Store, beat: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "SECOND_LOOK_S", 0.0)
    elsewhere(store, beat)
    found = status.status_of(store)
    assert found.perhaps_dead and not found.running
    held = holding.observe_holder(store.objects)
    told = found.model_copy(update={"perhaps_dead": False})
    text = "\n".join(status_lines.lines(told, held.snapshot))
    assert "\x1b" not in text
    json.dumps(held.snapshot.plain(), allow_nan=False)


def test_a_counter_that_moves_lives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(store, b'{"count": 1, "run": {}}')
    key = f"{lease.FOLDER}/00000001.beat"

    def beats(_: float) -> None:
        store.objects.replace(key, b'{"count": 2, "run": {}}')

    monkeypatch.setattr(holding.time, "sleep", beats)
    first = holding.observe_holder(store.objects)
    assert first.alive
    still = first._replace(changed_s=first.changed_s - holding.STILL_S - 1)
    assert not holding.observe_holder(store.objects, still).alive
    store.objects.replace(key, b'{"count": 3, "run": {}}')
    assert holding.observe_holder(store.objects, still).alive


def test_when_a_driver_elsewhere_was_heard(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own clock until we saw it beat; then by ours, whatever its clock says."""

    def line(held: holding.HolderState) -> str:
        told = status.status_of(store, holding=held)
        lines = status_lines.lines(told, held.snapshot)
        return next(line for line in lines if line.startswith("driver"))

    now = [1000.0]
    monkeypatch.setattr(holding.time, "monotonic", lambda: now[0])
    elsewhere(store, b'{"count": 1, "run": {}}', since_unix_s=time.time())
    first = holding.observe_holder(store.objects)
    assert line(first) == "driver      process 7 on elsewhere holds the lease; no heartbeat yet"

    key, wrong_by = f"{lease.FOLDER}/00000001.beat", 7200
    for n in (2, 3):
        body = {"count": n, "run": {"written_unix_s": time.time() - wrong_by}}
        store.objects.replace(key, json.dumps(body).encode())
        if n == 2:
            assert "; last heartbeat 2 h 00 min ago by its clock" in line(
                first._replace(snapshot=Snapshot(body["run"]))  # type: ignore[arg-type]
            )
        now[0] += 5.0
        seen = holding.observe_holder(store.objects, first)
        first = seen
    now[0] += 3.0
    assert line(seen).endswith("holds the lease; last heard 3.0 s ago")
    later = holding.observe_holder(store.objects, seen)
    assert line(later).endswith("holds the lease; last heard 3.0 s ago"), "another look is no beat"
    now[0] += holding.STILL_S
    still = holding.observe_holder(store.objects, later)
    assert "perhaps dead: last heard 23 s ago; a new run" in line(still)
    monkeypatch.setattr(processes, "state_of", lambda _: "running")
    assert line(later).endswith("holds the lease"), "on this machine it is known to live"


def test_a_second_look_that_sees_a_beat_says_when(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(store, b'{"count": 1, "run": {}}')

    def beats(_: float) -> None:
        store.objects.replace(f"{lease.FOLDER}/00000001.beat", b'{"count": 2, "run": {}}')

    monkeypatch.setattr(holding.time, "sleep", beats)
    found = status.status_of(store)
    assert found.running and found.last_heard_s is not None and 0 <= found.last_heard_s < 60


def test_what_a_driver_tells_is_read_back(store: Store) -> None:
    tally = RunStats(n_rows=1000, n_rows_before=0, n_shards=12)
    for i in range(1000):
        tally.on_state(f"worker {i}", "busy", i)
        tally.on_state(f"worker {i}", "busy", 1000 + i)
    tally.on_done(Done(3, 64, 9, 0, 1.0, "worker 3", {"n_tokens_fed": 70.0}))
    words: dict[str, Any] = tally.snapshot()
    assert len(json.dumps(words)) < lease.MAX_HEARTBEAT_BYTES
    read = Snapshot(json.loads(json.dumps(words)))
    assert read.plain()["n_in_flight"] == 1999
    assert len(read.workers()) == 64
    assert read.workers()[0]["shards"] == [0, 1000]
    assert tally.workers["worker 3"].shards == [1003]
    assert {f.shard for f in tally.in_flight()} == {*range(1000)} - {3} | {1003}


def test_a_beat_carries_the_run_and_a_broken_teller_stops_nothing(store: Store) -> None:
    told = iter([{"n_rows": 5.0}])
    with lease.hold(store.objects, heartbeat_s=0.02, run_state=lambda: next(told)) as held:
        seen = []
        while not seen or seen[-1] != {"error": "StopIteration"}:
            beat = lease.last_heartbeat(store.objects)
            if beat is not None and (not seen or beat.run != seen[-1]):
                seen.append(beat.run)
        assert not held.lost.is_set()
    assert lease.holder(store.objects) is None


def test_a_sample_is_said_to_be_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, range(10))
    whole = status.status_of(store)
    monkeypatch.setattr(status, "N_SAMPLE", 4)
    part, full = status.status_of(store), status.status_of(store, full=True)
    assert (whole.estimated, part.estimated, full.estimated) == (False, True, False)
    assert part.rows == whole.rows and part.shards == whole.shards
    assert part.n_bytes == pytest.approx(whole.n_bytes, rel=0.1)
    assert full.n_bytes == whole.n_bytes
    from actlas.jobs.cli.app import cli

    assert "stored      about " in CliRunner().invoke(cli, ["status", store.path]).stdout


def receipts_at(store: Store, times: list[float], compute_s: float) -> list[Receipt]:
    """Receipts of shards of 64 rows, written at those times."""
    fill(store, [0])
    one = store.receipts().read(0).model_copy(update={"run": {"compute_s": compute_s}})
    return [one.model_copy(update={"shard": i, "created_unix_s": t}) for i, t in enumerate(times)]


def test_the_time_between_two_runs_is_no_slowness(store: Store) -> None:
    steady = [100.0 + 2 * i for i in range(6)]
    rate = status.rows_per_s(receipts_at(store, steady, 2.0))
    assert rate == pytest.approx(32)
    later = [t + 90 for t in steady]  # the same command again, a minute and a half later
    both = receipts_at(store, [*steady, *later], 2.0)
    assert status.rows_per_s(both) == pytest.approx(32)
    bunches = [100.0 + 60 * (i // 20) + 0.1 * (i % 20) for i in range(60)]  # 20 workers at a time
    rate = status.rows_per_s(receipts_at(store, bunches, 59.0))
    assert rate == pytest.approx(64 * 59 / (bunches[-1] - bunches[0]))
    lying = [r.model_copy(update={"run": {"compute_s": "x", "write_s": 1e999}}) for r in both]
    assert status.rows_per_s(lying) == pytest.approx(32)


def next_line(store: Store) -> str:
    """What comes next where every row is there."""
    told = status.status_of(store).model_copy(update={"complete": True})
    return [*status_lines.lines(told, Snapshot({}))][-1]


def test_derived_jobs_have_totals_where_these_are_known(store: Store) -> None:
    def has(*keys: str) -> None:
        for key in keys:
            store.objects.create(f"ledger/{key}", [b"{}"])

    has(*(f"receipts/encode.my.sae/{n:08d}.json" for n in range(5)))
    has("quarantine/encode.my.sae/00000007.json", "receipts/index.my.sae/00000000.json")
    has("receipts/index.my.sae/00000040.json")
    encode, index = status.status_of(store).derived
    assert encode.model_dump() == {
        "job": "encode.my.sae",
        "all": 12,
        "done": 5,
        "complete": False,
        "quarantined": [7],
    }
    assert (index.all, index.done, index.complete) == (None, 2, False)
    told_next = f"next: actlas sae encode {store.path} --sae my.sae"
    from actlas.jobs.cli.app import cli

    lines = CliRunner().invoke(cli, ["status", store.path]).stdout.splitlines()
    told = [line.removeprefix("derived     ") for line in lines if line.startswith("derived")]
    assert told[0].startswith(
        "encode.my.sae: 5 of 12 shards, in quarantine: 7 -> actlas sae encode"
    )
    assert told[1].startswith("index.my.sae: 2 blocks -> actlas sae index ")
    assert told[1].endswith(" --sae my.sae")
    assert lines[-1] == f"next: actlas extract {store.path}", (
        "rows come before what is made of them"
    )
    assert next_line(store) == told_next
    has(*(f"receipts/encode.my.sae/{n:08d}.json" for n in (5, 6, 8, 9, 10, 11)))
    assert next_line(store) == f"{told_next} --retry-quarantined", (
        "7 alone, and it is in quarantine"
    )
    has("receipts/encode.my.sae/00000007.json")
    assert next_line(store) == told_next, "the table over all codes comes last"
    has("receipts/encoded.my.sae/00000000.json")
    assert next_line(store) == told_next.replace("encode", "index")

    has(*(f"receipts/encode.my.sae/{n:08d}.json" for n in range(5, 12)))
    has("receipts/indexed.my.sae/00000000.json")
    found = {job.job: job for job in status.status_of(store).derived}
    assert all(job.complete for job in found.values())
    assert (found["index.my.sae"].all, found["indexed.my.sae"].all) == (2, 1)
    assert found["encode.my.sae"].quarantined == []
    assert next_line(store) == f"next: actlas verify {store.path}"


def test_a_driver_that_stops_is_told_of(store: Store) -> None:
    tally = RunStats(n_rows=1000, n_rows_before=0, n_shards=12)
    tally.on_state("worker 0", "busy", 0)
    tally.on_done(Done(0, 64, 9, 0, 1.0, "worker 0", {"n_tokens_fed": 70.0}))
    run = {"job": "encode.sae", **tally.snapshot()}
    holder = {"host": "h", "pid": 1}
    told = status.status_of(store).model_copy(update={"running": True, "holder": holder})
    text = "\n".join(status_lines.lines(told, Snapshot(run)))
    assert "stopping" not in text
    assert "doing       encode.sae: 64 of 1,000 rows" in text
    tally.stopping = True
    text = "\n".join(status_lines.lines(told, Snapshot(tally.snapshot())))
    assert "holds the lease, stopping" in text
    assert json.dumps(Snapshot(run).plain()["n_rows"]) == "1000"


@pytest.mark.parametrize("wrong", [{"faults": []}, {"faults": {"task": "3"}}, {"error": 5}])
def test_a_malformed_quarantine_record_is_refused(store: Store, wrong: dict[str, Any]) -> None:
    record = {
        "shard": 3,
        "faults": {"task": 3},
        "error": "half a pair: \ud800",
        "traceback": "",
        "worker": "w",
        "created_unix_s": 1.0,
    }
    key = "ledger/quarantine/extract/00000003.json"
    store.objects.replace(key, json.dumps(record).encode())
    found = status.status_of(store)
    assert found.quarantine[0].error == record["error"]
    assert json.loads(found.to_json())["quarantine"][0]["faults"] == {"task": 3}
    store.objects.replace(key, json.dumps(record | wrong).encode())
    with pytest.raises(FormatError, match="expected a quarantine record"):
        status.status_of(store)


def test_watching_ends_quietly(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from actlas.jobs.cli.app import cli

    naps = iter([None, None])

    def nap(_: float) -> None:
        try:
            next(naps)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(status_verb.time, "sleep", nap)
    result = CliRunner().invoke(cli, ["status", store.path, "--watch"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("0 of 12 done") == 3
    assert not result.stderr
