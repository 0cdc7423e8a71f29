"""Tokens among their words, shaded by an activation: what a feature or a unit fires on."""

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

if TYPE_CHECKING:
    import pandas as pd

    from actlas.store.read.document import Document
    from actlas.store.read.reader import StoreReader

Shade = Callable[[int, int], NDArray[Any]]
"""Returns the activation of tokens [start, stop) of the corpus."""


class Peak(NamedTuple):
    """Tokens of the corpus with their activations, in the order asked for.

    Attributes
    ----------
    t : ndarray of int64, shape [k]
    value : ndarray of float32, shape [k]
    """

    t: NDArray[np.int64]
    value: NDArray[np.float32]


@dataclass(frozen=True)
class ActivationContext:
    """A token with the words around it, and the activation of every token in them.

    ``before + token + after`` is a slice of the document's text, and so is the concatenation of
    ``tokens``; ``peak`` is the place of the token in ``tokens``. Text beyond a document's last kept
    token, where it was cut, is one more piece with activation 0.
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

    def _repr_html_(self) -> str:
        largest = max((abs(a) for a in self.activations), default=0.0)
        return shaded_html(self.shaded(), largest)

    def shaded(self) -> ShadedText:
        """Return what HTML shows of this context."""
        label = f", label {self.label}" if self.label is not None else ""
        where = f"{self.value:.4g} · document {self.doc_idx}, token {self.pos_idx}{label}"
        return ShadedText(f"{where} · {self.source}", self.tokens, self.activations, self.peak)


class Contexts(Sequence[ActivationContext]):
    """Contexts in order. Shows itself as HTML in a notebook, all text escaped.

    Attributes
    ----------
    title : str
    facts : mapping of str to str
        What is known of the feature or unit.
    scale : float
        The activation that is shaded fully.
    """

    def __init__(
        self,
        entries: Sequence[ActivationContext],
        title: str,
        facts: Mapping[str, str],
        scale: float,
    ) -> None:
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
            return Contexts(self.entries[index], self.title, self.facts, self.scale)
        return self.entries[index]

    def __iter__(self) -> Iterator[ActivationContext]:
        return iter(self.entries)

    def __repr__(self) -> str:
        lines = [f"<{self.title}: {len(self)} contexts>"]
        lines += [f"{e.value:10.4g}  {e.doc_idx}:{e.pos_idx}  {str(e)!r}" for e in self.entries]
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per context: value, t, doc_idx, pos_idx, label, before, token, after."""
        import pandas as pd

        names = ("value", "t", "doc_idx", "pos_idx", "label", "before", "token", "after")
        return pd.DataFrame({n: [getattr(e, n) for e in self.entries] for n in names})

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
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
        """Return a whole page that needs nothing else."""
        return contexts_page([self])

    def _repr_html_(self) -> str:
        return contexts_html(
            self.title, self.facts, [entry.shaded() for entry in self.entries], self.scale
        )


def contexts_page(several: Sequence[Contexts]) -> str:
    """Return several lists of contexts as one HTML page that needs no other file."""
    title = "; ".join(contexts.title for contexts in several)
    return page_html(title, (contexts._repr_html_() for contexts in several))


def _numbers(values: Sequence[float]) -> list[float | None]:
    """Return what JSON has: None where a value is no number."""
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
) -> Contexts:
    """Return the context of each token, its tokens shaded.

    Parameters
    ----------
    store : StoreReader
    peaks : Peak
        The tokens to show.
    words : int
        Of the document on each side.
    title, facts, scale
        See :class:`Contexts`.
    shade : callable
        Gives the activation of consecutive tokens.
    """
    documents = store.documents
    read = lru_cache(maxsize=8)(lambda doc_idx: documents.document(doc_idx, {}))
    found = documents.find(peaks.t)
    entries: list[ActivationContext | None] = [None] * len(peaks.t)
    for i in np.argsort(peaks.t, kind="stable"):  # a document is read once for all its peaks
        document = read(int(found[i]))
        entries[i] = _entry(store, document, int(peaks.t[i]), float(peaks.value[i]), words, shade)
    return Contexts([e for e in entries if e is not None], title, facts, scale)


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
    pieces = tuple(document.text[a:b] for a, b in itertools.pairwise(edges))
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
        tokens=pieces,
        activations=tuple(activations),
        peak=pos - lo,
    )


def one_per_document(store: StoreReader, peaks: Peak, k: int) -> Peak:
    """Return the first ``k`` of these that lie in different documents."""
    _, first = np.unique(store.documents.find(peaks.t), return_index=True)
    first = np.sort(first)[:k]
    return Peak(peaks.t[first], peaks.value[first])
