"""``actlas info``: what a store holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.formatting import count, counted, n_bytes, printable
from actlas.jobs.run.describe import info_of
from actlas.store.store import open_store

MAX_NAMES = 12
"""Of a column of tokens, that are listed."""


def _lines(info: dict[str, Any]) -> Iterable[str]:
    plan = info["plan"]
    model, corpus, windows = plan["model"], plan["corpus"], plan["windows"]
    yield info["store"]
    yield (
        f"model       {printable(model['id'])} ({model['architecture']}, {model['n_layers']} "
        f"layers, d_model {model['d_model']}, computed in {model['compute_dtype']})"
    )
    yield f"weights     sha256 {model['weights_sha256'][:16]}…, revision {model['revision'] or '-'}"
    yield (
        f"corpus      {printable(corpus['uri'])}: "
        f"{counted(plan['n_documents'], 'document')}, {counted(plan['n_tokens'], 'token')}"
    )
    if corpus["n_records_skipped"]:
        yield (
            f"skipped     {count(corpus['n_records_skipped'])} of "
            f"{count(corpus['n_records_read'])} records"
        )
    if model["modality"] != "image":
        yield (
            f"windows     {count(plan['n_windows'])} of at most {count(windows['max_length'])} "
            f"tokens; longer documents: {windows['long']}"
        )
    if plan["processor"] is not None:
        yield f"images      {_images(plan)}"
    if plan["dense"]:
        yield f"rows        {plan['order']} order, seed {plan['seed']}, dtype {plan['dtype']}"
    for name, values in info["token_columns"].items():
        more = f" and {len(values) - MAX_NAMES:,} more" if len(values) > MAX_NAMES else ""
        known = ", ".join(map(printable, values[:MAX_NAMES])) or "nothing"
        yield f"column      {name} of tokens: {known}{more}"
    if plan["dense"]:
        yield (
            f"shards      {info['n_shards_done']:,} of {info['n_shards']:,} done, "
            f"{counted(plan['shard_rows'], 'row')} each, compression {plan['compression']}"
        )
    if plan["pools"]:
        alone = "" if plan["dense"] else ", float32; no token has rows (--pooled-only)"
        yield (
            f"pooled      {', '.join(plan['pools'])} of each document: "
            f"{info['n_pooled_shards_done']:,} of "
            f"{counted(info['n_pooled_shards'], 'shard')} done{alone}"
        )
    yield f"stored      {n_bytes(info['n_stored_bytes'])}"
    for each in info["features"]:
        yield (
            f"features    {each['name']}: {count(each['n_features'])} of {each['hookpoint']} "
            f"({each['sae_kind']}), {each['state']}"
        )
    yield ""
    header: tuple[str, ...] = ("hookpoint", "width")
    if plan["dense"]:
        header += ("mean norm", "rms norm", "|mean|", "mean std", "within", "min", "max")
    yield f"{header[0]:<24}" + "".join(f"{name:>11}" for name in header[1:])
    for hookpoint in plan["hookpoints"]:
        summary = info["statistics"].get(hookpoint["name"])
        yield _hookpoint_line(hookpoint, summary, "not extracted yet" if plan["dense"] else "")


def _images(plan: dict[str, Any]) -> str:
    """Say how many patches an image has, and what becomes of its other positions."""
    processor = plan["processor"]
    rows, columns = processor["grid"]
    n_special = processor["n_prefix"] + processor["n_suffix"]
    kept = "with rows" if plan["keep_special"] else "without rows"
    special = f", {n_special} special position{'s' * (n_special > 1)} {kept}" if n_special else ""
    return f"{rows} x {columns} patches each{special}, {n_bytes(plan['n_image_bytes'])} of files"


def _hookpoint_line(
    hookpoint: dict[str, Any], summary: dict[str, float | None] | None, why: str
) -> str:
    line = f"{hookpoint['name']:<24}{hookpoint['width']:>11,}"
    if summary is None:
        return f"{line}   {why}".rstrip()
    names = ("mean_norm", "rms_norm", "norm_of_mean", "mean_std", "within_share", "min", "max")
    numbers = [summary[name] for name in names]
    return line + "".join(f"{'-':>11}" if x is None else f"{x:>11.4g}" for x in numbers)


@click.command("info", short_help="What a store holds.")
@click.argument("store")
@json_option
@debug_option
def command(store: str, as_json: bool) -> None:
    """Say what STORE holds: model, corpus, windows, hookpoints, bytes, statistics.

    mean norm, rms norm: the mean of the rows' L2 norms, and its root mean square. |mean|: the
    norm of the mean row. mean std: the mean of the units' standard deviations. within: the share
    of the units' variance that lies within documents.
    """
    info = info_of(open_store(store))
    click.echo(json.dumps(info) if as_json else "\n".join(_lines(info)))
