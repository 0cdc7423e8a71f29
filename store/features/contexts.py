"""``Contexts``: tokens with the words around them and the activation of each token in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.contexts_html import ShadedText, contexts_html, page_html, shaded_html
from actlas.store.display.histogram import Histogram
from actlas.store.display.text import shortened
from actlas.store.extras import explains_missing

if TYPE_CHECKING:
    import pandas as pd

    from actlas.store.read.document import Document
    from actlas.store.read.reader import StoreReader

MAX_LINES = 40
"""The text of a list of contexts shows at most so many of them."""

Shade = Callable[[int, int], NDArray[Any]]
"""Returns the activations of tokens [start, stop) of the corpus; shape [stop - start]."""


class Peak(NamedTuple):
    """Tokens of the corpus with their activations, in the order of the query.

    Attributes
    ----------
    t : ndarray of int64, shape [k]
        The index of each token in the corpus.
    value : ndarray of float32, shape [k]
        The activation on each token.
    """

    t: NDArray[np.int64]
    value: NDArray[np.float32]


@dataclass(frozen=True)
class ActivationContext:
    """A token with the words around it, and the activation of every token in them.

    ``before + token + after`` is a slice of the document's text, and the same as all ``tokens``
    joined. Text beyond the last kept token of a truncated document is one more element of
    ``tokens``, with activation 0.

    Attributes
    ----------
    value : float
        The activation on the token.
    t, doc_idx, pos_idx : int
        The token's index in the corpus, its document, and its position in the document.
    label : str or None
        The document's label.
    source : str
        The name of the document's source.
    before, token, after : str
        The words before the token, the token's text, and the words after it.
    tokens : tuple of str, length n
        The text of each token of the context.
    activations : tuple of float, length n
        The activation on each token of the context.
    peak : int
        The index of the token in ``tokens``.
    """

    value: float
    t: int
    doc_idx: int
    pos_idx: int
    label: str | None
    source: str
    before: str
    token: str
    after: str
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int

    def __str__(self) -> str:
        return f"{self.before}[{self.token}]{self.after}"

    def __repr__(self) -> str:
        where = f"document {self.doc_idx}, token {self.pos_idx}"
        return f"<context {self.value:.4g} of {where}: {shortened(str(self), 200)!r}>"

    def _repr_html_(self) -> str:
        largest = max((abs(a) for a in self.activations), default=0.0)
        return shaded_html(self.shaded(), largest)

    def shaded(self) -> ShadedText:
        """Return this context as HTML shows it."""
        label = f", label {self.label}" if self.label is not None else ""
        where = f"{self.value:.4g} · document {self.doc_idx}, token {self.pos_idx}{label}"
        return ShadedText(f"{where} · {self.source}", self.tokens, self.activations, self.peak)


class Contexts(Sequence[ActivationContext]):
    """A sequence of contexts, which a notebook shows as HTML with all text escaped.

    Attributes
    ----------
    entries : tuple of ActivationContext
        The contexts.
    title : str
        Names the feature or unit.
    facts : mapping of str to str
        Names and values of the feature or unit, such as its density.
    scale : float
        The absolute activation that is shaded fully.
    histogram : callable, optional
        Returns the distribution of the feature's or unit's activations; called for HTML alone.
    """

    def __init__(
        self,
        entries: Sequence[ActivationContext],
        title: str,
        facts: Mapping[str, str],
        scale: float,
        histogram: Callable[[], Histogram | None] = lambda: None,
    ) -> None:
        self.histogram = histogram
        self.entries = tuple(entries)
        self.title = title
        self.facts = dict(facts)
        self.scale = scale

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> ActivationContext: ...
    @overload
    def __getitem__(self, index: slice) -> Contexts: ...
    def __getitem__(self, index: int | slice) -> ActivationContext | Contexts:
        if isinstance(index, slice):
            part = self.entries[index]
            return Contexts(part, self.title, self.facts, self.scale, self.histogram)
        return self.entries[index]

    def __iter__(self) -> Iterator[ActivationContext]:
        return iter(self.entries)

    def __repr__(self) -> str:
        lines = [f"<{self.title}: {len(self)} contexts>"]
        lines += [
            f"{e.value:10.4g}  {e.doc_idx}:{e.pos_idx}  {shortened(str(e), 400)!r}"
            for e in self.entries[:MAX_LINES]
        ]
        if len(self) > MAX_LINES:
            lines.append(f"… and {len(self) - MAX_LINES:,} more")
        return "\n".join(lines)

    @explains_missing
    def to_pandas(self) -> pd.DataFrame:
        """Return one row per context: value, t, doc_idx, pos_idx, label, before, token, after."""
        import pandas as pd

        names = ("value", "t", "doc_idx", "pos_idx", "label", "before", "token", "after")
        return pd.DataFrame({n: [getattr(e, n) for e in self.entries] for n in names})

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "title": self.title,
            "facts": self.facts,
            "scale": self.scale,
            "contexts": [
                {**vars(e), "tokens": list(e.tokens), "activations": _numbers(e.activations)}
                for e in self.entries
            ],
        }

    def to_html(self) -> str:
        """Return a complete HTML page that needs no other file."""
        return contexts_page([self])

    def _repr_html_(self) -> str:
        shaded = [entry.shaded() for entry in self.entries]
        return contexts_html(self.title, self.facts, shaded, self.scale, self.histogram())


def contexts_page(several: Sequence[Contexts]) -> str:
    """Return several lists of contexts as one HTML page that needs no other file."""
    titles = [contexts.title for contexts in several]
    more = f" and {len(titles) - 1:,} more" if len(titles) > 1 else ""
    sections = zip(titles, (contexts._repr_html_() for contexts in several), strict=True)
    return page_html(f"Contexts of {titles[0]}{more}" if titles else "No contexts", sections)


def _numbers(values: Sequence[float]) -> list[float | None]:
    """Return numbers as JSON has them: None stands for NaN and infinity."""
    return [value if math.isfinite(value) else None for value in values]


def contexts_of(
    store: StoreReader,
    peaks: Peak,
    words: int,
    *,
    title: str,
    facts: Mapping[str, str],
    scale: float,
    shade: Shade,
    histogram: Callable[[], Histogram | None] = lambda: None,
) -> Contexts:
    """Return the contexts of some tokens, with the activation of every token in them.

    Parameters
    ----------
    store : StoreReader
        The store that holds the documents.
    peaks : Peak
        The tokens to show, with their activations.
    words : int
        The number of words on each side.
    title, facts, scale, histogram
        See :class:`Contexts`.
    shade : callable of (start, stop)
        Returns the activations of consecutive tokens of the corpus.
    """
    documents = store.documents
    read = lru_cache(maxsize=8)(lambda doc_idx: documents.document(doc_idx, {}))
    found = documents.find(peaks.t)
    entries: list[ActivationContext | None] = [None] * len(peaks.t)
    for i in np.argsort(peaks.t, kind="stable"):  # each document is read once
        document = read(int(found[i]))
        entries[i] = _entry(store, document, int(peaks.t[i]), float(peaks.value[i]), words, shade)
    return Contexts([e for e in entries if e is not None], title, facts, scale, histogram)


def _entry(
    store: StoreReader, document: Document, t: int, value: float, words: int, shade: Shade
) -> ActivationContext:
    pos = t - document.start
    around = document.context(pos, words)
    lo, hi = around.pos_start, around.pos_stop
    stop = int(document.char_start[hi]) if hi < len(document) else document.char_stop
    start = int(document.char_start[pos]) - len(around.before)
    end = start + len(around.before) + len(around.token) + len(around.after)
    edges = np.clip([*document.char_start[lo:hi].tolist(), stop], start, end).tolist()
    edges[0] = start
    activations = shade(document.start + lo, document.start + hi).astype(float).tolist()
    if edges[-1] < end:  # text beyond the last kept token has no activation
        edges.append(end)
        activations.append(0.0)
    texts = tuple(document.text[a:b] for a, b in itertools.pairwise(edges))
    return ActivationContext(
        value=value,
        t=t,
        doc_idx=document.doc_idx,
        pos_idx=pos,
        label=document.label,
        source=document.source.name,
        before=around.before,
        token=around.token,
        after=around.after,
        tokens=texts,
        activations=tuple(activations),
        peak=pos - lo,
    )


def one_per_document(store: StoreReader, peaks: Peak, k: int) -> Peak:
    """Return the first ``k`` of some tokens that lie in different documents.

    Parameters
    ----------
    store : StoreReader
        The store that holds the documents.
    peaks : Peak
        The tokens, best first.
    k : int
        The maximum number of tokens to return.
    """
    _, first = np.unique(store.documents.find(peaks.t), return_index=True)
    first = np.sort(first)[:k]
    return Peak(peaks.t[first], peaks.value[first])
