"""What a plan amounts to: tokens, bytes, shards, time; as numbers and as lines to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from actlas.pipeline.forward.memory import SHARDS_IN_MEMORY, Projection, project
from actlas.pipeline.hookpoints.names import collapse
from actlas.pipeline.model.compute_dtype import ComputeDtype
from actlas.pipeline.model.describe import ModelDescription, load_config
from actlas.pipeline.options import RunOptions
from actlas.pipeline.plan.store_size import Footprint, Rates, footprint
from actlas.store.display.text import n_bytes
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import Plan

PUTS_PER_S = 3_500
"""Of one prefix in Amazon's S3, as documented."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan amounts to.

    Attributes
    ----------
    n_tokens, n_documents, n_windows, longest : int
        Kept tokens (rows), documents, windows; kept tokens of the longest document.
    labels : mapping of str to int
        Documents of each label.
    token_columns : mapping of str to mapping of str to int
        Of each column of tokens, the tokens of each name; empty where they were not counted.
    n_read, n_skipped : int
        Records.
    skipped : tuple of str
        A line for each reason.
    hookpoint_bytes : mapping of str to int
        Bytes of each hookpoint's rows, before compression.
    rows_bytes, documents_bytes : int
        Bytes of the row columns, and of text, tokens and origins.
    pools : tuple of str
        Pooled rows of each hookpoint, one per document.
    pooled_bytes : int
        Bytes of all of them.
    n_pooled_shards : int
        Shards of every pooled array.
    n_shards, shard_rows, n_objects : int
        Objects are files, or keys in an object store. No shards where only documents have rows.
    stored : Footprint
        What will lie on disk, compressed and with everything beside the rows.
    memory : Projection or None
        Of one worker at the default token budget; None where it is not known.
    crossing_share : float or None
        Share of the tokens that are computed again at shard borders; None where not known.
    tokens_per_s : float or None
        Of a forward pass here; None where not known.
    speed : str
        How that was found, or why not.
    compute : ComputeDtype or None
        The dtype that the model computes in, and the reason for it; None where not known.
    sampled_documents : int or None
        Where the numbers are an estimate: how many documents it rests on. Labels and skipped
        records are those of the sample.
    scaled : bool
        Whether the numbers are for the whole corpus, and not for the sample alone.
    """

    n_tokens: int
    n_documents: int
    n_windows: int
    longest: int
    max_length: int
    labels: Mapping[str, int]
    token_columns: Mapping[str, Mapping[str, int]]
    n_read: int
    n_skipped: int
    skipped: tuple[str, ...]
    hookpoint_bytes: Mapping[str, int]
    hookpoint_widths: Mapping[str, int]
    dtype: str
    compression: str
    rows_bytes: int
    documents_bytes: int
    pools: tuple[str, ...]
    pooled_bytes: int
    n_pooled_shards: int
    n_shards: int
    shard_rows: int
    n_objects: int
    stored: Footprint
    crossing_share: float | None
    memory: Projection | None = None
    tokens_per_s: float | None = None
    speed: str = "not measured"
    compute: ComputeDtype | None = None
    sampled_documents: int | None = None
    scaled: bool = True

    @property
    def hours(self) -> float | None:
        """Hours of a forward pass over every token here, where its speed is known."""
        return self.n_tokens / self.tokens_per_s / 3600 if self.tokens_per_s else None

    @property
    def shards_per_s(self) -> float | None:
        """Shards that one process finishes in a second, where its speed is known."""
        if not self.tokens_per_s:
            return None
        n_shards = self.n_shards if self.hookpoint_bytes else self.n_pooled_shards
        return self.tokens_per_s * n_shards / self.n_tokens if n_shards else None

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        about = "" if self.sampled_documents is None else "about "
        found = [
            f"corpus   {about}{self.n_tokens:,} tokens in {about}{self.n_documents:,} documents, "
            f"{about}{self.n_windows:,} windows of at most {self.max_length:,}; the longest "
            f"document has {self.longest:,}"
        ]
        if self.sampled_documents is not None:
            found.append(f"sample   {self.sampled_documents:,} documents were read" + self._scope())
        if self.labels:
            found.append(f"labels   {_counts(self.labels)}")
        found += [f"columns  {name}: {_counts(n)}" for name, n in self.token_columns.items()]
        found += [f"skipped  {line}" for line in self.skipped]
        if self.hookpoint_bytes:
            found += [f"rows     {line}" for line in self._hookpoint_lines(about)]
        if self.pools:
            found.append(
                f"pooled   {', '.join(self.pools)}: {about}{self.n_documents:,} documents x "
                f"{sum(self.hookpoint_widths.values()):,} units of {len(self.hookpoint_widths)} "
                f"hookpoints in float32, {n_bytes(self.pooled_bytes)}"
            )
        found += self._store_lines(about)
        found.append(f"shards   {self._shards(about)}" + self._crossing())
        if self.compute is not None:
            found.append(f"compute  {self.compute.name}: {self.compute.reason}")
        found.append(f"time     {self._time()}")
        if self.shards_per_s is not None:
            found.append(f"load     {self._load(self.shards_per_s)}")
        if self.memory is not None:
            found.append(f"memory   {self._memory(self.memory)}")
        return found

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _scope(self) -> str:
        if self.scaled:
            return "; the rest is projected from them"
        return ": how many there are in all is not known, so these numbers are for them alone"

    def _crossing(self) -> str:
        if self.crossing_share is None or not self.hookpoint_bytes:
            return ""
        return f"; {self.crossing_share:.2%} of the tokens computed twice at their borders"

    def _store_lines(self, about: str) -> list[str]:
        """Say what will lie on disk, and how that was found."""
        stored = self.stored
        ledger = stored.bytes_of("receipts") + stored.bytes_of("metadata")
        parts = {
            "activations": stored.bytes_of("activations"),
            "pooled": stored.bytes_of("pooled"),
            "row columns": stored.bytes_of("rows"),
            "statistics": stored.bytes_of("statistics"),
            "documents": stored.bytes_of("documents"),
            "ledger": ledger,
        }
        shown = ", ".join(f"{name} {n_bytes(n)}" for name, n in parts.items() if n)
        folders = ", ".join(f"{path} {about}{n:,}" for path, n in stored.folders.items())
        return [
            f"store    {about}{n_bytes(stored.n_bytes)} on disk: {shown}",
            f"ratio    {self._ratio()}",
            f"objects  {about}{stored.n_objects:,}, {stored.objects_per_shard:,} a shard; most "
            f"entries: {folders}",
        ]

    def _ratio(self) -> str:
        raw = sum(self.hookpoint_bytes.values()) + self.pooled_bytes
        name = self.compression
        if name == "none":
            return f"1: activations are stored raw ({n_bytes(raw)})"
        if self.stored.ratio is None or not self.hookpoint_bytes:
            return (
                f"not known for {name} {self.dtype if self.hookpoint_bytes else 'float32'}: "
                f"activations are counted raw ({n_bytes(raw)}), and will be less"
            )
        low, usual, high = self.stored.ratio
        return (
            f"{usual:g} ({low:g} to {high:g}): measured for {name} {self.dtype}, residual streams "
            f"of three models, not of this one; {n_bytes(raw)} raw"
        )

    def _shards(self, about: str) -> str:
        if not self.hookpoint_bytes:
            return f"{about}{self.n_pooled_shards:,} of documents"
        return f"{about}{self.n_shards:,} of {self.shard_rows:,} rows"

    def _load(self, shards_per_s: float) -> str:
        """Say what each process asks of the driver and of the disk or object store."""
        stored = self.stored
        puts = shards_per_s * stored.objects_per_shard
        written = shards_per_s * stored.bytes_per_shard
        return (
            f"of each process: a shard in {1 / shards_per_s:,.3g} s; a second {puts:,.3g} objects "
            f"and {n_bytes(written)} written, and read back; {PUTS_PER_S / puts:,.0f} of them "
            f"reach the {PUTS_PER_S:,} that S3 takes below a prefix"
        )

    def _memory(self, memory: Projection) -> str:
        return (
            f"{n_bytes(memory.total)} a worker: {n_bytes(memory.weights)} of weights, "
            f"{n_bytes(memory.shards)} for {SHARDS_IN_MEMORY} shards, {n_bytes(memory.batch)} "
            "for a batch (on the device, where there is one)"
        )

    def _time(self) -> str:
        if self.hours is None:
            return f"unknown: {self.speed}"
        return (
            f"about {duration(self.hours)} for one process at {self.tokens_per_s:,.0f} tokens/s "
            f"({self.speed})"
        )

    def _hookpoint_lines(self, about: str) -> list[str]:
        found = []
        by_width = sorted(self.hookpoint_widths.items(), key=lambda pair: pair[1])
        for width, group in groupby(by_width, key=lambda pair: pair[1]):
            names = [name for name, _ in group]
            shown = ", ".join(collapse(names)) + (f", {len(names)}" if len(names) > 1 else "")
            each = " each" if len(names) > 1 else ""
            found.append(
                f"{shown} hookpoint{'s' * (len(names) > 1)}{each} {about}{self.n_tokens:,} x "
                f"{width:,} {self.dtype}, {n_bytes(self.hookpoint_bytes[names[0]])}{each}"
            )
        return found


def _counts(names: Mapping[str, int]) -> str:
    """Write how often each name occurs, the most frequent first."""
    shown = sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f", and {len(shown) - 20:,} more" if len(shown) > 20 else ""
    return ", ".join(f"{name} {n:,}" for name, n in shown[:20]) + more


def store_bytes(plan: Plan, rates: Rates, *, labelled: bool) -> dict[str, object]:
    """Return the parts of an estimate that follow from a plan and what samples of it came to."""
    stored = footprint(plan, rates, labelled=labelled)
    arrays = StoreArrays(plan, () if labelled else None)
    documents = sum(spec.n_rows * spec.row_bytes for spec in arrays.documents.values())
    return {
        "n_tokens": plan.n_tokens,
        "n_documents": plan.n_documents,
        "n_windows": plan.n_windows,
        "max_length": plan.windows.max_length,
        "hookpoint_bytes": {
            name: spec.n_rows * spec.row_bytes for name, spec in arrays.activations.items()
        },
        "hookpoint_widths": {hookpoint.name: hookpoint.width for hookpoint in plan.hookpoints},
        "dtype": plan.dtype,
        "compression": plan.compression,
        "rows_bytes": sum(spec.n_rows * spec.row_bytes for spec in arrays.rows.values()),
        "documents_bytes": documents,
        "n_shards": plan.n_shards,
        "shard_rows": plan.shard_rows,
        "pools": plan.pools,
        "n_pooled_shards": arrays.n_pooled_shards,
        "pooled_bytes": sum(spec.n_rows * spec.row_bytes for spec in arrays.pooled.values()),
        "n_objects": stored.n_objects,
        "stored": stored,
    }


def worker_memory(model: ModelDescription, plan: Plan) -> Projection:
    """Project the memory of one worker at the default token budget, as a run does."""
    spec = model.spec
    config = load_config(model.folder, trust_remote_code=spec.trust_remote_code)
    pieces = spec.causal and spec.modality == "text"
    return project(plan, config, model.folder, RunOptions(), by_pieces=pieces)


def duration(hours: float) -> str:
    """Return hours in the unit that fits.

    >>> duration(0.001), duration(0.5), duration(30)
    ('4 s', '30 min', '30.0 h')
    """
    if hours < 1 / 30:
        return f"{max(1, round(hours * 3600))} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:,.1f} h"
