"""``actlas.batches``: shuffled batches of activations, read sequentially, resumed exactly."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch

from actlas.analysis.batches.sampler import Selection, buffer_slots
from actlas.analysis.batches.selection import SpecialRows, select_rows
from actlas.analysis.batches.shuffle_buffer import ShuffleBuffer
from actlas.analysis.batches.state import BatchState
from actlas.analysis.batches.stream import Batch, Batches
from actlas.store.errors import ConfigError, NotExtractedError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.read.reader import StoreReader
from actlas.store.store import as_store

__all__ = ["Batch", "Batches", "batches"]

BUFFER_ROWS = 262_144

BUFFER_BYTES_MAX = 1 << 30


def batches(
    store: StoreReader | str | os.PathLike[str],
    hookpoint: str,
    *,
    batch_size: int = 8192,
    seed: int = 0,
    fraction: float = 1.0,
    skip: float = 0.0,
    epochs: int | None = 1,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    buffer_rows: int | None = None,
    dtype: torch.dtype = torch.float32,
    special: bool = False,
    prefetch: bool = True,
    threads: int | None = None,
    pool_rows: int | None = None,
) -> Batches:
    """Return a stream of shuffled batches of one hookpoint's rows.

    Each selected row comes once in an epoch, on one rank. Whole chunks from all over the store are
    read into a shuffle buffer of ``buffer_rows`` rows, permuted there and cut into batches. Since
    rows are stored shuffled within their shards, a batch is close to an independent sample, at the
    speed of a sequential read. The order depends only on the options and on the shards that are
    extracted at the time of the call.

    Parameters
    ----------
    store : Store, path or URL
        The store to read. Shards that are not extracted yet are left out; if the extraction was
        finished, none is.
    hookpoint : str
        The name of a hookpoint, such as ``resid_post.3``.
    batch_size : int
        Rows of a batch; the last batch of an epoch may be shorter.
    seed : int
        The seed of the selection and of the order.
    fraction : float
        The share of rows to take, in whole chunks, evenly over shards: 0.1 reads a tenth of the
        bytes. In a store of order ``corpus`` a chunk is a run of text, so few documents are taken
        whole instead of a few rows of each.
    skip : float
        The share of rows to leave out first: (skip 0, fraction 0.9) and (skip 0.9, fraction 0.1)
        with the same seed share no row, for training and held-out sets.
    epochs : int or None
        Epochs of one loop; None never ends.
    rank, world_size : int
        This rank, from 0, and the number of ranks. All ranks give the same number of batches, of
        different rows.
    drop_last : bool
        Whether to leave out the rows at the end of an epoch that make no full batch on every rank;
        they differ from epoch to epoch.
    buffer_rows : int, optional
        Rows of the shuffle buffer, permuted together; rounded down to a multiple of ``batch_size``.
        Default: 262,144, or as many as fit 1 GiB. ``Batches.buffer_bytes`` is the memory.
    dtype : torch dtype
        The dtype of the batches.
    special : bool
        Whether to give the rows of special tokens too, in a store that keeps them. They are few,
        have nearly one direction and a very large norm, and a sparse autoencoder would learn little
        else from them.
    prefetch : bool
        Whether to read the next group into a second buffer while one is used.
    threads : int, optional
        Number of threads that read, check and decode. Default: two per core (they wait for the
        disk), from 4 to 16; on an object store 64 (``ACTLAS_READERS``).
    pool_rows : int, optional
        Alias of ``buffer_rows``.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    NotExtractedError
        No shard is extracted yet.
    ConfigError
        An option is out of range, or the selection has fewer rows than a batch.
    CorruptDataError
        The extraction was finished, and receipts are lost since. During iteration: stored bytes
        differ from the bytes that were written, or lie in another's place; the message names the
        rows.

    Examples
    --------
    >>> for x, rows in actlas.batches(store, "resid_post.3", fraction=0.1):  # doctest: +SKIP
    ...     train(x)                                    # [8192, 256] float32
    ...     store.rows.token_id[rows]                   # the tokens of these rows
    """
    store = as_store(store)
    array = store.activations[hookpoint]
    hookpoint = store.name_of(hookpoint)
    seed, batch_size = _whole("seed", seed), _whole("batch_size", batch_size)
    rank, world_size = _whole("rank", rank), _whole("world_size", world_size)
    buffer_rows = _alias(buffer_rows, pool_rows)
    _check(batch_size, fraction, skip, epochs, rank, world_size, buffer_rows, threads)
    done = store.whole()
    if not done:
        raise NotExtractedError(f"{store.path}: no shard is extracted yet: run `actlas extract`.")
    left_out = None
    if store.rows.special is not None and not special:
        left_out = SpecialRows(array.spec, store.rows.special, done)
    selection = select_rows(array.spec, done, left_out, seed, fraction, skip)
    _check_enough(selection, batch_size, world_size)
    rows = _buffer_rows(array.spec, batch_size, buffer_rows)
    key = BatchState(
        epoch=0,
        base=0,
        batch=0,
        plan_sha256=store.plan_sha256,
        hookpoint=hookpoint,
        shards_sha256=_digest(store.plan_sha256, done),
        n_shards=len(done),
        n_rows=selection.n_rows,
        seed=seed,
        fraction=float(fraction),
        skip=float(skip),
        special=special,
        batch_size=batch_size,
        pool_rows=rows,
        drop_last=drop_last,
        world_size=world_size,
    )
    return Batches(
        store,
        hookpoint,
        selection,
        ShuffleBuffer(
            array,
            buffer_slots(selection.sizes, rows),
            left_out,
            ahead=prefetch,
            threads=threads or max(4, min(16, 2 * (os.cpu_count() or 1)), store.objects.n_readers),
        ),
        key,
        epochs=epochs,
        rank=rank,
        dtype=dtype,
    )


def _alias(buffer_rows: int | None, pool_rows: int | None) -> int | None:
    """Return the rows of the shuffle buffer, which have two names."""
    if buffer_rows is not None and pool_rows is not None:
        raise ConfigError(
            "pool_rows: expected buffer_rows or its alias pool_rows, got both.", field="pool_rows"
        )
    rows = pool_rows if buffer_rows is None else buffer_rows
    return None if rows is None else _whole("buffer_rows", rows)


def _buffer_rows(spec: ArraySpec, batch_size: int, asked: int | None) -> int:
    rows = asked or min(BUFFER_ROWS, BUFFER_BYTES_MAX // spec.row_bytes)
    return max(rows // batch_size, 1) * batch_size


def _digest(plan_sha256: str, done: Sequence[int]) -> str:
    digest = hashlib.sha256(plan_sha256.encode())
    digest.update(np.array(done, dtype="<i8").tobytes())
    return digest.hexdigest()


def _whole(field: str, value: SupportsIndex) -> int:
    """Return an integer of any type as Python's own, which JSON can hold."""
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{field}: got {value}, expected an integer.", field=field) from None


