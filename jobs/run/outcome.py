"""How a run ended: its exit code, what it made, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actlas.store.errors import EXIT_DONE, InterruptedRunError, QuarantineError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    exit_code : int
        0 where all is done, 3 with units in quarantine, 4 where damage is left, 75 where the same
        command goes on.
    state : str
        The state of the job in words: ``done``, ``stopped``.
    made : str
        What this run made, with its size and speed; empty where it did not begin.
    left : str
        What is left to do; empty where nothing is.
    next : str
        The command to run next, or what to do instead; empty where there is none.
    quarantined : tuple of int
        The units in quarantine.
    stopped : bool
        Whether a signal asked for the run's end, though nothing of this job may be left: no other
        job begins.
    jobs : tuple of Outcome
        The outcomes of several jobs, in the order in which they ran, of which this is the worst.
    """

    exit_code: int
    state: str
    made: str = ""
    left: str = ""
    next: str = ""
    quarantined: tuple[int, ...] = ()
    stopped: bool = False
    jobs: tuple[Outcome, ...] = ()

    @property
    def summary(self) -> str:
        """The outcome in one sentence, without what to do next."""
        text = f"{self.state}: {self.made}" if self.made else self.state
        return f"{text}; {self.left}" if self.left else text

    @property
    def line(self) -> str:
        """The outcome as a command prints it: a line for each job, and what to do next.

        >>> Outcome(0, "done", "9 rows", next="actlas verify run.zarr").line
        'done: 9 rows -> next: actlas verify run.zarr'
        """
        if self.jobs:
            worst = worst_of(self.jobs)
            return "\n".join(job.line if job is worst else job.summary for job in self.jobs)
        return f"{self.summary} -> next: {self.next}" if self.next else self.summary

    def require_done(self) -> None:
        """Raise where the job is not done, for callers from Python.

        Raises
        ------
        QuarantineError
            Units are left in quarantine.
        InterruptedRunError
            The run was stopped, or its job waits for another.
        """
        if self.quarantined:
            raise QuarantineError(self.line, shards=list(self.quarantined))
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
        jobs=tuple(outcomes),
    )
