"""What a session of chaos comes to: a line per fault, printed and kept."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
import random
import shlex
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

Form = Literal["short", "long"]

_HEAD = ("fault", "injected", "seen to hit", "lost", "doubled", "wrong", "what else", "seconds")


@dataclass(frozen=True, slots=True)
class Session:
    """How a session of tests was started: what every line of its table holds."""

    form: Form
    seed: int
    command: str
    date: str
    hardware: str

    @classmethod
    def now(cls, form: Form, seed: int, arguments: tuple[str, ...]) -> Self:
        """Return the session that begins now, on this machine."""
        said = shlex.join(["pytest", *(a for a in arguments if not a.startswith("/"))])
        command = f"ACTLAS_CHAOS={form} ACTLAS_CHAOS_SEED={seed} {said}"
        now = datetime.datetime.now(datetime.UTC)
        return cls(form, seed, command, f"{now:%Y-%m-%d %H:%M} UTC", hardware())


def hardware() -> str:
    """Say what runs here: cores, memory, system."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{cores} cores, {memory:.0f} GiB memory, {system}"


@dataclass(slots=True)
class Line:
    """One fault: how often it was injected and seen to hit, and what became of the rows.

    Attributes
    ----------
    notes : dict
        What else was counted. Of two records of one fault whole numbers are added up, of other
        numbers the largest is kept, and texts that differ stand beside each other.
    tests : dict of str to str
        What became of each test that wrote it: ``passed`` or ``failed``.
    """

    fault: str
    injected: int
    hit: int
    lost: int
    doubled: int
    wrong: int
    seconds: float
    session: Session
    notes: dict[str, Any] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)

    def add(self, other: Line) -> None:
        """Add another record of the same fault."""
        for name in ("injected", "hit", "lost", "doubled", "wrong", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, value in other.notes.items():
            self.notes[name] = _joined(self.notes[name], value) if name in self.notes else value
        self.tests |= other.tests

    def cells(self) -> list[str]:
        """Return the line as it stands in the table."""
        numbers = [f"{n:,}" for n in (self.injected, self.hit, self.lost, self.doubled, self.wrong)]
        else_ = [f"{name.replace('_', ' ')}: {_shown(v)}" for name, v in self.notes.items()]
        if failed := [test for test, outcome in self.tests.items() if outcome != "passed"]:
            else_.insert(0, f"**FAILED**: {', '.join(failed)}")
        return [self.fault, *numbers, "; ".join(else_) or "-", f"{self.seconds:.1f}"]


def _joined(a: Any, b: Any) -> Any:
    if isinstance(a, bool) or isinstance(b, bool):
        return a and b
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return max(a, b)
    return a if str(b) in str(a).split(", ") else f"{a}, {b}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "/")


class Record:
    """The lines of a session, in the order of the faults' first record."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lines: dict[str, Line] = {}

    def add(self, line: Line) -> None:
        """Keep a record, with those of the same fault."""
        if line.fault in self.lines:
            self.lines[line.fault].add(line)
        else:
            self.lines[line.fault] = line

    def settle(self, test: str, outcome: str) -> bool:
        """Say what became of a test; False where it recorded nothing."""
        its_own = [line for line in self.lines.values() if test in line.tests]
        for line in its_own:
            line.tests[test] = outcome
        return bool(its_own)

    def write(self, out: Path) -> None:
        """Write ``out.json`` and ``out.md``: lines of other faults that are there stay.

        What one session wrote of a fault, the next one that records the same fault replaces.
        Sessions at the same time take turns.
        """
        name = f"actlas-chaos-{zlib.crc32(str(out.absolute()).encode()):08x}.lock"
        with Path(tempfile.gettempdir(), name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._merge(out)

    def _merge(self, out: Path) -> None:
        kept = json.loads(_beside(out, "json").read_text()) if _beside(out, "json").exists() else []
        lines = {line["fault"]: line for line in kept}
        lines |= {fault: asdict(line) for fault, line in self.lines.items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(list(lines.values()), indent=1, ensure_ascii=False)
        _put(_beside(out, "json"), text + "\n")
        _put(_beside(out, "md"), page([_line(line) for line in lines.values()]))


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _put(path: Path, text: str) -> None:
    """Write over a file at once: a session that is killed leaves a whole one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def _line(kept: Mapping[str, Any]) -> Line:
    return Line(**{**kept, "session": Session(**kept["session"])})


def table(lines: list[Line]) -> str:
    """Return lines as a Markdown table."""
    rows = [_HEAD, ("---",) * len(_HEAD), *(line.cells() for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(lines: list[Line]) -> str:
    """Return lines as a Markdown page that says how each came about."""
    parts = ["# Chaos\n\nRows lost, doubled and wrong are counted against a run without faults.\n"]
    for session in dict.fromkeys(line.session for line in lines):
        parts.append(
            f"\n{session.date}; {session.form} form, seed {session.seed}; {session.hardware}.\n\n"
            f"    {session.command}\n\n"
        )
        parts.append(table([line for line in lines if line.session == session]))
    return "".join(parts)


class Chaos:
    """What a test of chaos is given: how often, at random how, and where to say what it found.

    Parameters
    ----------
    record : Record
        Of the session.
    test : str
        The test's name, of which the seed is made too.
    """

    def __init__(self, record: Record, test: str) -> None:
        self.form: Form = record.session.form
        self.rng = random.Random(f"{record.session.seed} {test}")
        self._record, self._test = record, test
        self._since = time.monotonic()

    def count(self, short: int, long: int) -> int:
        """Return how many there are to be in this session's form."""
        return long if self.form == "long" else short

    def record(
        self,
        fault: str,
        n: int,
        *,
        lost: int = 0,
        doubled: int = 0,
        wrong: int = 0,
        injected: int | None = None,
        **notes: Any,
    ) -> None:
        """Keep one record: before the asserts, so that it is kept where they fail too.

        Parameters
        ----------
        fault : str
            Its line in the table; several records of one fault in a session add up.
        n : int
            How often it was seen to hit.
        lost, doubled, wrong : int
            Rows, against a run without faults.
        injected : int, optional
            How often it was tried. Default: ``n``.
        **notes
            What else was counted.
        """
        now = time.monotonic()
        tried = n if injected is None else injected
        taken, self._since = now - self._since, now
        self._record.add(
            Line(
                fault=fault,
                injected=tried,
                hit=n,
                lost=lost,
                doubled=doubled,
                wrong=wrong,
                seconds=taken,
                session=self._record.session,
                notes=notes,
                tests={self._test: "failed"},
            )
        )
