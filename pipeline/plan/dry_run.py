"""An estimate of a plan from the first documents of its corpus. No store is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from actlas.pipeline.corpus.corpus import Corpus
from actlas.pipeline.corpus.patches import CorpusView
from actlas.pipeline.corpus.records import Record
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.estimate import Estimate, summarize
from actlas.pipeline.plan.make import collect_documents, columns_of
from actlas.pipeline.plan.settings import assemble, resolve_settings
from actlas.pipeline.plan.spool import open_spool
from actlas.pipeline.plan.store_size import sample_rates
from actlas.store.format import layout
from actlas.store.objects.leftovers import temporary_folder

SAMPLE_CHARS = 2 << 20
"""Characters of text that a sample has at least, where the corpus is larger."""


def estimate(options: PlanOptions, device: str | None = "auto") -> Estimate:
    """Estimate what a plan would amount to.

    The first documents pass through a temporary folder as those of a plan do, and their numbers
    are scaled to the corpus. Where they are the whole corpus, or all that a plan of ``max_tokens``
    from its head would read, the numbers are exact but for borders.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    device : str or None
        The device that the model will run on; None where it runs on other machines.

    Raises
    ------
    ConfigError, CorpusError, ModelError, HookpointError
        The model, the corpus or a hookpoint does not exist, or options conflict.
    """
    settings = resolve_settings(options, device)
    head = Head(settings.corpus)
    of_head = replace(settings, corpus=head)
    with (
        temporary_folder("dry-run") as folder,
        open_spool(f"{folder}/store") as spool,
    ):
        draft = collect_documents(of_head, spool)
        columns = columns_of(of_head, draft)
        total, ratio = None, 1.0
        if draft.sample == "all":  # Otherwise the first documents have max_tokens.
            total = head.total_tokens(columns.n_tokens)
            wanted = min(filter(None, (total, options.max_tokens)), default=columns.n_tokens)
            ratio = wanted / columns.n_tokens
        exact = ratio == 1 and (head.rest is None or draft.sample == "head")
        n_windows = layout.n_windows(draft.lengths, settings.windows.kept)
        plan = assemble(
            settings,
            fingerprint="",
            sample=draft.sample if head.rest is None else settings.sample,
            n_documents=max(1, round(columns.n_documents * ratio)),
            n_tokens=max(1, round(columns.n_tokens * ratio)),
            n_text_bytes=round(columns.n_text_bytes * ratio),
            n_image_bytes=round(head.n_image_bytes * ratio * len(draft.order) / len(draft.texts)),
            n_windows=max(1, round(n_windows * ratio)),
        )
        counts = ("n_documents", "n_tokens", "n_text_bytes")
        own = {"processor": None, "n_image_bytes": 0, **{n: getattr(columns, n) for n in counts}}
        return summarize(
            settings,
            plan,
            columns,
            sample_rates(plan.model_copy(update=own), columns),
            sampled_documents=None if exact else len(draft.texts),
            scaled=total is not None or options.max_tokens is not None,
        )


class Head(CorpusView):
    """The first documents of a corpus, without their images.

    Parameters
    ----------
    corpus : Corpus
        The corpus to sample.

    Attributes
    ----------
    n_chars, n_image_bytes : int
        Characters of text and bytes of images among the documents that were read.
    rest : iterator of Record or None
        The documents behind them, where there may be any.
    """

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus)
        self.n_chars = self.n_image_bytes = 0
        self.rest: Iterator[Record] | None = None

    def records(self) -> Iterator[Record]:
        """Yield documents up to the one that completes the sample."""
        records = self._corpus.records()
        for record in records:
            self.n_chars += len(record.text)
            self.n_image_bytes += len(record.image or b"")
            yield record._replace(image=None)
            if self.n_chars >= SAMPLE_CHARS:
                self.rest = records
                return

    def total_tokens(self, n_tokens: int) -> int | None:
        """Return the corpus's tokens, given the sample's; None if the corpus's size is unknown."""
        if self.rest is None:
            return n_tokens
        fraction = self._corpus.fraction()
        if fraction is not None:
            return round(n_tokens / max(fraction, 1e-9)) if fraction < 1 else n_tokens
        if not self.finite:
            return None
        n_chars = self.n_chars + sum(len(record.text) for record in self.rest)
        return round(n_tokens * n_chars / self.n_chars)
