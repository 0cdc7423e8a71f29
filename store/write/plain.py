"""A plain copy of a store for other libraries: standard dtypes, one file per chunk, no ledger.

Most Zarr libraries do not know bfloat16, and a file that holds several chunks needs range requests
over HTTP. The copy needs neither. It is not a store: nothing continues, verifies or repairs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

from actlas.store.errors import ConfigError, NotExtractedError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.dtypes import ACTIVATION_DTYPES, fill_value, numpy_dtype
from actlas.store.format.layout import ceil_div
from actlas.store.format.zarr_json import group_metadata, metadata_bytes
from actlas.store.ledger.receipts import EXTRACT
from actlas.store.objects.threads import map_in_order
from actlas.store.read.reader import StoreReader
from actlas.store.shards.lazy_array import LazyArray

PlainDtype = Literal["float32", "float16"]

EXPORTED = "actlas_export"
"""The attribute of a copy that says what it was copied from."""

CHUNK_BYTES = 4 << 20
"""The largest chunk of a plain array, uncompressed."""

_BLOSC = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}


class PlainArray(NamedTuple):
    """One array of the copy.

    Attributes
    ----------
    source : LazyArray
        The stored array.
    spec : ArraySpec
        Its description, with the names that its codes stand for.
    dtype : str
        The data type of the copy.
    """

    source: LazyArray
    spec: ArraySpec
    dtype: str

    @property
    def chunk_rows(self) -> int:
        """Rows per chunk: the largest power of two whose rows fit ``CHUNK_BYTES``."""
        row_bytes = max(1, self.spec.row_bytes // self.spec.numpy_dtype.itemsize)
        rows = CHUNK_BYTES // (row_bytes * numpy_dtype(self.dtype).itemsize)
        return 1 << max(0, rows.bit_length() - 1)

    def metadata(self) -> dict[str, Any]:
        """Return the ``zarr.json``: a regular grid of chunks, without sharding."""
        size = numpy_dtype(self.dtype).itemsize
        little: dict[str, Any] = {"name": "bytes"}
        if size > 1:
            little["configuration"] = {"endian": "little"}
        chunk = [self.chunk_rows, *self.spec.shape[1:]]
        return self.spec.metadata() | {
            "data_type": self.dtype,
            "fill_value": fill_value(self.dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [little, {"name": "blosc", "configuration": _BLOSC | {"typesize": size}}],
        }


def write_plain(
    store: StoreReader,
    folder: Path,
    *,
    dtype: PlainDtype,
    hookpoints: Collection[str],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a plain copy of a store's rows, documents, activations and pooled rows.

    Every byte is checked as it is read.

    Parameters
    ----------
    store : StoreReader
        The store; every shard must be done.
    folder : Path
        An existing, empty folder.
    dtype : {"float32", "float16"}
        The data type of the activations. float32 is exact for every stored dtype.
    hookpoints : collection of str
        The hookpoints to copy.
    progress : callable, optional
        Called with the chunks written and their total.

    Returns
    -------
    int
        The bytes written.

    Raises
    ------
    NotExtractedError
        A shard has no receipt.
    ConfigError
        ``dtype`` is another one; or a value is beyond float16's range, and the message names
        hookpoint, row and value.
    """
    if dtype not in get_args(PlainDtype):
        raise ConfigError(
            f"dtype: got {dtype!r}, expected {' or '.join(map(repr, get_args(PlainDtype)))}.",
            field="dtype",
        )
    missing = {job: len(store.missing(job)) for job in store.jobs}
    if any(missing.values()):
        raise NotExtractedError(
            f"{store.path}: {sum(missing.values()):,} shards are not extracted yet; a plain copy "
            "cannot say which rows are missing. Finish the extraction first: actlas extract "
            f"{store.path}"
        )
    arrays = list(_arrays(store, dtype, hookpoints))
    about = {
        "plan_sha256": store.plan_sha256,
        "dtype": dtype,
        "plan": store.plan.model_dump(mode="json"),
    }
    n_bytes = _write(folder / "zarr.json", metadata_bytes(group_metadata({EXPORTED: about})))
    groups = {parent for a in arrays for parent in Path(a.spec.path).parents} - {Path()}
    for group in sorted(groups):
        n_bytes += _write(folder / group / "zarr.json", metadata_bytes(group_metadata()))
    for array in arrays:
        n_bytes += _write(folder / array.spec.metadata_key, metadata_bytes(array.metadata()))
    chunks = [(a, i) for a in arrays for i in range(ceil_div(a.spec.n_rows, a.chunk_rows))]
    threads = min(8, os.cpu_count() or 1)
    written = map_in_order(lambda c: _write_chunk(folder, *c), chunks, threads, n_ahead=threads)
    for n, size in enumerate(written, 1):
        n_bytes += size
        if progress is not None:
            progress(n, len(chunks))
    return n_bytes


def _arrays(
    store: StoreReader, dtype: PlainDtype, hookpoints: Collection[str]
) -> Iterator[PlainArray]:
    """Yield the arrays of the copy, in the order of the plan."""
    documents = store.documents
    named = StoreArrays(
        store.plan,
        documents.label_names or None,
        documents.source_names,
        documents.token_column_names,
    )
    for name, column in documents.columns.items():
        yield PlainArray(column, named.documents[name], column.spec.dtype)
    if EXTRACT in store.jobs:
        for name, column in store.rows.columns.items():
            yield PlainArray(column, named.rows[name], column.spec.dtype)
        for name, array in store.activations.items():
            if name in hookpoints:
                yield PlainArray(array, array.spec, dtype)
    for name, pools in store.pooled.items():
        for pool in pools.values() if name in hookpoints else ():
            yield PlainArray(pool, pool.spec, pool.spec.dtype)


def _write_chunk(folder: Path, array: PlainArray, chunk: int) -> int:
    start = chunk * array.chunk_rows
    rows = array.source.read(start, min(start + array.chunk_rows, array.spec.n_rows))
    values = _converted(rows, array, start)
    if len(values) < array.chunk_rows:
        fill = fill_value(array.dtype)
        padded = np.full((array.chunk_rows, *values.shape[1:]), fill, dtype=values.dtype)
        padded[: len(values)] = values
        values = padded
    codec = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE)
    body = codec.encode(np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}"))
    index = "/".join([str(chunk), *("0" for _ in array.spec.shape[1:])])
    return _write(folder / array.spec.path / "c" / index, bytes(body))


def _converted(rows: NDArray[Any], array: PlainArray, start: int) -> NDArray[Any]:
    """Return rows in the dtype of the copy; refuse values that it cannot hold."""
    if array.dtype == array.spec.dtype or array.dtype not in ACTIVATION_DTYPES:
        return rows
    exact = rows.astype(np.float32)
    with np.errstate(over="ignore"):
        values = exact.astype(numpy_dtype(array.dtype))
    beyond = np.isinf(values) & np.isfinite(exact)
    if beyond.any():
        row, unit = (int(i) for i in np.argwhere(beyond)[0])
        raise ConfigError(
            f"{array.spec.path}: row {start + row}, unit {unit} is {exact[row, unit]:.6g}, and "
            f"{array.dtype} ends at 65,504. Export as float32, which holds every stored value.",
            field="dtype",
        )
    return values


def _write(path: Path, data: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(data)
