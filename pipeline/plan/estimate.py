"""The tokens, bytes, shards and time of a plan, as values and as lines to print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from actlas.pipeline.forward.cost.memory import SHARDS_IN_MEMORY, Projection, project
from actlas.pipeline.forward.cost.speed import forward_speed
from actlas.pipeline.hookpoints.names import collapse
from actlas.pipeline.model.describe import load_config
from actlas.pipeline.options import RunOptions
from actlas.pipeline.plan.columns import DraftColumns, input_lengths
from actlas.pipeline.plan.labels import label_doubts, names_with_counts
from actlas.pipeline.plan.settings import Settings
from actlas.pipeline.plan.store_size import Rates, StoreSize, store_size
from actlas.store.display.text import counted, listed, n_bytes
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import Plan

PUTS_PER_S = 3_500
"""Write requests per second that Amazon's S3 documents for one prefix."""

FEW_NAMES = 6
"""Labels that the line of the corpus lists."""

Lines = Iterator[tuple[str, str]]
"""Lines to print: the first word, which is the subject, and the text."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The size and the cost of a plan.

    Attributes
    ----------
    settings : Settings
        The decided options.
    plan : Plan
        The plan; of a dry run the one that is projected from a sample.
    columns : DraftColumns
        The documents; of a dry run the sample.
    stored : StoreSize
        The store once all is extracted.
    seconds : tuple of float, or None
        Shortest and longest expected time of a run in one process on this machine, without loading.
    how : str
        How the time was estimated, or why it is not known.
    memory : Projection
        Memory of one worker at the default token budget.
    crossing_share : float or None
        Share of the tokens that are computed again at shard borders; None in a dry run.
    sampled_documents : int or None
        Documents that were read where the numbers are projected from a sample, whose labels and
        skipped records are then counted; None where the numbers are those of the plan.
    scaled : bool
        Whether a sample's numbers are projected to the whole corpus.
    """

    settings: Settings
    plan: Plan
    columns: DraftColumns
    stored: StoreSize
    seconds: tuple[float, float] | None
    how: str
    memory: Projection
    crossing_share: float | None = None
    sampled_documents: int | None = None
    scaled: bool = True

    @property
    def n_shards(self) -> int:
        """Shards of the rows; of the pooled rows in a store that has no others."""
        return self.plan.n_shards if self.plan.dense else StoreArrays(self.plan).n_pooled_shards

    @property
    def labels(self) -> dict[str, int]:
        """Documents of the plan with each label, projected as all is; empty if they have none."""
        label, names = self.columns.label, self.columns.label_names
        if label is None:
            return {}
        ratio = self.plan.n_documents / self.columns.n_documents
        n_documents = np.rint(np.bincount(label[label >= 0], minlength=len(names)) * ratio)
        return dict(zip(names, n_documents.astype(int).tolist(), strict=True))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, *, verbose: bool = True, bucket: bool = False) -> list[str]:
        """Return the estimate as lines to print, each with a first word for its subject.

        Parameters
        ----------
        verbose : bool
            Return all lines. Otherwise those that a person decides by: tokens, bytes, time, and
            what may be wrong.
        bucket : bool
            Whether the store will be in a bucket, whose limit of requests is then compared.
        """
        parts = [self._tokens(labels=True), self._size(), self._time(), self._doubts()]
        if verbose:
            parts = [self._tokens(), self._doubts(), self._labels(), self._files(), self._rows()]
            parts += [self._store(), self._cost(), self._load(bucket), self._memory()]
        return [f"{subject:<9}{text}" for part in parts for subject, text in part]

    def _count(self, n: int, noun: str | None = None) -> str:
        """Return a number of the plan, with the word "about" if it is projected."""
        about = "" if self.sampled_documents is None else "about "
        return about + (f"{n:,}" if noun is None else counted(n, noun))

    def _files(self) -> Lines:
        files = self.settings.model.files
        for folder, of in ((files.model, "the model"), (files.tokenizer, "the tokenizer")):
            if folder is None:
                continue
            names = [*folder.read]
            n_files = counted(len(names), "file")
            yield "pinned", f"{n_files} of {of} by their sha256: {listed(names)}"
            if folder.ignored:
                left = listed(folder.ignored)
                yield "ignored", f"in the folder of {of}, and not read: {left}"

    def _tokens(self, *, labels: bool = False) -> Lines:
        plan, count = self.plan, self._count
        bos = ", each with BOS first" if plan.request.get("prepend_bos") else ""
        text = (
            f"{count(plan.n_tokens, 'token')} in {count(plan.n_documents, 'document')}, "
            f"{count(plan.n_windows, 'window')} of at most {plan.windows.max_length:,}{bos}"
        )
        if labels and self.labels:
            text += f"; labels: {names_with_counts(self.labels, FEW_NAMES)}"
        elif not labels:
            text += f"; the longest document has {np.diff(self.columns.start).max():,}"
        yield "corpus", text

    def _labels(self) -> Lines:
        if self.labels:
            yield "labels", names_with_counts(self.labels)
        for name in self.plan.token_columns if self.crossing_share is not None else ():
            yield "columns", f"{name}: {names_with_counts(self.columns.n_tokens_of(name))}"

    def _doubts(self) -> Lines:
        """Yield what the numbers rest on, what is left out, and what may be a mistake."""
        if self.sampled_documents is not None:
            scope = "; the rest is projected from them"
            if not self.scaled:
                scope = ": the size of the corpus is not known, so the numbers are theirs alone"
            yield "sample", f"{counted(self.sampled_documents, 'document')} read{scope}"
        for line in self.settings.corpus.counts.lines():
            yield "skipped", line
        for line in self.settings.corpus.counts.delimiter_lines():
            yield "columns", line
        for line in self.settings.corpus.counts.left_out:
            yield "left out", line
        if n_empty := int((np.diff(self.columns.start) == 0).sum()):
            yield "warning", f"{counted(n_empty, 'document')} without a token: no text"
        partial = self.sampled_documents is not None or self.plan.corpus.sample != "all"
        for line in label_doubts(self.columns, partial=partial):
            yield "warning", line

    def _rows(self) -> Lines:
        plan, raw_bytes = self.plan, self.stored.raw_bytes_of
        hookpoints = sorted(plan.hookpoints if plan.dense else (), key=lambda h: h.width)
        for width, group in groupby(hookpoints, key=lambda h: h.width):
            names = [hookpoint.name for hookpoint in group]
            of, each = " hookpoint", ""
            if len(names) > 1:
                of, each = f", {len(names)} hookpoints each", " each"
            yield (
                "rows",
                f"{', '.join(collapse(names))}{of} {self._count(plan.n_tokens)} x {width:,} "
                f"{plan.dtype}, {n_bytes(raw_bytes(f'activations/{names[0]}'))}{each}",
            )
        if plan.pools:
            n_units = sum(hookpoint.width for hookpoint in plan.hookpoints)
            yield (
                "pooled",
                f"{', '.join(plan.pools)}: {self._count(plan.n_documents, 'document')} x "
                f"{counted(n_units, 'unit')} of {counted(len(plan.hookpoints), 'hookpoint')} in "
                "float32, "
                f"{n_bytes(raw_bytes('pooled'))}",
            )

    def _size(self) -> Lines:
        """Yield one line of the bytes on disk, and of what they are."""
        plan = self.plan
        about = "" if self.sampled_documents is None else "about "
        raw = ""
        if self.stored.ratio is None and plan.compression != "none":
            raw = ", counted raw: compression makes it less"
        rows = f"of {counted(plan.shard_rows, 'row')}" if plan.dense else "of documents"
        yield (
            "store",
            f"{about}{n_bytes(self.stored.n_bytes)} on disk{raw}; "
            f"{self._count(self.n_shards, 'shard')} {rows}, "
            f"{counted(len(plan.hookpoints), 'hookpoint')}",
        )

    def _store(self) -> Lines:
        plan, stored, count = self.plan, self.stored, self._count
        parts = {
            "activations": stored.bytes_of("activations"),
            "pooled": stored.bytes_of("pooled"),
            "row columns": stored.bytes_of("rows"),
            "statistics": stored.bytes_of("statistics"),
            "documents": stored.bytes_of("documents"),
            "ledger": stored.bytes_of("receipts") + stored.bytes_of("metadata"),
        }
        shown = ", ".join(f"{name} {n_bytes(n)}" for name, n in parts.items() if n)
        about = "" if self.sampled_documents is None else "about "
        yield "store", f"{about}{n_bytes(stored.n_bytes)} on disk: {shown}"
        yield "ratio", self._ratio()
        folders = ", ".join(f"{path} {count(n)}" for path, n in stored.folders.items())
        yield (
            "objects",
            f"{count(stored.n_objects)}, {stored.objects_per_shard:,} a shard; most entries: "
            f"{folders}",
        )
        of = counted(plan.shard_rows, "row") if plan.dense else "documents"
        if plan.dense and self.crossing_share is not None:
            of += f"; {self.crossing_share:.2%} of the tokens computed twice at their borders"
        yield "shards", f"{count(self.n_shards)} of {of}"

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

    def _cost(self) -> Lines:
        compute = self.settings.model.compute_dtype
        yield "compute", f"{compute.name}: {compute.reason}"
        if not self.plan.model.causal and self.plan.model.modality == "text":
            yield (
                "batches",
                "the model is not causal: each worker tests on the loaded weights whether padding "
                "or other sequences change a row; if so, of equal lengths or one at a time",
            )
        yield from self._time()

    def _time(self) -> Lines:
        if self.seconds is None:
            yield "time", f"unknown: {self.how}"
        else:
            dtype = self.settings.model.compute_dtype.name
            yield "time", f"{time_range(*self.seconds)} for one process in {dtype} ({self.how})"

    def _load(self, bucket: bool) -> Lines:
        if self.seconds is None or not self.n_shards:
            return
        shard_s = sum(self.seconds) / 2 / self.n_shards
        puts = self.stored.objects_per_shard / shard_s
        written = self.stored.bytes_per_shard / shard_s
        limit = ""
        if bucket:
            limit = f"; {PUTS_PER_S / puts:,.0f} of them reach the {PUTS_PER_S:,} that S3 takes "
            limit += "below a prefix"
        yield (
            "load",
            f"of each process: a shard in {shard_s:,.3g} s; a second {puts:,.3g} objects and "
            f"{n_bytes(written)} written, and read back{limit}",
        )

    def _memory(self) -> Lines:
        memory = self.memory
        yield (
            "memory",
            f"{n_bytes(memory.total)} a worker: {n_bytes(memory.weights)} of weights, "
            f"{n_bytes(memory.shards)} for {SHARDS_IN_MEMORY} shards, {n_bytes(memory.batch)} "
            "for a batch (on the device, where there is one)",
        )


