"""The queue of shards: consecutive shards go to one worker, as long as no other worker is idle.

A sequence that crosses the border of two shards leaves its key-value cache with the worker that
computed the left one. Shards that continue each other therefore form runs::

    shards  0 1 | 2 3 4 5 | 6     1, 3, 4 and 5 continue the shard before them
    runs    0-1,  2-5,      6     worker A takes 0 and then 1, B takes 2, 3, ...

When all runs are taken, an idle worker takes the second half of another worker's run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence


class ShardQueue:
    """A queue of shards in runs. Every operation takes constant time.

    Parameters
    ----------
    shards : sequence of int
        The shards in the order in which they are taken.
    follows : collection of int, or mapping of int to int
        Shards that continue another one and are best computed by its worker: a collection means
        the shard with the number before, a mapping names the other shard.

    Examples
    --------
    >>> queue = ShardQueue([0, 1, 2, 3], follows={1})
    >>> [queue.take(worker) for worker in (7, 8, 7, 7)]
    [0, 2, 1, 3]
    """

    def __init__(
        self, shards: Sequence[int], follows: Collection[int] | Mapping[int, int] = ()
    ) -> None:
        self._order = list(shards)
        """The shards; a run is a range of positions in it. Returned shards are appended."""
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
        """Return the next shard of a worker's run, of a new run, or of half of another worker's.

        Raises
        ------
        IndexError
            The queue is empty.
        """
        run = self._held.pop(worker, None) or (self._runs.popleft() if self._runs else None)
        if run is None:
            run = self._half()
        if len(run) > 1:
            self._held[worker] = run[1:]
        self._n -= 1
        return self._order[run[0]]

    def give_back(self, shards: Sequence[int]) -> None:
        """Return shards that were taken to the front of the queue."""
        self._runs.extendleft(self._placed(shard) for shard in reversed(shards))
        self._n += len(shards)

    def put_last(self, shard: int) -> None:
        """Return a shard that was taken to the end of the queue."""
        self._runs.append(self._placed(shard))
        self._n += 1

    def _placed(self, shard: int) -> range:
        """Return a run of one shard."""
        self._order.append(shard)
        return range(len(self._order) - 1, len(self._order))

    def leave(self, worker: int) -> None:
        """Release the run of a worker that is gone."""
        if run := self._held.pop(worker, None):
            self._runs.appendleft(run)

    def _half(self) -> range:
        if not self._held:
            raise IndexError("the shard queue is empty")
        worker = next(iter(self._held))
        run = self._held.pop(worker)
        middle = len(run) // 2
        if middle:  # it comes after the others, whose runs are longer by now
            self._held[worker] = run[:middle]
        return run[middle:]
