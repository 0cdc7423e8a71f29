"""The tokens, bytes, shards and time of a plan, as values and as lines to print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from actlas.pipeline.forward.memory import SHARDS_IN_MEMORY, Projection, project
from actlas.pipeline.forward.speed import Speed, forward_speed
from actlas.pipeline.hookpoints.names import collapse
from actlas.pipeline.model.compute_dtype import ComputeDtype
from actlas.pipeline.model.describe import ModelDescription, load_config
from actlas.pipeline.options import RunOptions
from actlas.pipeline.plan.columns import DraftColumns
from actlas.pipeline.plan.settings import Settings
from actlas.pipeline.plan.store_size import Rates, StoreSize, store_size
from actlas.store.display.text import n_bytes
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import Plan

PUTS_PER_S = 3_500
"""Write requests per second that Amazon's S3 documents for one prefix."""

MAX_NAMES = 20
"""Labels, or names in a column of tokens, that a line lists."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The size and the cost of a plan.

    Attributes
    ----------
    plan : Plan
        The plan; of a dry run the one that is projected from a sample.
    stored : StoreSize
        The store once all is extracted.
    longest : int
        Kept tokens of the longest document.
    labels : mapping of str to int
        Documents of each label.
    token_columns : mapping of str to mapping of str to int
        For each column of tokens, the tokens of each name; empty where they were not counted.
    skipped : tuple of str
        For each reason, a line that gives the number of records skipped.
    compute : ComputeDtype
        The dtype that the model computes in, and the reason for it.
    speed : Speed
        Tokens per second of a forward pass on this machine.
    memory : Projection
        Memory of one worker at the default token budget.
    crossing_share : float or None
        Share of the tokens that are computed again at shard borders; None where not known.
    sampled_documents : int or None
        Documents that were read where the numbers are projected from a sample, whose labels and
        skipped records are then counted; None where the numbers are those of the plan.
    scaled : bool
        Whether a sample's numbers are projected to the whole corpus.
    """

    plan: Plan
    stored: StoreSize
    longest: int
    labels: Mapping[str, int]
    token_columns: Mapping[str, Mapping[str, int]]
    skipped: tuple[str, ...]
    compute: ComputeDtype
    speed: Speed
    memory: Projection
    crossing_share: float | None = None
    sampled_documents: int | None = None
    scaled: bool = True

    @property
    def hours(self) -> float | None:
        """Hours of a forward pass over every token on this machine, where its speed is known."""
        rate = self.speed.tokens_per_s
        return self.plan.n_tokens / rate / 3600 if rate else None

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the estimate as lines to print, each with a first word for its subject."""
        return [f"{subject:<9}{text}" for subject, text in self._lines()]

    def _lines(self) -> Iterator[tuple[str, str]]:
        plan, about = self.plan, "" if self.sampled_documents is None else "about "
        yield (
            "corpus",
            f"{about}{plan.n_tokens:,} tokens in {about}{plan.n_documents:,} documents, "
            f"{about}{plan.n_windows:,} windows of at most {plan.windows.max_length:,}; the "
            f"longest document has {self.longest:,}",
        )
        if self.sampled_documents is not None:
            scope = "; the rest is projected from them"
            if not self.scaled:
                scope = ": the size of the corpus is not known, so the numbers are theirs alone"
            yield "sample", f"{self.sampled_documents:,} documents were read{scope}"
        if self.labels:
            yield "labels", _counts(self.labels)
        for name, n in self.token_columns.items():
            yield "columns", f"{name}: {_counts(n)}"
        for line in self.skipped:
            yield "skipped", line
        yield from self._row_lines(about)
        yield from self._store_lines(about)
        yield "compute", f"{self.compute.name}: {self.compute.reason}"
        yield from self._time_lines()
        memory = self.memory
        yield (
            "memory",
            f"{n_bytes(memory.total)} a worker: {n_bytes(memory.weights)} of weights, "
            f"{n_bytes(memory.shards)} for {SHARDS_IN_MEMORY} shards, {n_bytes(memory.batch)} "
            "for a batch (on the device, where there is one)",
        )

    def _row_lines(self, about: str) -> Iterator[tuple[str, str]]:
        plan = self.plan
        widths = sorted(((h.width, h.name) for h in plan.hookpoints), key=lambda pair: pair[0])
        for width, group in groupby(widths if plan.dense else (), key=lambda pair: pair[0]):
            names = [name for _, name in group]
            of = f", {len(names)} hookpoints each" if len(names) > 1 else " hookpoint"
            raw = n_bytes(self.stored.raw_bytes_of(f"activations/{names[0]}"))
            yield (
                "rows",
                f"{', '.join(collapse(names))}{of} {about}{plan.n_tokens:,} x {width:,} "
                f"{plan.dtype}, {raw}{' each' * (len(names) > 1)}",
            )
        if plan.pools:
            n_units = sum(hookpoint.width for hookpoint in plan.hookpoints)
            yield (
                "pooled",
                f"{', '.join(plan.pools)}: {about}{plan.n_documents:,} documents x {n_units:,} "
                f"units of {len(plan.hookpoints)} hookpoints in float32, "
                f"{n_bytes(self.stored.raw_bytes_of('pooled'))}",
            )

    def _store_lines(self, about: str) -> Iterator[tuple[str, str]]:
        plan, stored = self.plan, self.stored
        parts = {name: stored.bytes_of(name) for name in ("activations", "pooled")}
        parts["row columns"] = stored.bytes_of("rows")
        parts |= {name: stored.bytes_of(name) for name in ("statistics", "documents")}
        parts["ledger"] = stored.bytes_of("receipts") + stored.bytes_of("metadata")
        shown = ", ".join(f"{name} {n_bytes(n)}" for name, n in parts.items() if n)
        folders = ", ".join(f"{path} {about}{n:,}" for path, n in stored.folders.items())
        yield "store", f"{about}{n_bytes(stored.n_bytes)} on disk: {shown}"
        yield "ratio", self._ratio()
        yield (
            "objects",
            f"{about}{stored.n_objects:,}, {stored.objects_per_shard:,} a shard; most entries: "
            f"{folders}",
        )
        shards = f"{about}{self.n_shards:,} of {plan.shard_rows:,} rows"
        if not plan.dense:
            shards = f"{about}{self.n_shards:,} of documents"
        elif self.crossing_share is not None:
            shards += f"; {self.crossing_share:.2%} of the tokens computed twice at their borders"
        yield "shards", shards

    def _ratio(self) -> str:
        profile, dense = self.plan.compression, self.plan.dense
        raw = n_bytes(self.stored.raw_bytes_of("activations") + self.stored.raw_bytes_of("pooled"))
        if profile == "none":
            return f"1: activations are stored raw ({raw})"
        if self.stored.ratio is None or not dense:
            dtype = self.plan.dtype if dense else "float32"
            return (
                f"not known for {profile} {dtype}: activations are counted raw ({raw}), and will "
                "be less"
            )
        low, usual, high = self.stored.ratio
        return (
            f"{usual:g} ({low:g} to {high:g}): measured for {profile} {self.plan.dtype}, residual "
            f"streams of three models, not of this one; {raw} raw"
        )

    def _time_lines(self) -> Iterator[tuple[str, str]]:
        rate, stored = self.speed.tokens_per_s, self.stored
        if self.hours is None or not rate:
            yield "time", f"unknown: {self.speed.how}"
            return
        yield (
            "time",
            f"about {duration(self.hours)} for one process at {rate:,.0f} tokens/s "
            f"({self.speed.how})",
        )
        if not self.n_shards:
            return
        shards_per_s = rate * self.n_shards / self.plan.n_tokens
        puts, written = (
            shards_per_s * n for n in (stored.objects_per_shard, stored.bytes_per_shard)
        )
        yield (
            "load",
            f"of each process: a shard in {1 / shards_per_s:,.3g} s; a second {puts:,.3g} objects "
            f"and {n_bytes(written)} written, and read back; {PUTS_PER_S / puts:,.0f} of them "
            f"reach the {PUTS_PER_S:,} that S3 takes below a prefix",
        )

    @property
    def n_shards(self) -> int:
        """Shards of the rows; of the pooled rows in a store that has no others."""
        return self.plan.n_shards if self.plan.dense else StoreArrays(self.plan).n_pooled_shards


def summarize(
    settings: Settings,
    plan: Plan,
    columns: DraftColumns,
    rates: Rates,
    *,
    token_columns: Mapping[str, Mapping[str, int]],
    crossing_share: float | None = None,
    sampled_documents: int | None = None,
    scaled: bool = True,
) -> Estimate:
    """Return the estimate of a plan from its documents, or from a sample of them.

    Parameters
    ----------
    settings : Settings
        The decided options.
    plan : Plan
        The plan, perhaps projected from a sample.
    columns : DraftColumns
        The documents, or the sample.
    rates : mapping of str to float
        Stored bytes per row of the store's arrays.
    token_columns, crossing_share, sampled_documents, scaled
        See :class:`Estimate`.
    """
    labels: dict[str, int] = {}
    if columns.label is not None:
        codes, counts = np.unique(columns.label[columns.label >= 0], return_counts=True)
        pairs = zip(codes.tolist(), counts.tolist(), strict=True)
        labels = {columns.label_names[code]: n for code, n in pairs}
    return Estimate(
        plan=plan,
        stored=store_size(plan, rates, labelled=columns.label is not None),
        longest=int(np.diff(columns.start).max()),
        labels=labels,
        token_columns=token_columns,
        skipped=tuple(settings.corpus.counts.lines()),
        compute=settings.model.compute_dtype,
        speed=forward_speed(settings.model, settings.max_length),
        memory=_worker_memory(settings.model, plan),
        crossing_share=crossing_share,
        sampled_documents=sampled_documents,
        scaled=scaled,
    )


def _worker_memory(model: ModelDescription, plan: Plan) -> Projection:
    """Project the memory of one worker at the default token budget, as a run does."""
    spec = model.spec
    config = load_config(model.folder, trust_remote_code=spec.trust_remote_code)
    chunked = spec.causal and spec.modality == "text"
    return project(plan, config, model.folder, RunOptions(), chunked_prefill=chunked)


def _counts(names: Mapping[str, int]) -> str:
    """Return names with their counts, the most frequent first."""
    shown = sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f", and {len(shown) - MAX_NAMES:,} more" if len(shown) > MAX_NAMES else ""
    return ", ".join(f"{name} {n:,}" for name, n in shown[:MAX_NAMES]) + more


def duration(hours: float) -> str:
    """Return hours in the unit that fits.

    >>> duration(0.001), duration(0.5), duration(30)
    ('4 s', '30 min', '30.0 h')
    """
    if hours < 1 / 30:
        return f"{max(1, round(hours * 3600))} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:,.1f} h"
