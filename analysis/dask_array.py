"""``actlas.dask_array``: the activations of a hookpoint as a Dask array, read on computation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from actlas.store.extras import explains_missing
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.read.reader import StoreReader
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.store import as_store

if TYPE_CHECKING:
    import dask.array as da

BLOCK_BYTES = 128 << 20


@explains_missing
def dask_array(
    store: StoreReader | str | os.PathLike[str],
    hookpoint: str,
    *,
    dtype: str = "float32",
    rows: int | None = None,
) -> da.Array:
    """Return the activations of one hookpoint as a Dask array, shape [row, unit].

    Each block is a part of one shard, read and verified by the store's reader. bfloat16 is cast,
    since numpy hardly computes in it.

    Parameters
    ----------
    store : Store, path or URL
        The store. Computing a block of a shard that is not extracted raises an error.
    hookpoint : str
        The name of a hookpoint, such as ``resid_post.3``.
    dtype : str
        The dtype of the blocks.
    rows : int, optional
        Rows of a block. Default: a shard, halved until a block is at most 128 MiB.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.

    Examples
    --------
    >>> x = actlas.dask_array(store, "resid_post.3")      # doctest: +SKIP
    >>> x.mean(axis=0).compute()                          # doctest: +SKIP
    """
    import dask.array as da

    store = as_store(store)
    array = store.activations[hookpoint]
    wide = numpy_dtype(dtype)
    n_rows, width = array.shape
    block = rows or _block_rows(store.plan.shard_rows, width * wide.itemsize)
    chunks = (_within_shards(n_rows, store.plan.shard_rows, block), (width,))
    meta: Any = np.empty((0, width), dtype=wide)
    lazy: da.Array = da.map_blocks(  # type: ignore[no-untyped-call]
        _read_block, array=array, wide=wide, chunks=chunks, dtype=wide, meta=meta
    )
    return lazy


def _block_rows(shard_rows: int, row_bytes: int) -> int:
    block = shard_rows
    while block > 1 and block * row_bytes > BLOCK_BYTES:
        block //= 2
    return block


def _within_shards(n_rows: int, shard_rows: int, block: int) -> tuple[int, ...]:
    """Cut rows into blocks that never cross a shard's border."""
    edges = {*range(0, n_rows, shard_rows), n_rows}
    for start in range(0, n_rows, shard_rows):
        edges.update(range(start, min(start + shard_rows, n_rows), block))
    return tuple(int(n) for n in np.diff(sorted(edges)))


def _read_block(
    array: LazyArray, wide: np.dtype[Any], block_info: dict[Any, Any] | None = None
) -> Any:
    assert block_info is not None
    start, stop = block_info[None]["array-location"][0]
    return array.read(start, stop).astype(wide, copy=False)
