"""The stream of shuffled batches: iteration, position and saved state."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from actlas.analysis.batches.sampler import Epoch, Request, Schedule, Selection
from actlas.analysis.batches.shuffle_buffer import ShuffleBuffer
from actlas.analysis.batches.state import BatchState, Position, parse_state
from actlas.store.errors import ConfigError
from actlas.store.read.reader import StoreReader

Rows = TypeVar("Rows")
"""Rows of a hookpoint as a tensor, or those of several as tensors by name."""


class Batch(NamedTuple, Generic[Rows]):
    """A batch of rows, drawn at random from all over the group.

    Attributes
    ----------
    activations : Tensor, shape [rows, units], or dict of str to such tensors
        The activations, in the dtype of the stream; where several hookpoints are read, the same
        rows of each, by its name.
    rows : ndarray of int64, shape [rows]
        Row numbers: indices into ``store.rows`` and ``store.activations``.
    """

    activations: Rows
    rows: NDArray[np.int64]


class PlannedGroup(NamedTuple):
    """A group to read.

    Attributes
    ----------
    position : Position
        The position of the group's first batch.
    first : int
        The first of its batches to give: 0, except where a saved state stands within it.
    """

    position: Position
    first: int


class Batches(IterableDataset[Batch[Rows]], Generic[Rows]):
    """A stream of shuffled batches, as :func:`actlas.batches` returns it.

    Iteration continues from the position: a loop that is left and started again gives the next
    batches, and a loop after the last epoch gives further epochs, in a new order.

    Attributes
    ----------
    n_rows : int
        Selected rows, of all ranks.
    batches_per_epoch : int
        The same on each rank; also ``len()``.
    buffer_rows : int
        Rows of the shuffle buffer, of all ranks; also ``pool_rows``.
    store : Store
        The store that is read.
    hookpoints : tuple of str
        The hookpoints whose rows are given.
    rank, world_size : int
        This rank, from 0, and the number of ranks.
    batch_size : int
        Rows of a batch, of all ranks: a rank gives ``batch_size / world_size`` of them.
    epochs : int or None
        Epochs of one loop; None never ends.
    dtype : torch dtype
        The dtype of the batches.
    """

    def __init__(
        self,
        store: StoreReader,
        hookpoints: Sequence[str],
        selection: Selection,
        buffer: ShuffleBuffer[PlannedGroup],
        key: BatchState,
        pack: Callable[[list[torch.Tensor]], Rows],
        *,
        epochs: int | None,
        rank: int,
        world_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.store, self.hookpoints = store, tuple(hookpoints)
        self.rank, self.world_size = rank, world_size
        self.batch_size, self.buffer_rows = key.batch_size, key.buffer_rows
        self.n_rows, self.epochs, self.dtype = selection.n_rows, epochs, dtype
        self._selection, self._buffer, self._key, self._pack = selection, buffer, key, pack
        self._schedule = Schedule(self.n_rows, self.batch_size, self.buffer_rows, key.drop_last)
        self._position = Position(0, 0)
        self._iteration = object()

    @property
    def hookpoint(self) -> str:
        """The hookpoint whose rows are given; of several, the first."""
        return self.hookpoints[0]

    @property
    def epoch(self) -> int:
        """The epoch of the last batch, from 0."""
        return self._position.epoch

    @property
    def batch(self) -> int:
        """Batches given in this epoch."""
        return self._position.step

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of an epoch, the same on each rank."""
        return self._schedule.n_batches

    @property
    def width(self) -> int:
        """Number of units of a row; of several hookpoints, of all together."""
        return sum(array.shape[1] for array in self._buffer.arrays)

    @property
    def buffer_bytes(self) -> int:
        """Memory of the shuffle buffer, from the first batch on as long as this object lives.

        It holds two groups, or one without ``prefetch`` or where one holds all rows.
        """
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

    def __iter__(self) -> Generator[Batch[Rows]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > self.world_size:
            raise ConfigError(
                f"{worker.num_workers} workers of a DataLoader would each give the same batches "
                f"(world_size {self.world_size}). Batches already read ahead in their own threads: "
                "give num_workers=0, or iterate without a DataLoader."
            )
        self._iteration = object()
        return self._run(self._iteration)

    def tensors(self) -> Iterator[Rows]:
        """Yield the activations without row numbers, as SAELens's ``data_provider`` takes them."""
        for batch in self:
            yield batch.activations

    def state_dict(self) -> dict[str, Any]:
        """Return the position and all that the order depends on, in less than 300 bytes of JSON.

        It is the same on every rank, and for any number of ranks.
        """
        return self._key.model_copy(update=self._position._asdict()).model_dump()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state: the next batches are those of the run that saved it.

        That run may have had another number of ranks: all ranks together give the same batches.

        Parameters
        ----------
        state : dict
            The result of :meth:`state_dict` on any rank.

        Raises
        ------
        ConfigError
            The state belongs to another order, and the message names the field that differs.
        """
        given = parse_state(state)
        given.require_same_order(self._key)
        if given.step > self._schedule.n_batches:
            raise ConfigError(
                f"the state is at batch {given.step} of an epoch of {self._schedule.n_batches} "
                "batches: it was changed after it was saved.",
                field="step",
            )
        self._position, self._iteration = given.position, object()

    def _run(self, iteration: object) -> Generator[Batch[Rows]]:
        start = self._position
        stop = None if self.epochs is None else self.epochs * (start.epoch // self.epochs + 1)
        groups = self._buffer.groups(self._requests(start, stop))
        try:
            for (at, first), group in groups:
                for i in range(first, len(group.edges) - 1):
                    tensors, rows = group.cut(i, self.dtype)
                    self._advance(iteration, at._replace(step=at.step + i + 1))
                    yield Batch(self._pack(tensors), rows)
        finally:
            groups.close()
        assert stop is not None
        self._advance(iteration, Position(stop, 0))

    def _advance(self, iteration: object, position: Position) -> None:
        if self._iteration is not iteration:
            raise RuntimeError(
                "this iterator of batches is no longer valid: another one was started, or a state "
                "was loaded. Use one iterator at a time, or make a second Batches."
            )
        self._position = position

    def _requests(
        self, start: Position, stop: int | None
    ) -> Iterator[tuple[PlannedGroup, Request]]:
        """Yield the groups from a position on, with their read requests."""
        schedule = self._schedule
        at = start
        while stop is None or at.epoch < stop:
            epoch = Epoch(self._selection, self._key.seed, at.epoch)
            index, first = schedule.locate(at.step)
            for i in range(index, schedule.n_groups):
                planned = PlannedGroup(Position(at.epoch, i * schedule.group_batches), first)
                size = schedule.group_size(i)
                if first < size:
                    yield (
                        planned,
                        epoch.request(
                            schedule.group(i), self.batch_size, size, self.rank, self.world_size
                        ),
                    )
                first = 0
            at = Position(at.epoch + 1, 0)

    def __repr__(self) -> str:
        epochs = "endless" if self.epochs is None else f"{self.epochs} epoch(s)"
        rank = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        names = ", ".join(self.hookpoints)
        return (
            f"<batches of {names} in {self.store.path}: {self.n_rows:,} rows x "
            f"{self.width} as {str(self.dtype).removeprefix('torch.')}, {len(self):,} batches of "
            f"{self.batch_size:,} an epoch, {epochs}{rank}; shuffled within {self.buffer_rows:,} "
            f"rows of random blocks, {self.buffer_bytes / 2**20:,.0f} MiB of memory>"
        )
