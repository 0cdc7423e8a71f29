"""``actlas.batches``: shuffled batches of activations, read sequentially, resumed exactly."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex, overload

import numpy as np
import torch

from actlas.analysis.batches.sampler import Selection
from actlas.analysis.batches.selection import SpecialRows, in_blocks, select_rows
from actlas.analysis.batches.shuffle_buffer import ShuffleBuffer
from actlas.analysis.batches.state import BatchState
from actlas.analysis.batches.stream import Batch, Batches
from actlas.store.errors import ConfigError, NotExtractedError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.layout import ceil_div
from actlas.store.read.reader import StoreReader
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.shards.tensors import torch_dtype
from actlas.store.store import as_store

__all__ = ["Batch", "Batches", "batches"]

BUFFER_ROWS = 262_144

BUFFER_BYTES_MAX = 1 << 30

GROUPS = 8
"""Groups in an epoch at least, where a group can be as small as that."""

DIGEST = 16
"""Hexadecimal digits of a digest in a state."""


@overload
def batches(
    store: StoreReader | str | os.PathLike[str],
    hookpoint: str,
    *,
    batch_size: int = ...,
    seed: int = ...,
    fraction: float = ...,
    skip: float = ...,
    epochs: int | None = ...,
    rank: int = ...,
    world_size: int = ...,
    drop_last: bool = ...,
    buffer_rows: int | None = ...,
    dtype: torch.dtype = ...,
    special: bool = ...,
    prefetch: bool = ...,
    threads: int | None = ...,
    pool_rows: int | None = ...,
) -> Batches[torch.Tensor]: ...


@overload
def batches(
    store: StoreReader | str | os.PathLike[str],
    hookpoint: list[str] | tuple[str, ...],
    *,
    batch_size: int = ...,
    seed: int = ...,
    fraction: float = ...,
    skip: float = ...,
    epochs: int | None = ...,
    rank: int = ...,
    world_size: int = ...,
    drop_last: bool = ...,
    buffer_rows: int | None = ...,
    dtype: torch.dtype = ...,
    special: bool = ...,
    prefetch: bool = ...,
    threads: int | None = ...,
    pool_rows: int | None = ...,
) -> Batches[dict[str, torch.Tensor]]: ...


def batches(
    store: StoreReader | str | os.PathLike[str],
    hookpoint: str | list[str] | tuple[str, ...],
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
    dtype: torch.dtype | str = torch.float32,
    special: bool = False,
    prefetch: bool = True,
    threads: int | None = None,
    pool_rows: int | None = None,
) -> Batches[Any]:
    """Return a stream of shuffled batches of a hookpoint's rows, or of several, row by row.

    Each selected row comes once in an epoch, on one rank. Whole chunks from all over the store are
    read into a shuffle buffer of ``buffer_rows`` rows, and each batch takes an even, random share
    of them. Since rows are stored shuffled within their shards, a batch is close to an independent
    sample, at the speed of a sequential read. The order depends only on the options and on the
    shards that are extracted at the time of the call. It is the same for any number of ranks.

    Parameters
    ----------
    store : Store, path or URL
        The store to read. Shards that are not extracted yet are left out; if the extraction was
        finished, none is.
    hookpoint : str, or list of str
        The name of a hookpoint, such as ``resid_post.3``. Of several names the batches give the
        same rows: ``activations`` is then a dict of tensors by name, for crosscoders and
        transcoders.
    batch_size : int
        Rows of a batch, of all ranks together; the last batch of an epoch may be shorter.
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
        This rank, from 0, and the number of ranks, which divides ``batch_size``. Each rank gives
        its ``batch_size / world_size`` rows of every batch; of the last batch of an epoch it may
        give fewer, or none, unless ``drop_last``.
    drop_last : bool
        Whether to leave out the rows at the end of an epoch that make no full batch; they differ
        from epoch to epoch.
    buffer_rows : int, optional
        Rows of the shuffle buffer, of all ranks together; rounded down to a multiple of
        ``batch_size``. Default: one block of each shard, or an eighth of the rows if that is more;
        at most 262,144, and as many as fit 1 GiB. ``Batches.buffer_bytes`` is the memory of this
        rank.
    dtype : torch dtype or str
        The dtype of the batches, such as ``torch.bfloat16`` or ``"bfloat16"``.
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
        An option is out of range, the selection has fewer rows than a batch, or a hookpoint is
        named twice.
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
    names = _names(store, hookpoint)
    arrays = [store.activations[name] for name in names]
    blocks = in_blocks([array.spec for array in arrays])
    seed, batch_size = _whole("seed", seed), _whole("batch_size", batch_size)
    rank, world_size = _whole("rank", rank), _whole("world_size", world_size)
    buffer_rows = _alias(buffer_rows, pool_rows)
    _check(batch_size, fraction, skip, epochs, rank, world_size, buffer_rows, threads)
    done = store.whole()
    if not done:
        raise NotExtractedError(f"{store.path}: no shard is extracted yet: run `actlas extract`.")
    left_out = None
    if store.rows.special is not None and not special:
        left_out = SpecialRows(blocks, store.rows.special, done)
    selection = select_rows(blocks, done, left_out, seed, fraction, skip)
    _check_enough(selection, batch_size)
    rows = _buffer_rows(selection, blocks, arrays, buffer_rows)
    rows = max(rows // batch_size, 1) * batch_size
    key = BatchState(
        epoch=0,
        step=0,
        hookpoint=names[0] if isinstance(hookpoint, str) else _digest_of_names(names),
        rows=_digest(store.plan_sha256, done),
        shards=len(done),
        seed=seed,
        fraction=float(fraction),
        skip=float(skip),
        special=special,
        batch_size=batch_size,
        buffer_rows=rows,
        drop_last=drop_last,
    )
    return Batches(
        store,
        names,
        selection,
        ShuffleBuffer(
            arrays,
            blocks,
            ceil_div(min(rows, selection.n_rows), world_size),
            left_out,
            ahead=prefetch and (rows < selection.n_rows or epochs != 1),
            threads=threads or max(4, min(16, 2 * (os.cpu_count() or 1)), store.objects.n_readers),
        ),
        key,
        _first if isinstance(hookpoint, str) else partial(_by_name, names),
        epochs=epochs,
        rank=rank,
        world_size=world_size,
        dtype=torch_dtype(dtype),
    )


def _names(store: StoreReader, hookpoint: str | list[str] | tuple[str, ...]) -> list[str]:
    """Return the store's names of the hookpoints, of which there is one at least, each once."""
    given = [hookpoint] if isinstance(hookpoint, str) else hookpoint
    names = [store.name_of(name) for name in given]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"hookpoint: got {names}, expected a name, or several different names.",
            field="hookpoint",
        )
    return names