def _check(
    batch_size: int,
    fraction: float,
    skip: float,
    epochs: int | None,
    rank: int,
    world_size: int,
    buffer_rows: int | None,
    threads: int | None,
) -> None:
    def refuse(field: str, got: object, expected: str) -> None:
        raise ConfigError(f"{field}: got {got}, expected {expected}.", field=field)

    whole = {"batch_size": batch_size, "world_size": world_size}
    optional = {"epochs": epochs, "threads": threads}
    whole |= {field: value for field, value in optional.items() if value is not None}
    for field, value in whole.items():
        if value < 1:
            refuse(field, value, "at least 1")
    if buffer_rows is not None and buffer_rows < batch_size:
        refuse("buffer_rows", f"{buffer_rows:,}", f"at least one batch of {batch_size:,} rows")
    if not 0 <= rank < world_size:
        refuse("rank", rank, f"one of 0 to {world_size - 1}: world_size is {world_size}")
    if not 0 < fraction <= 1:
        refuse("fraction", fraction, "a share above 0 and at most 1 (0.1: one row in ten)")
    if not 0 <= skip < 1:
        refuse("skip", skip, "a share from 0 to below 1")
    if skip + fraction > 1 + 1e-9:
        refuse("skip + fraction", f"{skip} + {fraction}", "at most 1 together")


def _check_enough(selection: Selection, batch_size: int, world_size: int) -> None:
    n_rows = selection.n_rows
    if n_rows < max(batch_size, world_size):
        raise ConfigError(
            f"batch_size: got {batch_size:,} on {world_size} rank(s), but the selection has "
            f"{n_rows:,} rows. Take a larger fraction, a smaller batch_size, or extract more.",
            field="batch_size",
        )