def summarize(
    settings: Settings,
    plan: Plan,
    columns: DraftColumns,
    rates: Rates,
    *,
    crossing_share: float | None = None,
    sampled_documents: int | None = None,
    scaled: bool = True,
) -> Estimate:
    """Return the estimate of a plan from its documents, or from a sample of them.

    ``rates`` are the stored bytes per row of each array, by path; the other parameters are
    attributes of :class:`Estimate`.
    """
    model, spec = settings.model, settings.model.spec
    config = load_config(model.folder, trust_remote_code=spec.trust_remote_code)
    chunked = spec.causal and spec.modality == "text"
    fed = input_lengths(columns, settings.windows.kept, settings.max_length)
    share = plan.n_tokens / columns.n_tokens
    speed = forward_speed(model, plan.hookpoints, fed.longest, with_loss=plan.with_loss)
    return Estimate(
        settings,
        plan,
        columns,
        stored=store_size(plan, rates, labelled=columns.label is not None, files=settings.files),
        seconds=speed.seconds(share * fed.n_tokens, share * fed.n_pairs),
        how=speed.how,
        memory=project(
            plan, config, RunOptions(), chunked_prefill=chunked, skeleton=model.skeleton
        ),
        crossing_share=crossing_share,
        sampled_documents=sampled_documents,
        scaled=scaled,
    )


def time_range(low_s: float, high_s: float) -> str:
    """Return a range of seconds in words.

    Parameters
    ----------
    low_s, high_s : float
        Seconds.

    Examples
    --------
    >>> time_range(31, 52), time_range(0.2, 0.4), time_range(3000, 9000)
    ('31 s to 52 s', '1 s', '50 min to 2.5 h')
    """
    low, high = duration(low_s / 3600), duration(high_s / 3600)
    return low if low == high else f"{low} to {high}"


def duration(hours: float) -> str:
    """Return hours in the unit that fits.

    >>> duration(0.001), duration(0.5), duration(30)
    ('4 s', '30 min', '30.0 h')
    """
    if hours < 1 / 30:
        return f"{max(1, round(hours * 3600))} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:,.1f} h"
