from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest

from actlas.jobs import logs
from actlas.jobs.monitor.progress import LiveProgress, PlainProgress, display, packed
from actlas.jobs.monitor.run_stats import RunStats
from actlas.jobs.monitor.run_summary import headline, states_line, worker_lines
from actlas.jobs.scheduler.faults import Fault
from actlas.jobs.scheduler.protocols import Done


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def done(shard: int, n_rows: int = 1000, **more: object) -> Done:
    fields = {"n_bytes": 10, "n_nonfinite": 0, "seconds": 1.0, "worker": "worker 0"}
    run = {"n_tokens_fed": 1100.0}
    return Done(shard=shard, n_rows=n_rows, run=run, **{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally(clock: Clock) -> RunStats:
    return RunStats(n_rows=10_000, n_rows_before=2000, n_shards=8, clock=clock)


def test_rates_and_what_is_left(tally: RunStats, clock: Clock) -> None:
    assert tally.seconds_left() is None
    assert headline(tally) == "loading the model, 0.0 s so far"
    clock.now += 20  # loading the model does not count
    tally.on_state("worker 0", "busy", 2)
    for shard in range(2, 6):
        clock.now += 20
        tally.on_done(done(shard))
    assert tally.share() == 0.6
    assert tally.mean_rate() == pytest.approx(50)
    assert tally.rate_now() == pytest.approx(2000 / 30)
    assert tally.seconds_left() == pytest.approx(80)
    rates = "67 rows/s now, 50 mean  73 tokens/s now, 55 mean"
    assert headline(tally) == f" 60%  6,000 of 10,000 rows  {rates}  80 s left"


def test_the_share_of_the_bare_forward_pass(tally: RunStats, clock: Clock) -> None:
    tally.on_state("worker 0", "busy", 0)
    tally.on_state("worker 1", "busy", 1)
    assert tally.share_of_bare() is None
    clock.now += 2
    tally.on_done(done(0, bare_tokens_per_s=500.0))
    tally.on_done(done(1, bare_tokens_per_s=800.0, worker="worker 1"))
    assert tally.share_of_bare() == pytest.approx(2200 / 2 / 1300)


def test_no_share_where_a_worker_was_not_measured(tally: RunStats, clock: Clock) -> None:
    tally.on_state("worker 0", "busy", 0)
    clock.now += 2
    tally.on_done(done(0, bare_tokens_per_s=500.0))
    tally.on_done(done(1, worker="worker 1"))
    assert tally.share_of_bare() is None


def test_plain_lines(tally: RunStats, clock: Clock) -> None:
    out = io.StringIO()
    progress = PlainProgress(tally, out)
    progress.state("worker 0", "busy", 3)
    progress.tick()
    assert out.getvalue() == ""
    clock.now += 6
    progress.tick()
    progress.tick()
    assert len(out.getvalue().splitlines()) == 1
    progress.fault(Fault(3, "task", "ValueError: no\nmore", "trace", "worker 0"), False)
    progress.fault(Fault(3, "task", "ValueError: no", "trace", "worker 0"), True)
    progress.done(done(4))
    clock.now += 100
    progress.tick()
    lines = out.getvalue().splitlines()
    assert lines[1] == "shard 3 failed (worker 0): ValueError: no; trying again"
    assert lines[2] == "shard 3 failed (worker 0): ValueError: no; now in quarantine"
    assert lines[3].endswith("1 retry  in quarantine: 3")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_live_display(tally: RunStats, clock: Clock) -> None:
    out = Terminal()
    progress = display(tally, out)
    assert isinstance(progress, LiveProgress)
    with progress.shown():
        progress.state("worker 0", "busy", 3)
        progress.log("a [bold]plain[/] line")
        clock.now += 2
        progress.done(done(3))
    text = out.getvalue()
    assert "a [bold]plain[/] line" in text
    assert "rows/s" in text
    assert "worker 0" in text
    assert "shard 3" in text


def test_elsewhere_lines_are_plain(tally: RunStats, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(display(tally, io.StringIO())) is PlainProgress
    monkeypatch.setenv("TERM", "dumb")
    assert type(display(tally, Terminal())) is PlainProgress


def test_many_workers_do_not_flood(tally: RunStats) -> None:
    for i in range(100):
        tally.on_state(f"worker {i}", "busy", i)
    assert len(worker_lines(tally)) == 9
    assert worker_lines(tally)[-1] == "and 92 more workers"


def test_the_log_is_json_lines(tmp_path: Path) -> None:
    handler = logs.start(str(tmp_path), "driver")
    try:
        logs.LOGGER.info("a\nb", extra={"shard": 3})
        try:
            raise ValueError("x")
        except ValueError:
            logs.LOGGER.exception("oh")
    finally:
        logs.end(handler)
    (file,) = (tmp_path / logs.FOLDER).iterdir()
    first, second = [json.loads(line) for line in file.read_text().splitlines()]
    assert (first["message"], first["shard"], first["level"]) == ("a\nb", 3, "info")
    assert "ValueError: x" in second["traceback"]
    assert file.name.endswith("-driver.jsonl")


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger").write_text("a file where a folder should be")
    logs.end(logs.start(str(tmp_path), "driver"))
    assert "no log in" in capsys.readouterr().err

    handler = logs.start(str(tmp_path / "other"), "driver")
    assert isinstance(handler, logging.StreamHandler)

    handler.stream.close()
    handler.stream = Path("/dev/full").open("w")  # noqa: SIM115 - the handler closes it
    logs.LOGGER.info("one")
    logs.LOGGER.info("two")
    logs.end(handler)
    assert capsys.readouterr().err.count("ends here") == 1


def test_without_colour_the_bar_is_of_plain_characters(
    tally: RunStats, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "42")
    out = Terminal()
    progress = display(tally, out)
    with progress.shown():
        progress.state("worker 0", "busy", 3)
        clock.now += 2
        progress.done(done(3, n_rows=3000))
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert f"[{'#' * 19}{'-' * 20}]" in frames  # half of it is done
    assert max(map(len, re.split(r"[\r\n]+", frames))) <= 42


def test_lines_do_not_break_anew_at_each_number(tally: RunStats) -> None:
    live = LiveProgress(tally, Terminal())
    parts = [["1,000 rows/s", "9 left"], ["999 rows/s", "8 left"], ["9,999 rows/s", "7 left"]]
    assert [packed(live._steady(part), 19) for part in parts] == [
        ["1,000 rows/s", "9 left"],
        ["999 rows/s  ", "8 left"],
        ["9,999 rows/s", "7 left"],
    ]
    assert len(packed(parts[1], 18)) == 1  # as it was without


def test_a_run_that_stops_says_no_time_left(tally: RunStats, clock: Clock) -> None:
    out = io.StringIO()
    progress = PlainProgress(tally, out)
    progress.state("worker 0", "busy", 2)
    progress.state("worker 0", "busy", 3)
    clock.now += 20
    progress.done(done(2))
    assert headline(tally).endswith("2 min 20 s left")
    progress.stopping("SIGINT: finishing")
    assert out.getvalue().splitlines()[-1] == "SIGINT: finishing"
    assert headline(tally).endswith("stopping, 1 shard in flight")
    assert tally.snapshot()["stopping"] is True
    progress.done(done(3))
    progress.state("worker 0", "gone")
    assert headline(tally).endswith("rows/s mean  110 tokens/s  stopping")
    assert states_line(tally) == "0 workers: 1 ended"


def test_lines_of_progress_become_rare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour of work that tells of itself each second; the last line is its end."""
    now = 0.0
    monkeypatch.setattr(logs.Pace.__init__, "__defaults__", (lambda: now,))
    with logs.NowAndThen() as say:
        for second in range(1, 3610):
            now = float(second)
            say(f"{second}")
    lines = [int(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[:8] == [2, 5, 10, 20, 30, 60, 120, 180]
    assert lines[-3:] == [3540, 3600, 3609] and len(lines) == 66
    with logs.NowAndThen() as say:
        say("over before a line was due")
    assert capsys.readouterr().err == ""
