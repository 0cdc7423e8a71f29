"""``actlas.export``: a plain Zarr copy of a store, for libraries without bfloat16."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actlas.jobs.output import output_folder
from actlas.pipeline.hookpoints.globs import select_hookpoints
from actlas.store.store import as_store
from actlas.store.write.plain import PlainDtype, write_plain

if TYPE_CHECKING:
    from actlas.store.store import Store


def export(
    store: Store | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: PlainDtype = "float32",
    hookpoints: str | Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a plain Zarr copy of a store, which every Zarr library reads, and return its folder.

    The copy has the same groups and arrays (rows, documents, activations, pooled rows) in plain
    chunks. It has no ledger: actlas itself reads the store, not the copy.

    Parameters
    ----------
    store : Store, path or URL
        The store; every shard must be done.
    out : path
        The new folder, on this machine. It appears complete, or not at all.
    dtype : {"float32", "float16"}
        The data type of the activations. float32 is exact for every stored dtype.
    hookpoints : str or sequence of str, optional
        Names or globs of the store's hookpoints. Default: all.
    overwrite : bool
        Replace the contents of ``out``.
    progress : callable, optional
        Called with the chunks written and their total.

    Raises
    ------
    NotExtractedError
        A shard has no receipt.
    HookpointError
        The store has no such hookpoint.
    ConfigError
        ``dtype`` is another one, or a value is beyond the range of float16.
    StoreExistsError
        The folder is not empty.

    Examples
    --------
    >>> actlas.export("run.zarr", "plain.zarr")                          # doctest: +SKIP
    """
    opened = as_store(store)
    chosen = [spec.name for spec in select_hookpoints(opened, hookpoints)]
    with output_folder(out, overwrite=overwrite) as staged:
        write_plain(opened, staged, dtype=dtype, hookpoints=chosen, progress=progress)
    return Path(out).expanduser()
