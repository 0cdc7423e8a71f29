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
    # A slice of a column that refers to a dictionary counts all of it.
    sized = [column for _, column in columns if not pa.types.is_dictionary(column.type)]
    if batch.nbytes <= MAX_DOCUMENT_BYTES:
        sized = []
    for i in range(batch.num_rows):
        if any(column.slice(i, 1).nbytes > MAX_DOCUMENT_BYTES + _SLACK for column in sized):
            yield TOO_LONG
            continue
        try:
            row: Raw = {name: column[i].as_py() for name, column in columns}
        except UnicodeDecodeError:
            row = NOT_UTF8
        except (ValueError, OverflowError, LookupError, pa.ArrowException):
            row = _NO_VALUE  # a date beyond the year 9999, an object with a name twice
        yield row


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
