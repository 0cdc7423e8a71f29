"""``actlas localize``: which units prefer one condition; a table, a mask, pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.formatting import command as command_line
from actlas.jobs.formatting import count, counted, printable
from actlas.jobs.logs import NowAndThen
from actlas.jobs.output import check_free, output_folder
from actlas.store.store import open_store

if TYPE_CHECKING:
    from actlas.analysis.localizer.result import Localization

POOL_TASK = "pool_shard-"


@click.command("localize", short_help="Which units prefer one condition.")
@click.argument("store")
@click.option(
    "--contrast",
    required=True,
    metavar="POSITIVE:NEGATIVE",
    help="Two labels of the store's documents, such as S:N; or COLUMN=POSITIVE:NEGATIVE of its "
    "tokens, such as role=user:assistant, or entity=PER:* against all other tokens.",
)
@click.option(
    "--pool",
    type=click.Choice(["last", "mean"]),
    default="last",
    help="A document's sample: its last kept token, or the mean over its kept tokens.  "
    "[default: last]",
)
@click.option(
    "--signed",
    is_flag=True,
    help="Leave the sign.  [default: the absolute value, taken after pooling]",
)
@click.option(
    "--top",
    default="1%",
    help="Units to select, over all hookpoints together: a share, or a count.  [default: 1%]",
)
@click.option("--hookpoints", help="Names or globs of the store's, with commas.  [default: all]")
@click.option(
    "--on-nonfinite",
    type=click.Choice(["refuse", "omit"]),
    default="refuse",
    help="Where a unit's samples hold NaN or infinity: stop, or leave that unit untested.  "
    "[default: refuse]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the results: new or empty.",
)
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.  [default: no]")
@json_option
@debug_option
def command(
    store: str,
    contrast: str,
    pool: Literal["last", "mean"],
    signed: bool,
    top: str,
    hookpoints: str | None,
    on_nonfinite: Literal["refuse", "omit"],
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Test every unit of STORE by Welch's t-test, and select those with the largest t.

    Every document with tokens is one sample. Writes units.csv, mask.json, summary.json,
    brain_map.png, layers.png and t_histogram.png.
    """
    opened = open_store(store)
    check_free(out.expanduser().absolute(), overwrite=overwrite)
    from actlas.analysis.localizer.localize import localize

    with _progress():
        found = localize(
            opened,
            contrast,
            pool=pool,
            signed=signed,
            top=top,
            hookpoints=hookpoints,
            on_nonfinite=on_nonfinite,
        )
    with output_folder(out, overwrite=overwrite) as folder:
        found.save(folder)
    if as_json:
        click.echo(json.dumps({"out": str(out), **found.summary()}))
    else:
        click.echo("\n".join(_lines(found, out)))


@contextmanager
def _progress() -> Iterator[None]:
    """Tell how many shards are read of how many: a bar on a terminal, else a line now and then."""
    from dask.callbacks import Callback

    n_done, n_all = 0, 0
    tell: Callable[[int, int], None]
    with ExitStack() as stack:
        tell = stack.enter_context(_bar()) if _on_a_terminal() else _lines_now_and_then()

        def begin(graph: Any) -> None:
            nonlocal n_all
            n_all = sum(str(key).startswith(POOL_TASK) for key in graph)

        def done(key: Any, *_rest: Any) -> None:
            nonlocal n_done
            if str(key).startswith(POOL_TASK):
                n_done += 1
                tell(n_done, n_all)

        stack.enter_context(Callback(start=begin, posttask=done))  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("pooling"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    shown = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    bar = shown.add_task("pooling", total=None)
    with shown:
        yield lambda n_done, n_all: shown.update(bar, completed=n_done, total=n_all)


def _lines_now_and_then() -> Callable[[int, int], None]:
    say = NowAndThen()
    return lambda n_done, n_all: say(f"pooled {n_done:,} of {counted(n_all, 'shard')}")


def _on_a_terminal() -> bool:
    return sys.stderr.isatty()


def _lines(found: Localization, out: Path) -> Iterable[str]:
    positive, negative = found.conditions
    key = found.mask.key
    sample = "last kept token" if key.pool == "last" else "mean over the kept tokens"
    column = ""
    if key.column is not None:
        column, sample = f"{printable(key.column)}=", f"{sample} of that side in each document"
    yield (
        f"contrast    {column}{printable(positive.label)} "
        f"({counted(positive.n_documents, 'document')}) "
        f"against {printable(negative.label)} ({count(negative.n_documents)})"
    )
    n_empty = positive.n_without_tokens + negative.n_without_tokens
    if n_empty or found.n_ignored:
        yield (
            f"left out    {count(n_empty)} of their documents without tokens, "
            f"{counted(found.n_ignored, 'document')} of neither "
            f"{'label' if key.column is None else 'side'}"
        )
    yield f"sample      {sample}, {'signed' if key.signed else 'absolute'}"
    effect = found.summary()["median_cohen_d_selected"]
    told = f", median cohen_d {effect:.2f}" if isinstance(effect, float) else ""
    yield (
        f"selected    {count(found.n_selected)} of {counted(found.n_units, 'unit')} "
        f"(top {key.top}), t >= {found.t_threshold:.4g}{told}"
    )
    if found.n_nonfinite_units:
        untested = counted(found.n_nonfinite_units, "unit")
        yield f"untested    {untested} with NaN or infinity in a sample"
    share = 100 * found.n_significant / found.n_units
    yield (
        f"q < 0.05    {counted(found.n_significant, 'unit')} ({share:.0f} %): tests of many units "
        "find many; how large an effect is, cohen_d says"
    )
    yield ""
    width = max(12, *(len(row.hookpoint) + 2 for row in found.counts()))
    yield f"{'hookpoint':<{width}}{'units':>9}{'selected':>10}{'q < 0.05':>10}"
    for row in found.counts():
        yield (
            f"{row.hookpoint:<{width}}{count(row.n_units):>9}{count(row.n_selected):>10}"
            f"{count(row.n_significant):>10}"
        )
    yield ""
    mask = command_line(
        "ablate", key.model_id, "--mask", str(out / "mask.json"), "--corpus", "CORPUS"
    )
    yield f"wrote {out}: units.csv, mask.json, summary.json and three pictures"
    yield f"-> next: {mask}"
