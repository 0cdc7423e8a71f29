"""Time of a pass as a function of sequence length: a few timed passes, a fit, a range."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

PROBE_TOKENS = 64
"""Tokens of the first timed pass, from which the size of the others follows."""

MIN_LENGTH = 16
"""Shortest sequences that are timed where longer ones are."""

ROUNDS = 2
"""Times that each length is timed, where there is time."""

WITHIN = 4.0
"""The factor by which attention's part may differ from its share of the operations: short sequences
tell little of it, and noise must not decide about long ones."""


class Fit(NamedTuple):
    """Seconds of a forward pass over sequences: linear and quadratic in their lengths.

    Attributes
    ----------
    token_s : float
        Seconds for each token.
    pair_s : float
        Seconds for each pair of tokens of one sequence, which attention compares.
    """

    token_s: float
    pair_s: float

    def seconds(self, n_tokens: float, n_pairs: float) -> float:
        """Return seconds for sequences with so many tokens and squared lengths in all."""
        return self.token_s * n_tokens + self.pair_s * n_pairs


class Timed(NamedTuple):
    """Seconds per token of a pass: on a quiet machine, by its processor time, and as timed."""

    quiet_s: float
    timed_s: float


def time_lengths(
    run: Callable[[int, int], float | None],
    longest: int,
    most_tokens: int,
    max_seconds: float,
    *,
    pair_share: float = 0.0,
    shortest: int = MIN_LENGTH,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, list[Timed]]:
    """Time passes of several sequence lengths within a budget of time.

    After an untimed pass of a few tokens, every pass has about as many tokens as the time allows,
    in sequences of several lengths. Lengths beyond that are added, one sequence a pass, as long as
    the pass is expected to take at most half of the time that is left. A pass that is expected to
    exceed the budget is not begun, so only the first two, of at most PROBE_TOKENS, can exceed it.

    Parameters
    ----------
    run : callable
        ``run(n_sequences, length)`` runs one pass to its end. It returns the seconds that the pass
        would take on a quiet machine, or None for those that it takes.
    longest : int
        The longest sequence of interest.
    most_tokens : int
        The most tokens of a pass of several sequences.
    max_seconds : float
        The budget.
    pair_share : float
        See :func:`fit_range`.
    shortest : int
        The shortest sequence of interest: ``longest`` where all have one length.
    clock : callable
        Returns the time in seconds.

    Returns
    -------
    dict of int to list of Timed
        The passes by length.
    """
    began = clock()
    taken: dict[int, list[Timed]] = {}

    def left() -> float:
        return max_seconds - (clock() - began)

    def timed(length: int, n_tokens: int) -> Timed:
        n_sequences = max(1, n_tokens // length)
        start = clock()
        quiet_s = run(n_sequences, length)
        seconds = clock() - start
        n_tokens = n_sequences * length
        return Timed(min(quiet_s or seconds, seconds) / n_tokens, seconds / n_tokens)

    probe = min(longest, max(PROBE_TOKENS, shortest))
    timed(min(longest, max(8, shortest)), 1)
    first = timed(probe, 1)
    n_tokens = most_tokens
    while n_tokens > probe and n_tokens * first.timed_s > left() / (5 * ROUNDS):
        n_tokens //= 2
    if n_tokens <= probe:
        taken[probe], n_tokens = [first], probe
    lengths = sorted({min(longest, max(shortest, n_tokens >> shift)) for shift in (4, 2, 0)})
    for n in range(ROUNDS):
        for length in lengths:
            expected_s = taken.get(length, [first])[-1].timed_s * max(n_tokens, length)
            if expected_s < left():
                taken.setdefault(length, []).append(timed(length, n_tokens))
        while n == 0 and lengths[-1] < longest and len(taken) > 1:
            length = min(2 * lengths[-1], longest)
            if fit_range(taken, pair_share)[1].seconds(length, length**2) > left() / 2:
                break
            taken[length] = [timed(length, 1)]
            lengths.append(length)
    return taken


def fit_range(taken: Mapping[int, list[Timed]], pair_share: float) -> tuple[Fit, Fit]:
    """Return the fits of the shortest times on a quiet machine, and of the mean times on this one.

    Parameters
    ----------
    taken : mapping of int to list of Timed
        Passes by length, as :func:`time_lengths` returns them.
    pair_share : float
        Operations for a pair of tokens over those for a token; 0 where that is unknown. The
        quadratic parts are within a factor of WITHIN of it. With a single length, the first fit
        is without a quadratic part, and the second has this share.
    """
    lengths = np.array([*taken], dtype=np.float64)
    quiet = np.array([min(each.quiet_s for each in passes) for passes in taken.values()])
    timed = np.array([np.mean([each.timed_s for each in passes]) for passes in taken.values()])
    if len(taken) == 1:
        return _with_share(lengths, quiet, 0.0), _with_share(lengths, timed, pair_share)
    return _fit(lengths, quiet, pair_share), _fit(lengths, timed, pair_share)


def _fit(lengths: np.ndarray, seconds: np.ndarray, pair_share: float) -> Fit:
    terms = np.stack([np.ones_like(lengths), lengths], axis=1) / seconds[:, None]
    (token_s, pair_s), *_ = np.linalg.lstsq(terms, np.ones_like(lengths), rcond=None)
    least, most = pair_share / WITHIN, WITHIN * pair_share or 1.0
    share = pair_s / token_s if token_s > 0 else most
    return _with_share(lengths, seconds, min(max(share, least), most))


def _with_share(lengths: np.ndarray, seconds: np.ndarray, share: float) -> Fit:
    """Return the fit of this share, by the least squares of relative errors."""
    terms = (1 + share * lengths) / seconds
    token_s = float(terms.sum() / (terms**2).sum())
    return Fit(token_s, token_s * float(share))
