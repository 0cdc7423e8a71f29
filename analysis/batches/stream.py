"""The stream of shuffled batches: its position, its state, and how its pool is fed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from actlas.analysis.batches.sampler import Deal, Epoch, Piece, Request, Selection
from actlas.analysis.batches.shuffle_buffer import Pool
from actlas.analysis.batches.state import BatchState, Position, parse_state
from actlas.store.errors import ConfigError
from actlas.store.read.reader import StoreReader


class Batch(NamedTuple):
    """Rows in random order.

    Attributes
    ----------
    activations : Tensor, shape [b, width]
    rows : ndarray of int64, shape [b]
        Where they lie: they index ``store.rows`` and ``store.activations``.
    """

    activations: torch.Tensor
    rows: NDArray[np.int64]


class Work(NamedTuple):
    """A piece of an epoch, and the first of its batches to give."""

    position: Position
    piece: Piece
    first: int


class Batches(IterableDataset[Batch]):
    """A stream of shuffled batches. Make one with :func:`actlas.batches`.

    Iterating goes on from the position: a loop that is left and begun again gives what comes next,
    and after the last epoch asked for the next loop gives further ones, in another order.

    Attributes
    ----------
    n_rows : int
        Selected rows, of all ranks.
    batches_per_epoch : int
        On each rank; also ``len()``.
    pool_rows : int
        Rows of a group, permuted together.
    """

    def __init__(
        self,
        store: StoreReader,
        hookpoint: str,
        selection: Selection,
        pool: Pool[Work],
        key: BatchState,
        *,
        epochs: int | None,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.store, self.hookpoint, self.rank = store, hookpoint, rank
        self.world_size, self.batch_size = key.world_size, key.batch_size
        self.pool_rows, self.n_rows = key.pool_rows, key.n_rows
        self.epochs, self.dtype = epochs, dtype
        self._selection, self._pool, self._key = selection, pool, key
        self._position = Position(0, 0, 0)
        self._turn = object()

    @property
    def epoch(self) -> int:
        """The epoch of the batch given last, from 0."""
        return self._position.epoch

    @property
    def batch(self) -> int:
        """Batches given in this epoch, since the number of ranks changed in it if it did."""
        return self._position.batch

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch on each rank."""
        return self._deal(0).n_batches

    @property
    def width(self) -> int:
        """Units of a row."""
        return self._pool.array.shape[1]

    @property
    def pool_bytes(self) -> int:
        """Memory that the pool takes while iterating: two groups, or one without prefetch."""
        return self._pool.n_bytes

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Generator[Batch]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > self.world_size:
            raise ConfigError(
                f"{worker.num_workers} workers of a DataLoader would each give the same batches "
                f"(world_size {self.world_size}). Batches read ahead in threads of their own: "
                "give num_workers=0, or iterate without a DataLoader."
            )
        self._turn = object()
        return self._run(self._turn)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the activations alone, as SAELens's ``data_provider`` wants them."""
        for batch in self:
            yield batch.activations

    def state_dict(self) -> dict[str, Any]:
        """Return the position and all that the order depends on: JSON, the same on every rank."""
        return self._key.model_copy(update=self._position._asdict()).model_dump()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was saved: the next batches are those of the run that saved it.

        A state of another number of ranks is taken where it stands at the end of a round (every
        rank has given whole groups, ``pool_rows / batch_size`` batches each) or of an epoch.

        Raises
        ------
        ConfigError
            It belongs to another order, and the message says which field differs; or it is of
            another number of ranks and stands within a round.
        """
        given = parse_state(state)
        given.require_same_order(self._key)
        deal = self._deal(given.base, given.world_size)
        if given.base > self.n_rows or given.batch > deal.n_batches:
            raise ConfigError(
                f"the state stands at batch {given.batch} after {given.base} rows, past the "
                f"epoch's {self.n_rows} rows: it was changed.",
                field="batch",
            )
        position = given.position
        if given.world_size != self.world_size:
            position = self._regrouped(given, deal)
        self._position, self._turn = position, object()

    def _regrouped(self, given: BatchState, deal: Deal) -> Position:
        done = self.n_rows if given.batch == deal.n_batches else deal.rows_before(given.batch)
        if done is None:
            step = deal.group_batches
            raise ConfigError(
                f"the state is of {given.world_size} ranks and stands at batch {given.batch}, "
                f"within a round; {self.world_size} ranks can take over where a round ends: after "
                f"a multiple of {step} batches, or at the epoch's end. Go on with world_size="
                f"{given.world_size} to the next one and save there.",
                field="world_size",
                got=given.world_size,
                expected=self.world_size,
            )
        return Position(given.epoch, done, 0)

    def _deal(self, base: int, world_size: int | None = None) -> Deal:
        return Deal(
            n_rows=self.n_rows,
            batch_size=self.batch_size,
            pool_rows=self.pool_rows,
            rank=self.rank if world_size is None else 0,
            world_size=world_size or self.world_size,
            drop_last=self._key.drop_last,
            base=base,
        )

    def _run(self, turn: object) -> Generator[Batch]:
        start = self._position
        stop = None if self.epochs is None else self.epochs * (start.epoch // self.epochs + 1)
        blocks = self._pool.blocks(self._requests(start, stop))
        try:
            for work, block in blocks:
                edges = work.piece.edges.tolist()
                for i in range(work.first, work.piece.n_batches):
                    batch = Batch(*block.cut(edges[i], edges[i + 1], self.dtype))
                    self._advance(turn, work.position._replace(batch=work.position.batch + i + 1))
                    yield batch
        finally:
            blocks.close()
        assert stop is not None
        self._advance(turn, Position(stop, 0, 0))

    def _advance(self, turn: object, position: Position) -> None:
        if self._turn is not turn:
            raise RuntimeError(
                "this iterator of batches is out of date: another was begun, or a state loaded. "
                "Use one iterator at a time, or make a second Batches."
            )
        self._position = position

    def _requests(self, start: Position, stop: int | None) -> Iterator[tuple[Work, Request]]:
        """Yield what to read from a position on; a piece's position is its first batch."""
        position = start
        while stop is None or position.epoch < stop:
            epoch = Epoch(self._selection, self._key.seed, position.epoch)
            deal = self._deal(position.base)
            piece_index, first = deal.locate(position.batch)
            for index in range(piece_index, deal.n_pieces):
                piece = deal.piece(index)
                at = position._replace(batch=index * deal.group_batches)
                if first < piece.n_batches:
                    yield Work(at, piece, first), epoch.request(piece.start, piece.stop)
                first = 0
            position = Position(position.epoch + 1, 0, 0)

    def __repr__(self) -> str:
        epochs = "endless" if self.epochs is None else f"{self.epochs} epoch(s)"
        rank = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        return (
            f"<batches of {self.hookpoint} in {self.store.path}: {self.n_rows:,} rows x "
            f"{self.width} as {str(self.dtype).removeprefix('torch.')}, {len(self):,} batches of "
            f"{self.batch_size:,} an epoch, {epochs}{rank}; shuffled within {self.pool_rows:,} "
            f"rows of random chunks, {self.pool_bytes / 2**20:,.0f} MiB of memory>"
        )
