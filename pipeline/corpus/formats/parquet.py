"""Parquet files: the needed columns in batches of rows, within a stated memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from actlas.pipeline.corpus.formats.arrow_rows import field_paths, rows_of
from actlas.pipeline.corpus.formats.base import (
    BLOCK_BYTES,
    Position,
    Raw,
    Wanted,
    damaged,
    select,
)
from actlas.pipeline.corpus.formats.parquet_pages import batches
from actlas.store.display.text import counted


def parquet_rows(path: Path, wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield the rows of a Parquet file with the needed columns.

    Parameters
    ----------
    path : Path
        The file.
    wanted : callable
        Selects the columns.
    position : Position
        Updated as the reading proceeds.

    Raises
    ------
    CorpusError
        The file is damaged or has other rows than it states; a needed column's name is that of
        several; a page or a row unpacks to more than is allowed (``unpacked_limit``).
    """
    import pyarrow as pa

    try:
        yield from _rows(path, wanted, position)
    except pa.ArrowException as error:
        raise damaged(path, str(error)) from error
    except OSError as error:  # Arrow's own has no number: a page that cannot be decompressed
        if error.errno is not None:
            raise
        raise damaged(path, str(error)) from error


def _rows(path: Path, wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    index = 0
    with (
        path.open("rb") as raw,
        _open(path) as file,
    ):
        n_rows = file.metadata.num_rows
        schema = file.schema_arrow
        columns = select(wanted, list(schema.names), field_paths(schema), path, "its schema")
        if not columns:
            yield from ((i, {}) for i in range(n_rows))
            return
        for place in range(file.num_row_groups):
            n, shared = batches(raw, path, file.metadata.row_group(place), columns)
            with _open(path, shared) if shared else nullcontext(file) as source:
                for batch in source.iter_batches(n, row_groups=[place], columns=columns):
                    for row in rows_of(batch):
                        yield index, row
                        index += 1
                    position.fraction = index / n_rows
        if index != n_rows:
            raise damaged(path, f"it states {counted(n_rows, 'row')} and has {index:,}")


def _open(path: Path, shared: Sequence[str] = ()) -> Any:
    """Open a file; the columns ``shared`` are read as indices into their dictionaries."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        path,
        read_dictionary=list(shared),
        pre_buffer=False,
        buffer_size=BLOCK_BYTES,
        page_checksum_verification=True,
    )
