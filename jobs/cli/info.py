"""``actlas info``: the contents of a store."""

from __future__ import annotations

from collections.abc import Iterable

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.table import cells, labelled
from actlas.jobs.formatting import count, counted, n_bytes
from actlas.jobs.run.describe import info_of
from actlas.jobs.run.reports.contents import HookpointStatistics, InfoReport
from actlas.jobs.terminal import echo
from actlas.store.format.schema import HookpointSpec, Plan, ProcessorSpec
from actlas.store.store import open_store

MAX_NAMES = 12
"""Largest number of a token column's values that are listed."""


def _lines(info: InfoReport) -> Iterable[str]:
    yield info.store
    yield from _plan_lines(info)
    for name, values in info.token_columns.items():
        more = f" and {len(values) - MAX_NAMES:,} more" if len(values) > MAX_NAMES else ""
        known = ", ".join(values[:MAX_NAMES]) or "nothing"
        yield labelled("column", f"{name} of tokens: {known}{more}")
    yield from _stored_lines(info)
    yield ""
    yield from _table(info)


def _plan_lines(info: InfoReport) -> Iterable[str]:
    plan = info.plan
    model, corpus, windows = plan.model, plan.corpus, plan.windows
    yield labelled(
        "model",
        f"{model.id} ({model.architecture}, {counted(model.n_layers, 'layer')}, d_model "
        f"{model.d_model}, computed in {model.compute_dtype})",
    )
    yield labelled(
        "weights", f"sha256 {model.weights_sha256[:16]}…, revision {model.revision or '-'}"
    )
    documents, tokens = counted(plan.n_documents, "document"), counted(plan.n_tokens, "token")
    yield labelled("corpus", f"{corpus.uri}: {documents}, {tokens}")
    if corpus.n_records_skipped:
        skipped, read = count(corpus.n_records_skipped), count(corpus.n_records_read)
        yield labelled("skipped", f"{skipped} of {read} records")
    for line in info.corpus_left_out:
        yield labelled("left out", line)
    if model.modality != "image":
        yield labelled(
            "windows",
            f"{count(plan.n_windows)} of at most {counted(windows.max_length, 'token')}; longer "
            f"documents: {windows.long}{_bos(plan)}",
        )
    if plan.processor is not None:
        yield labelled("images", _images(plan, plan.processor))
    if plan.dense:
        yield labelled("rows", f"{plan.order} order, seed {plan.seed}, dtype {plan.dtype}")


def _bos(plan: Plan) -> str:
    """Return that each window begins with a BOS token, where that was asked for."""
    if plan.tokenizer is None or not plan.request.get("prepend_bos"):
        return ""
    return f"; each begins with BOS, token {plan.tokenizer.prefix_ids[0]} (--prepend-bos)"


def _images(plan: Plan, processor: ProcessorSpec) -> str:
    """Return the number of patches per image, and whether its other positions have rows."""
    rows, columns = processor.grid
    n_special = processor.n_prefix + processor.n_suffix
    kept = "with rows" if plan.keep_special else "without rows"
    special = f", {counted(n_special, 'special position')} {kept}" if n_special else ""
    return f"{rows} x {columns} patches each{special}, {n_bytes(plan.n_image_bytes)} of files"


def _stored_lines(info: InfoReport) -> Iterable[str]:
    plan = info.plan
    if plan.dense:
        yield labelled(
            "shards",
            f"{info.n_shards_done:,} of {info.n_shards:,} done, "
            f"{counted(plan.shard_rows, 'row')} each, compression {plan.compression}",
        )
    if plan.pools:
        alone = "" if plan.dense else ", float32; no token rows (--pooled-only)"
        yield labelled(
            "pooled",
            f"{', '.join(plan.pools)} of each document: {info.n_pooled_shards_done:,} of "
            f"{counted(info.n_pooled_shards, 'shard')} done{alone}",
        )
    yield labelled("stored", n_bytes(info.n_stored_bytes))
    for each in info.features:
        size = f"{count(each.n_features)} of {each.hookpoint}"
        yield labelled("features", f"{each.name}: {size} ({each.sae_kind}), {each.state}")


def _table(info: InfoReport) -> Iterable[str]:
    """Yield a line per hookpoint: its width, and statistics of its rows."""
    dense = info.plan.dense
    names: tuple[str, ...] = ("width",)
    if dense:
        names += ("mean norm", "rms norm", "|mean|", "mean std", "within", "min", "max")
    yield f"{'hookpoint':<24}{cells(names, 11)}"
    for hookpoint in info.plan.hookpoints:
        summary = info.statistics.get(hookpoint.name)
        yield _hookpoint_line(hookpoint, summary, "not extracted yet" if dense else "")


def _hookpoint_line(
    hookpoint: HookpointSpec, summary: HookpointStatistics | None, otherwise: str
) -> str:
    line = f"{hookpoint.name:<24}{hookpoint.width:>11,}"
    if summary is None:
        return f"{line}   {otherwise}".rstrip()
    numbers = (
        summary.mean_norm,
        summary.rms_norm,
        summary.norm_of_mean,
        summary.mean_std,
        summary.within_share,
        summary.min,
        summary.max,
    )
    return line + cells(("-" if x is None else f"{x:.4g}" for x in numbers), 11)


@click.command("info", short_help="Show the contents of a store.")
@click.argument("store")
@json_option
@debug_option
def command(store: str, as_json: bool) -> None:
    """Show the contents of STORE: model, corpus, windows, hookpoints, size, statistics.

    mean norm and rms norm: mean and root mean square of the rows' L2 norms. |mean|: norm of the
    mean row. mean std: mean of the units' standard deviations. within: share of the units' variance
    that lies within documents.
    """
    info = info_of(open_store(store))
    echo(*([info.to_json()] if as_json else _lines(info)))
