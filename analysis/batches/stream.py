"""The stream of shuffled batches: iteration, position, saved state, and change of ranks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from actlas.analysis.batches.sampler import Epoch, RankSchedule, Request, Segment, Selection
from actlas.analysis.batches.shuffle_buffer import ShuffleBuffer
from actlas.analysis.batches.state import BatchState, Position, parse_state
from actlas.store.errors import ConfigError
from actlas.store.read.reader import StoreReader


class Batch(NamedTuple):
    """A batch of rows in random order.

    Attributes
    ----------
    activations : Tensor, shape [rows, units]
        The activations, in the dtype of the stream.
    rows : ndarray of int64, shape [rows]
        Row numbers: indices into ``store.rows`` and ``store.activations``.
    """

    activations: torch.Tensor
    rows: NDArray[np.int64]


class PlannedSegment(NamedTuple):
    """A segment to read.

    Attributes
    ----------
    position : Position
        The position of the segment's first batch.
    segment : Segment
        Its rows of the epoch order, and its batches.
    first : int
        The first of its batches to give: 0, except where a saved state stands within it.
    """

    position: Position
    segment: Segment
    first: int


class Batches(IterableDataset[Batch]):
    """A stream of shuffled batches, as :func:`actlas.batches` returns it.

    Iteration continues from the position: a loop that is left and started again gives the next
    batches, and a loop after the last epoch gives further epochs, in a new order.

    Attributes
    ----------
    n_rows : int
        Selected rows, of all ranks.
    batches_per_epoch : int
        On each rank; also ``len()``.
    buffer_rows : int
        Rows of the shuffle buffer, permuted together; also ``pool_rows``.
    store : Store
        The store that is read.
    hookpoint : str
        The hookpoint whose rows are given.
    rank, world_size : int
        This rank, from 0, and the number of ranks.
    batch_size : int
        Rows of a batch.
    epochs : int or None
        Epochs of one loop; None never ends.
    dtype : torch dtype
        The dtype of the batches.
    """

    def __init__(
        self,
        store: StoreReader,
        hookpoint: str,
        selection: Selection,
        buffer: ShuffleBuffer[PlannedSegment],
        key: BatchState,
        *,
        epochs: int | None,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.store, self.hookpoint, self.rank = store, hookpoint, rank
        self.world_size, self.batch_size = key.world_size, key.batch_size
        self.buffer_rows, self.n_rows = key.pool_rows, key.n_rows
        self.epochs, self.dtype = epochs, dtype
        self._selection, self._buffer, self._key = selection, buffer, key
        self._position = Position(0, 0, 0)
        self._iteration = object()

    @property
    def epoch(self) -> int:
        """The epoch of the last batch, from 0."""
        return self._position.epoch

    @property
    def batch(self) -> int:
        """Batches given in this epoch, since the number of ranks last changed."""
        return self._position.batch

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of an epoch on each rank."""
        return self._schedule(0).n_batches

    @property
    def width(self) -> int:
        """Number of units of a row."""
        return self._buffer.array.shape[1]

    @property
    def buffer_bytes(self) -> int:
        """Memory of the shuffle buffer during iteration: two groups, or one without prefetch."""
        return self._buffer.n_bytes

    @property
    def pool_rows(self) -> int:
        """Alias of ``buffer_rows``."""
        return self.buffer_rows

    @property
    def pool_bytes(self) -> int:
        """Alias of ``buffer_bytes``."""
        return self.buffer_bytes

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Generator[Batch]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > self.world_size:
            raise ConfigError(
                f"{worker.num_workers} workers of a DataLoader would each give the same batches "
                f"(world_size {self.world_size}). Batches already read ahead in their own threads: "
                "give num_workers=0, or iterate without a DataLoader."
            )
        self._iteration = object()
        return self._run(self._iteration)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the activations without row numbers, as SAELens's ``data_provider`` takes them."""
        for batch in self:
            yield batch.activations

    def state_dict(self) -> dict[str, Any]:
        """Return the position and all that the order depends on.

        The dict can be written as JSON and is the same on every rank.
        """
        return self._key.model_copy(update=self._position._asdict()).model_dump()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state: the next batches are those of the run that saved it.

        A state of another number of ranks is accepted at the end of a round (every rank has given
        whole groups, ``buffer_rows / batch_size`` batches each) or of an epoch.

        Parameters
        ----------
        state : dict
            The result of :meth:`state_dict` on any rank.

        Raises
        ------
        ConfigError
            The state belongs to another order, and the message names the field that differs; or
            it is of another number of ranks and within a round.
        """
        given = parse_state(state)
        given.require_same_order(self._key)
        schedule = self._schedule(given.base, given.world_size)
        if given.base > self.n_rows or given.batch > schedule.n_batches:
            raise ConfigError(
                f"the state is at batch {given.batch} after {given.base} rows, past the end of "
                f"the epoch's {self.n_rows} rows: it was changed after it was saved.",
                field="batch",
            )
        position = given.position
        if given.world_size != self.world_size:
            position = self._regrouped(given, schedule)
        self._position, self._iteration = position, object()

    def _regrouped(self, given: BatchState, schedule: RankSchedule) -> Position:
        done = (
            self.n_rows if given.batch == schedule.n_batches else schedule.rows_before(given.batch)
        )
        if done is None:
            step = schedule.group_batches
            raise ConfigError(
                f"the state is of {given.world_size} ranks, at batch {given.batch}, within a "
                f"round; {self.world_size} ranks can take over only where a round ends: after a "
                f"multiple of {step} batches, or at the end of the epoch. Continue with world_size="
                f"{given.world_size} to the end of the round and save the state there.",
                field="world_size",
                got=given.world_size,
                expected=self.world_size,
            )
        return Position(given.epoch, done, 0)

    def _schedule(self, base: int, world_size: int | None = None) -> RankSchedule:
        return RankSchedule(
            n_rows=self.n_rows,
            batch_size=self.batch_size,
            buffer_rows=self.buffer_rows,
            rank=self.rank if world_size is None else 0,
            world_size=world_size or self.world_size,
            drop_last=self._key.drop_last,
            base=base,
        )

    def _run(self, iteration: object) -> Generator[Batch]:
        start = self._position
        stop = None if self.epochs is None else self.epochs * (start.epoch // self.epochs + 1)
        blocks = self._buffer.blocks(self._requests(start, stop))
        try:
            for planned, block in blocks:
                edges = planned.segment.edges.tolist()
                for i in range(planned.first, planned.segment.n_batches):
                    batch = Batch(*block.cut(edges[i], edges[i + 1], self.dtype))
                    self._advance(
                        iteration, planned.position._replace(batch=planned.position.batch + i + 1)
                    )
                    yield batch
        finally:
            blocks.close()
        assert stop is not None
        self._advance(iteration, Position(stop, 0, 0))

    def _advance(self, iteration: object, position: Position) -> None:
        if self._iteration is not iteration:
            raise RuntimeError(
                "this iterator of batches is no longer valid: another one was started, or a state "
                "was loaded. Use one iterator at a time, or make a second Batches."
            )
        self._position = position

    def _requests(
        self, start: Position, stop: int | None
    ) -> Iterator[tuple[PlannedSegment, Request]]:
        """Yield the segments from a position on, with their read requests."""
        position = start
        while stop is None or position.epoch < stop:
            epoch = Epoch(self._selection, self._key.seed, position.epoch)
            schedule = self._schedule(position.base)
            segment_index, first = schedule.locate(position.batch)
            for index in range(segment_index, schedule.n_segments):
                segment = schedule.segment(index)
                at = position._replace(batch=index * schedule.group_batches)
                if first < segment.n_batches:
                    yield (
                        PlannedSegment(at, segment, first),
                        epoch.request(segment.start, segment.stop),
                    )
                first = 0
            position = Position(position.epoch + 1, 0, 0)

    def __repr__(self) -> str:
        epochs = "endless" if self.epochs is None else f"{self.epochs} epoch(s)"
        rank = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        return (
            f"<batches of {self.hookpoint} in {self.store.path}: {self.n_rows:,} rows x "
            f"{self.width} as {str(self.dtype).removeprefix('torch.')}, {len(self):,} batches of "
            f"{self.batch_size:,} an epoch, {epochs}{rank}; shuffled within {self.buffer_rows:,} "
            f"rows of random chunks, {self.buffer_bytes / 2**20:,.0f} MiB of memory>"
        )
