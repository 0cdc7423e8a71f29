"""Rows of Arrow's record batches as Python values, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actlas.pipeline.corpus.formats.base import (
    MAX_DOCUMENT_BYTES,
    NOT_UTF8,
    TOO_LONG,
    Raw,
    Unreadable,
)

_SLACK = 64
"""Bytes of offsets and validity beside a value."""

_NO_VALUE = Unreadable("a value that Python has no counterpart of")


def rows_of(batch: Any) -> Iterator[Raw]:
    """Yield the rows of a record batch.

    Each value is converted when its row is yielded: a column that repeats one dictionary value
    would take that value's size for each of its rows.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        The rows.
    """
    import pyarrow as pa

    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    sized = [column for _, column in columns if _n_bytes(column) > MAX_DOCUMENT_BYTES]
    for i in range(batch.num_rows):
        if any(_n_bytes(column.slice(i, 1)) > MAX_DOCUMENT_BYTES + _SLACK for column in sized):
            yield TOO_LONG
            continue
        try:
            row: Raw = {name: column[i].as_py() for name, column in columns}
        except UnicodeDecodeError:
            row = NOT_UTF8
        except (ValueError, OverflowError, LookupError, pa.ArrowException):
            row = _NO_VALUE  # a date beyond the year 9999, an object with a name twice
        yield row


def _n_bytes(array: Any) -> int:
    """Return the bytes of an array's values, of a value as often as the array refers to it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    of = array.type
    if pa.types.is_dictionary(of):
        try:
            lengths = pc.binary_length(array.dictionary)
        except pa.ArrowNotImplementedError:  # no texts: numbers, of at most 32 bytes
            return 32 * len(array)
        return pc.sum(lengths.take(array.indices.cast(pa.int64()))).as_py() or 0
    if pa.types.is_list(of) or pa.types.is_large_list(of):
        return _n_bytes(array.flatten())
    if pa.types.is_struct(of):
        return sum(_n_bytes(field) for field in array.flatten())
    return int(array.nbytes)


def field_paths(schema: Any) -> list[str]:
    """Return the names of all fields of a schema, nested ones as dotted paths.

    Parameters
    ----------
    schema : pyarrow.Schema or pyarrow.StructType
        The fields.
    """
    import pyarrow as pa

    paths: list[str] = []
    for field in schema:
        nested = field_paths(field.type) if pa.types.is_struct(field.type) else []
        paths += [f"{field.name}.{inner}" for inner in nested] or [field.name]
    return paths
