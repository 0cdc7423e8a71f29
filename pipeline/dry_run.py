"""An estimate of a plan from the first documents of its corpus. Nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actlas.pipeline.assembly import assemble
from actlas.pipeline.corpus import Corpus
from actlas.pipeline.estimate import Estimate, store_bytes, worker_memory
from actlas.pipeline.footprint import sample_rates
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.records import Record
from actlas.pipeline.sampled import SampledColumns
from actlas.pipeline.settings import Settings, resolve_settings
from actlas.pipeline.tokenization import batches
from actlas.store import layout
from actlas.store.errors import CorpusError
from actlas.store.schema import Plan

SAMPLE_CHARS = 2 << 20
"""Text that is tokenized."""


@dataclass
class _Sample:
    """What the first documents hold."""

    columns: SampledColumns
    labels: Counter[str] = field(default_factory=Counter)
    n_chars: int = 0
    rest: Iterator[Record] | None = None
    """The documents behind them, where there are any."""


def estimate(options: PlanOptions) -> Estimate:
    """Estimate what a plan would amount to.

    Where the whole corpus is no larger than the sample, the numbers are exact but for borders.

    Raises
    ------
    ConfigError, CorpusError, ModelError, HookpointError
        What was asked for is not there or does not fit together.
    """
    from actlas.pipeline.speed import forward_speed

    settings = resolve_settings(options)
    corpus, windows = settings.corpus, settings.windows
    sample = _read(settings)
    columns, lengths = sample.columns, np.array(sample.columns.lengths)
    n_tokens = int(lengths.sum())
    total = _total_tokens(corpus, sample, n_tokens)
    goal = min(filter(None, (total, options.max_tokens)), default=n_tokens)
    ratio = goal / n_tokens
    plan = assemble(
        settings,
        fingerprint="",
        sample="all" if sample.rest is None else settings.sample,
        n_documents=max(1, round(len(lengths) * ratio)),
        n_tokens=max(1, round(n_tokens * ratio)),
        n_text_bytes=round(columns.n_all_text_bytes * ratio),
        n_image_bytes=round(columns.n_all_image_bytes * ratio),
        n_windows=max(1, round(layout.n_windows(lengths, windows.kept) * ratio)),
    )
    model = settings.model
    tally, speed = corpus.tally, forward_speed(model, settings.max_length)
    rates = sample_rates(_kept(plan, columns), columns)
    facts: Any = store_bytes(plan, rates, labelled=corpus.labelled)
    return Estimate(
        **facts,
        longest=int(lengths.max()),
        memory=worker_memory(model, plan),
        labels=sample.labels,
        token_columns={},
        n_read=tally.n_read,
        n_skipped=tally.n_skipped,
        skipped=tuple(tally.lines()),
        crossing_share=None,
        tokens_per_s=speed.tokens_per_s,
        speed=speed.how,
        sampled_documents=None if sample.rest is None and ratio == 1 else len(lengths),
        scaled=total is not None or options.max_tokens is not None,
    )


def _kept(plan: Plan, columns: SampledColumns) -> Plan:
    """Return the plan over the documents of the sample alone, without their images."""
    counts = {name: getattr(columns, name) for name in ("n_documents", "n_tokens", "n_text_bytes")}
    return plan.model_copy(update={**counts, "processor": None, "n_image_bytes": 0})


def _read(settings: Settings) -> _Sample:
    columns = SampledColumns(settings.windows, settings.token_columns)
    sample = _Sample(columns)
    records = _without_images(settings.corpus.records(), columns)
    for batch in batches(records):
        cuts = settings.cutter.cut([record.text for record in batch])
        for record, tokens in zip(batch, cuts, strict=True):
            columns.add(record.text, settings.windows.apply(tokens), record.record)
            sample.n_chars += len(record.text)
            sample.labels.update([record.label] if record.label is not None else [])
        if sample.n_chars >= SAMPLE_CHARS:
            sample.rest = records
            break
    if sum(columns.lengths) == 0:
        raise CorpusError(
            f"{settings.corpus.uri}: {len(columns.lengths):,} documents were read, and there is "
            "not one token in them. Expected text.",
            corpus=settings.corpus.uri,
        )
    columns.close()
    return sample


def _without_images(records: Iterator[Record], columns: SampledColumns) -> Iterator[Record]:
    """Yield records as texts: a batch of them may be thousands."""
    for record in records:
        columns.n_all_image_bytes += len(record.image or b"")
        yield record._replace(image=None)


def _total_tokens(corpus: Corpus, sample: _Sample, n_tokens: int) -> int | None:
    """Return the tokens of the whole corpus, where something says how long it is."""
    if sample.rest is None:
        return n_tokens
    fraction = corpus.fraction()
    if fraction is not None:
        return round(n_tokens / max(fraction, 1e-9)) if fraction < 1 else n_tokens
    if not corpus.finite:
        return None
    n_chars = sample.n_chars + sum(len(record.text) for record in sample.rest)
    return round(n_tokens * n_chars / sample.n_chars)
