"""An estimate of a plan from the first documents of its corpus. Nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.corpus.corpus import Corpus
from actlas.pipeline.corpus.records import Record
from actlas.pipeline.corpus.tokenization import Tokens, Windows, batches
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.estimate import Estimate, store_bytes, worker_memory
from actlas.pipeline.plan.settings import Settings, assemble, resolve_settings
from actlas.pipeline.plan.store_size import sample_rates
from actlas.store.errors import CorpusError
from actlas.store.format import layout
from actlas.store.format.schema import Plan

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


def estimate(options: PlanOptions, device: str | None = "auto") -> Estimate:
    """Estimate what a plan would amount to.

    Where the whole corpus is no larger than the sample, the numbers are exact but for borders.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    device : str or None
        The device that the model will run on; None where it runs on other machines.

    Raises
    ------
    ConfigError, CorpusError, ModelError, HookpointError
        What was asked for is not there or does not fit together.
    """
    from actlas.pipeline.forward.speed import forward_speed

    settings = resolve_settings(options, device)
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
        compute=model.compute_dtype,
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


KEPT_TOKENS = 1 << 20
"""What comes behind them is counted, and not kept."""


class SampledColumns:
    """The columns of :class:`~actlas.store.write.document_columns.DocumentColumns` in memory.

    Counts and ``lengths`` are of all documents that were added; the columns are of the first.
    Images are counted alone, and codes of the corpus's own columns of tokens are not known.
    """

    label: NDArray[np.int32] | None = None
    label_names: tuple[str, ...] = ()
    source_names: tuple[str, ...] = ()

    def __init__(self, windows: Windows, names: tuple[str, ...]) -> None:
        self.windows = windows
        self.token_column_names: Mapping[str, tuple[str, ...]] = dict.fromkeys(names, ())
        self.lengths: list[int] = []
        self.n_all_text_bytes = self.n_all_image_bytes = 0
        self._tokens: list[Tokens] = []
        self._texts: list[bytes] = []
        self._records: list[int] = []
        self._n_kept = 0

    def add(self, text: str, tokens: Tokens, record: int) -> None:
        """Count a document, and keep it while there is room."""
        data = text.encode()
        self.lengths.append(len(tokens))
        self.n_all_text_bytes += len(data)
        if self._n_kept < KEPT_TOKENS:
            self._tokens.append(tokens)
            self._texts.append(data)
            self._records.append(record)
            self._n_kept += len(tokens)

    def close(self) -> None:
        """Lay out what was kept, one document behind the other."""
        self.n_documents = len(self._tokens)
        self.start = _edges([len(tokens) for tokens in self._tokens])
        self.text_start = _edges([len(text) for text in self._texts])
        self.n_tokens, self.n_text_bytes = int(self.start[-1]), int(self.text_start[-1])
        self.char_stop = np.array([tokens.char_stop for tokens in self._tokens], np.int32)
        self.source = np.zeros(self.n_documents, np.int32)
        # In the seeded order that a plan gives them they compress less than in the corpus's.
        self.record = np.random.default_rng(0).permutation(np.array(self._records, np.int64))
        self._ids = np.concatenate([tokens.token_id for tokens in self._tokens])
        self._starts = np.concatenate([tokens.char_start for tokens in self._tokens])
        self._codes = {
            name: np.concatenate([_codes(tokens, name) for tokens in self._tokens])
            for name in self.token_column_names
        }
        self._bytes = np.frombuffer(b"".join(self._texts), np.uint8)
        self._tokens, self._texts = [], []

    def token_ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the kept tokens [start, stop)."""
        return self._ids[start:stop]

    def char_starts(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return, for the same tokens, the character of the document where each begins."""
        return self._starts[start:stop]

    def special(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return, for the same tokens, which the tokenizer added; None where none has a row."""
        return self.windows.special(self.start, start, stop)

    def token_column(self, name: str, start: int, stop: int) -> NDArray[np.int32]:
        """Return, for the same tokens, the codes of a column; -1 where they are not known."""
        return self._codes[name][start:stop]

    def text(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes [start, stop) of all texts, one after the other."""
        return self._bytes[start:stop]


def _edges(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _codes(tokens: Tokens, name: str) -> NDArray[np.int32]:
    return tokens.columns.get(name, np.full(len(tokens), -1, np.int32))
