"""``actlas export``: a plain Zarr copy of a store, for libraries without bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.formatting import count, counted, n_bytes
from actlas.jobs.logs import NowAndThen
from actlas.jobs.run.export import export
from actlas.jobs.terminal import echo
from actlas.store.store import open_store


@click.command("export", short_help="Write a plain Zarr copy that every Zarr library reads.")
@click.argument("store")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="Data type of the activations; float32 is exact for every stored dtype.  "
    "[default: float32]",
)
@click.option(
    "--hookpoints",
    help="Hookpoints to copy: names or globs, separated by commas.  [default: all]",
)
@click.option("--overwrite", is_flag=True, help="Replace the contents of OUT.  [default: no]")
@debug_option
def command(
    store: str,
    out: Path,
    dtype: Literal["float32", "float16"],
    hookpoints: str | None,
    overwrite: bool,
) -> None:
    """Write a plain Zarr copy of STORE to the new folder OUT, which every Zarr library reads.

    Rows, documents, activations and pooled rows are copied, and checked as they are read. The copy
    has one file per chunk, so that HTTP readers need no range requests, and no ledger: keep the
    store.
    """
    opened = open_store(store)
    with NowAndThen() as say:
        copy = export(
            opened,
            out,
            dtype=dtype,
            hookpoints=hookpoints,
            overwrite=overwrite,
            progress=lambda done, of: say(f"{count(done)} of {counted(of, 'chunk')} written"),
        )
    size = sum(file.stat().st_size for file in copy.rglob("*") if file.is_file())
    echo(
        f"done: {counted(opened.plan.n_tokens, 'row')} as {dtype}, {n_bytes(size)} -> "
        f"zarr.open({str(out)!r})"
    )