def _first(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0]


def _by_name(names: list[str], tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip(names, tensors, strict=True))


def _alias(buffer_rows: int | None, pool_rows: int | None) -> int | None:
    """Return the rows of the shuffle buffer, which have two names."""
    if buffer_rows is not None and pool_rows is not None:
        raise ConfigError(
            "pool_rows: expected buffer_rows or its alias pool_rows, got both.", field="pool_rows"
        )
    rows = pool_rows if buffer_rows is None else buffer_rows
    return None if rows is None else _whole("buffer_rows", rows)


def _buffer_rows(
    selection: Selection, blocks: ArraySpec, arrays: Sequence[LazyArray], asked: int | None
) -> int:
    """Return the rows of the shuffle buffer: at most :data:`BUFFER_ROWS`, and what fits memory.

    With a block of each shard, a group is as even as the whole store; and several groups in an
    epoch let reading go on beside the training.
    """
    if asked is not None:
        return asked
    n_shards = len(np.unique(selection.shard))
    enough = max(n_shards * blocks.chunk_rows, ceil_div(selection.n_rows, GROUPS))
    row_bytes = sum(array.spec.row_bytes for array in arrays)
    return max(1, min(BUFFER_ROWS, enough, BUFFER_BYTES_MAX // row_bytes))


def _digest(plan_sha256: str, done: Sequence[int]) -> str:
    digest = hashlib.sha256(plan_sha256.encode())
    digest.update(np.array(done, dtype="<i8").tobytes())
    return digest.hexdigest()[:DIGEST]


def _digest_of_names(names: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return f"{len(names)} hookpoints {digest[:DIGEST]}"


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
    if batch_size % world_size:
        refuse("world_size", world_size, f"a number that divides batch_size, {batch_size:,}")
    if not 0 < fraction <= 1:
        refuse("fraction", fraction, "a share above 0 and at most 1 (0.1: one row in ten)")
    if not 0 <= skip < 1:
        refuse("skip", skip, "a share from 0 to below 1")
    if skip + fraction > 1 + 1e-9:
        refuse("skip + fraction", f"{skip} + {fraction}", "at most 1 together")


def _check_enough(selection: Selection, batch_size: int) -> None:
    if selection.n_rows < batch_size:
        raise ConfigError(
            f"batch_size: got {batch_size:,}, but the selection has {selection.n_rows:,} rows. "
            "Take a larger fraction, a smaller batch_size, or extract more.",
            field="batch_size",
        )
