"""``actlas localize``: select the units that prefer one condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from actlas.analysis.figures import Figures, shown
from actlas.jobs.cli.flags import debug_option, figure_options, json_option
from actlas.jobs.cli.table import cells, labelled
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted
from actlas.jobs.logs import NowAndThen
from actlas.jobs.output import check_free, output_folder
from actlas.jobs.run.reports.analysis import LocalizeReport
from actlas.jobs.terminal import console, displayed, echo, is_terminal
from actlas.store.store import open_store

if TYPE_CHECKING:
    from actlas.analysis.localizer.result import Localization

POOL_TASK = "pool_shard-"


@click.command("localize", short_help="Select the units that prefer one condition.")
@click.argument("store")
@click.option(
    "--contrast",
    required=True,
    metavar="POSITIVE:NEGATIVE",
    help="Two labels of the store's documents, such as S:N; or two values of a token column, "
    "COLUMN=POSITIVE:NEGATIVE, such as role=user:assistant, or entity=PER:* for all other tokens.",
)
@click.option(
    "--pool",
    type=click.Choice(["last", "mean"]),
    default="last",
    help="Sample of each document: its last kept token, or the mean over its kept tokens.  "
    "[default: last]",
)
@click.option(
    "--signed",
    is_flag=True,
    help="Keep the sign.  [default: absolute values, taken after pooling]",
)
@click.option(
    "--top",
    default="1%",
    help="Units to select over all hookpoints together: a share or a count.  [default: 1%]",
)
@click.option(
    "--hookpoints", help="Hookpoints to test: names or globs, separated by commas.  [default: all]"
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["refuse", "omit"]),
    default="refuse",
    help="Units whose samples contain NaN or infinity: stop (refuse), or skip them (omit).  "
    "[default: refuse]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Output folder, new or empty.",
)
@click.option("--overwrite", is_flag=True, help="Replace the contents of --out.  [default: no]")
@figure_options
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
    figures: str,
    dpi: int,
    as_json: bool,
) -> None:
    """Test every unit of STORE by Welch's t-test, and select the units with the largest t.

    Each document with tokens is one sample. Writes units.csv, mask.json, summary.json, and the
    pictures brain_map, layers and t_histogram.
    """
    pictures = Figures.parse(figures, dpi)
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
        found.save(folder, figures=pictures)
    if as_json:
        echo(LocalizeReport(out=str(out), **found.summary()).to_json())
    else:
        echo(*_lines(found, out, pictures))


@contextmanager
def _progress() -> Iterator[None]:
    """Show the number of shards read: a bar on a terminal, otherwise lines as they are due."""
    from dask.callbacks import Callback

    n_done, n_all = 0, 0
    tell: Callable[[int, int], None]
    with ExitStack() as stack:
        tell = stack.enter_context(_bar() if is_terminal(err=True) else _lines_as_due())

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
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("pooling"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    shown = Progress(*columns, TimeRemainingColumn(), console=console(err=True), transient=True)
    bar = shown.add_task("pooling", total=None)
    with displayed(shown):
        yield lambda n_done, n_all: shown.update(bar, completed=n_done, total=n_all)


@contextmanager
def _lines_as_due() -> Iterator[Callable[[int, int], None]]:
    with NowAndThen() as say:
        yield lambda n_done, n_all: say(f"pooled {n_done:,} of {counted(n_all, 'shard')}")


def _lines(found: Localization, out: Path, pictures: Figures) -> Iterable[str]:
    yield from _sample_lines(found)
    effect = found.summary()["median_cohen_d_selected"]
    median = f", median Cohen's d {shown(effect)}" if isinstance(effect, float) else ""
    key = found.mask.key
    yield labelled(
        "selected",
        f"{count(found.n_selected)} of {counted(found.n_units, 'unit')} (top {key.top}), "
        f"t >= {shown(found.t_threshold)}{median}",
    )
    if found.n_nonfinite_units:
        untested = counted(found.n_nonfinite_units, "unit")
        yield labelled("untested", f"{untested} with NaN or infinity in a sample")
    share = 100 * found.n_significant / found.n_units
    n_samples = sum(condition.n_documents for condition in found.conditions)
    yield labelled(
        "q < 0.05",
        f"{counted(found.n_significant, 'unit')} ({share:.0f} %), "
        f"{count(found.n_selected_significant)} of the selected: with "
        f"{counted(n_samples, 'sample')} small effects can be significant; judge effect sizes by "
        "Cohen's d",
    )
    for note in found.notes:
        yield labelled("note", note)
    yield ""
    width = max(12, *(len(row.hookpoint) + 2 for row in found.counts()))
    yield f"{'hookpoint':<{width}}{'units':>9}{cells(('selected', 'q < 0.05'), 10)}"
    for row in found.counts():
        counts = cells((count(row.n_selected), count(row.n_significant)), 10)
        yield f"{row.hookpoint:<{width}}{count(row.n_units):>9}{counts}"
    yield ""
    drawn = f" and three pictures ({', '.join(pictures.formats)})" if pictures.formats else ""
    yield f"wrote {out}: units.csv, mask.json, summary.json{drawn}"
    if not found.is_empty:
        mask = str(out / "mask.json")
        yield f"-> next: {shell('ablate', key.model_id, '--mask', mask, '--corpus', 'CORPUS')}"


def _sample_lines(found: Localization) -> Iterable[str]:
    """Yield the contrast, the documents left out, and the sample of each document."""
    positive, negative = found.conditions
    key = found.mask.key
    sample = "last kept token" if key.pool == "last" else "mean over the kept tokens"
    column = ""
    if key.column is not None:
        column, sample = f"{key.column}=", f"{sample} of that side in each document"
    yield labelled(
        "contrast",
        f"{column}{positive.label} ({counted(positive.n_documents, 'document')}) "
        f"against {negative.label} ({count(negative.n_documents)})",
    )
    n_empty = positive.n_without_tokens + negative.n_without_tokens
    if n_empty or found.n_ignored:
        neither = f"neither {'label' if key.column is None else 'side'}"
        yield labelled(
            "left out",
            f"{count(n_empty)} of their documents without tokens, "
            f"{counted(found.n_ignored, 'document')} of {neither}",
        )
    yield labelled("sample", f"{sample}, {'signed' if key.signed else 'absolute'}")
