"""A random generator of our own, whose stream no update of a library can change."""

from __future__ import annotations

from collections.abc import Sequence

_MASK = (1 << 64) - 1


class SplitMix64:
    """SplitMix64 of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).

    Parameters
    ----------
    seed : int
        The seed, modulo 2**64.

    Examples
    --------
    >>> SplitMix64(1234567).next_u64()
    6457827717110365317
    """

    def __init__(self, seed: int) -> None:
        self.state = seed & _MASK

    def next_u64(self) -> int:
        """Return the next integer in [0, 2**64)."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, stop: int) -> int:
        """Return an integer in [0, stop), uniformly distributed (by rejection)."""
        if not 0 < stop <= 1 << 64:
            raise ValueError(f"stop must lie in [1, 2**64], got {stop}")
        limit = (1 << 64) - (1 << 64) % stop
        while (value := self.next_u64()) >= limit:
            pass
        return value % stop

    def weighted(self, weights: Sequence[int]) -> int:
        """Return an index with probability proportional to its weight (integers, not all zero)."""
        left = self.below(sum(weights))
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        raise ValueError(f"weights must not be negative, got {list(weights)}")
