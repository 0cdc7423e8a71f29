"""How a run ended: its exit code, what it made, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actlas.jobs.scheduler.stop import interruption
from actlas.store.errors import EXIT_DONE, InterruptedRunError, QuarantineError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    exit_code : int
        0 if all is done, 3 if units are in quarantine, 4 if damage is left, 75 if the same command
        resumes the job.
    state : str
        The state of the job, such as ``done`` or ``stopped``.
    made : str
        The results of this run, with their size and speed; empty if the run did not begin.
    left : str
        The work that is left; empty if there is none.
    next : str
        The next step: a command, or an instruction; empty if there is none.
    quarantined : tuple of int
        The units in quarantine.
    fault : str
        The first line of the error of the unit that was put in quarantine last; empty if none was.
    signal : int or None
        The signal that stopped the run, even if nothing of this job is left: no other job begins.
    jobs : tuple of Outcome
        The outcomes of several jobs, in the order in which they ran, of which this is the worst.
    """

    exit_code: int
    state: str
    made: str = ""
    left: str = ""
    next: str = ""
    quarantined: tuple[int, ...] = ()
    fault: str = ""
    signal: int | None = None
    jobs: tuple[Outcome, ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether a signal stopped the run."""
        return self.signal is not None

    @property
    def summary(self) -> str:
        """The outcome in one sentence, without what to do next."""
        text = f"{self.state}: {self.made}" if self.made else self.state
        return f"{text}; {self.left}" if self.left else text

    @property
    def lines(self) -> list[str]:
        """The outcome as a command prints it: a line for each job, and what to do next.

        >>> Outcome(0, "done", "9 rows", next="actlas verify run.zarr").lines
        ['done: 9 rows -> next: actlas verify run.zarr']
        """
        if self.jobs:
            worst = worst_of(self.jobs)
            return [job.line if job is worst else job.summary for job in self.jobs]
        return [f"{self.summary} -> next: {self.next}" if self.next else self.summary]

    @property
    def line(self) -> str:
        """The outcome as one text, its lines joined."""
        return "\n".join(self.lines)

    def require_done(self) -> None:
        """Raise if the job is not done, or if a signal told this process to end, for Python.

        Raises
        ------
        KeyboardInterrupt, SignalledExit
            SIGINT or SIGTERM came; see :func:`actlas.jobs.scheduler.stop.interruption`.
        QuarantineError
            Units are left in quarantine.
        InterruptedRunError
            The job waits for another.
        """
        if self.signal is not None:
            raise interruption(self.signal, self.line)
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the error of a job that is not done, also where a signal stopped it.

        Raises
        ------
        QuarantineError
            Units are left in quarantine.
        InterruptedRunError
            The run was stopped, or its job waits for another.
        """
        if self.quarantined:
            why = f" (the last fault: {self.fault})" if self.fault else ""
            raise QuarantineError(f"{self.line}{why}", shards=list(self.quarantined))
        if self.exit_code != EXIT_DONE:
            raise InterruptedRunError(self.line)


def worst_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the highest exit code; of equal ones the last."""
    return max(reversed(outcomes), key=lambda outcome: outcome.exit_code)


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of several jobs that ran one behind the other.

    Parameters
    ----------
    outcomes : sequence of Outcome
        One for each job; at least one.
    """
    worst = worst_of(outcomes)
    return Outcome(
        worst.exit_code,
        worst.state,
        worst.made,
        worst.left,
        worst.next,
        quarantined=tuple(unit for outcome in outcomes for unit in outcome.quarantined),
        fault=next((outcome.fault for outcome in reversed(outcomes) if outcome.fault), ""),
        signal=next((outcome.signal for outcome in outcomes if outcome.stopped), None),
        jobs=tuple(outcomes),
    )
