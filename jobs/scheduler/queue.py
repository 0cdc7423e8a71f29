"""Shards that nobody has yet, and whom they go to: neighbours to one worker, nobody idle for it.

A sequence that crosses a shard's border leaves its cache with the worker that computed the left
shard. So shards that follow on from each other are kept as runs::

    shards  0 1 | 2 3 4 5 | 6     3, 4 and 5 follow on from their left neighbours, and so does 1
    runs    0-1,  2-5,      6     worker A takes 0 and then 1, B takes 2, 3, ...

and when all runs are taken, who has nothing gets the back half of somebody's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence


class ShardQueue:
    """A queue of shards in runs. Every operation takes the same time however many there are.

    Parameters
    ----------
    shards : sequence of int
        In the order in which they are to be given out.
    follows : collection of int, or mapping of int to int
        Those of them that are best done by whoever did the one before: the shard less one, or the
        one that a mapping names.

    Examples
    --------
    >>> pending = ShardQueue([0, 1, 2, 3], follows={1})
    >>> [pending.take(worker) for worker in (7, 8, 7, 7)]
    [0, 2, 1, 3]
    """

    def __init__(
        self, shards: Sequence[int], follows: Collection[int] | Mapping[int, int] = ()
    ) -> None:
        self._order = list(shards)
        """The shards; a run is a range of places in it. What is given back is put at its end."""
        self._runs: deque[range] = deque()
        for place, shard in enumerate(self._order):
            before = follows.get(shard) if isinstance(follows, Mapping) else shard - 1
            if place and shard in follows and self._order[place - 1] == before:
                self._runs[-1] = range(self._runs[-1].start, place + 1)
            else:
                self._runs.append(range(place, place + 1))
        self._held: dict[int, range] = {}
        self._n = len(shards)

    def __len__(self) -> int:
        return self._n

    def take(self, worker: int) -> int:
        """Return the next shard of a worker's run, of a new one, or of half of another's.

        Raises
        ------
        IndexError
            There is none.
        """
        run = self._held.pop(worker, None) or (self._runs.popleft() if self._runs else None)
        if run is None:
            run = self._half()
        if len(run) > 1:
            self._held[worker] = run[1:]
        self._n -= 1
        return self._order[run[0]]

    def give_back(self, shards: Sequence[int]) -> None:
        """Put shards that were taken in front of the others."""
        self._runs.extendleft(self._placed(shard) for shard in reversed(shards))
        self._n += len(shards)

    def put_last(self, shard: int) -> None:
        """Put a shard that was taken behind the others."""
        self._runs.append(self._placed(shard))
        self._n += 1

    def _placed(self, shard: int) -> range:
        """Return a run of one shard."""
        self._order.append(shard)
        return range(len(self._order) - 1, len(self._order))

    def leave(self, worker: int) -> None:
        """Let others have the run of a worker that is gone."""
        if run := self._held.pop(worker, None):
            self._runs.appendleft(run)

    def _half(self) -> range:
        if not self._held:
            raise IndexError("no shard is pending")
        worker = next(iter(self._held))
        run = self._held.pop(worker)
        middle = len(run) // 2
        if middle:  # and it comes behind the others, whose runs are longer by now
            self._held[worker] = run[:middle]
        return run[middle:]
