"""The documents of a store: their text, their tokens, where each came from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from actlas.store import display
from actlas.store.display import printable
from actlas.store.errors import CorruptDataError
from actlas.store.lazy import LazyArray
from actlas.store.plausible import check_codes, check_edges, check_rising, check_span

if TYPE_CHECKING:
    import pandas as pd

_WORD = re.compile(r"\S+")
WORD_CHARACTERS = 64
"""A context has at most so many characters for each word asked for, and for one more."""


class Source(NamedTuple):
    """Where a document came from: a file (or hub or built-in name) and its record in it."""

    name: str
    record: int


@dataclass(frozen=True)
class Document:
    """One document: its text, its kept tokens and their activations, in document order.

    Attributes
    ----------
    text : str
        The whole text, also what lies beyond the last kept token.
    token_id : ndarray of int32, shape [tokens]
    char_start : ndarray of int32, shape [tokens]
        Where in the text each token begins.
    activations : mapping of hookpoint to ndarray, shape [tokens, units]
        Read when asked for.
    columns : mapping of str to tuple of str or None, one per token
        What each of the store's columns of tokens says: ``columns["role"][0] == "user"``.
    """

    doc_idx: int
    text: str
    label: str | None
    source: Source
    start: int
    token_id: NDArray[np.int32]
    char_start: NDArray[np.int32]
    char_stop: int
    special: NDArray[np.bool_]
    activations: Mapping[str, NDArray[Any]]
    columns: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_id)

    @cached_property
    def tokens(self) -> list[str]:
        """The piece of text of each token; a token that the tokenizer added has an empty one.

        A character that is cut into several tokens is shown with the first of them.
        """
        edges = [*self.char_start.tolist(), self.char_stop]
        return [self.text[a:b] for a, b in itertools.pairwise(edges)]

    def context(self, pos_idx: int, words: int = 20) -> Context:
        """Return one token with ``words`` words on each side.

        A word is a run without white space. The words that the token itself lies in count for
        neither side.

        Raises
        ------
        IndexError
            There is no such token in this document.
        """
        if not 0 <= pos_idx < len(self):
            raise IndexError(
                f"token {pos_idx}: document {self.doc_idx} has {len(self)} tokens, from 0"
            )
        starts = self.char_start
        lo = int(starts[pos_idx])
        hi = int(starts[pos_idx + 1]) if pos_idx + 1 < len(self) else self.char_stop
        start, stop = words_around(self.text, lo, hi, words)
        first = int(np.searchsorted(starts, start, side="right")) - 1  # a token may begin before
        return Context(
            doc_idx=self.doc_idx,
            pos_idx=pos_idx,
            before=self.text[start:lo],
            token=self.text[lo:hi],
            after=self.text[hi:stop],
            pos_start=min(max(first, 0), pos_idx),
            pos_stop=max(int(np.searchsorted(starts, stop)), pos_idx + 1),
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per token: token_id, text, its columns, each hookpoint's L2 norm."""
        import pandas as pd

        columns: dict[str, Any] = {"token_id": self.token_id, "token": self.tokens, **self.columns}
        for name, rows in self.activations.items():
            columns[f"norm {name}"] = np.linalg.norm(rows.astype(np.float32), axis=1)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self), name="pos_idx"))

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "…"
        source = printable(self.source.name)
        return f"<document {self.doc_idx} of {source}: {len(self)} tokens, {text!r}>"

    def _repr_html_(self) -> str:
        return display.document_html(self)


@dataclass(frozen=True)
class Context:
    """A token among the words around it.

    ``before + token + after`` is a slice of the document's text.
    """

    doc_idx: int
    pos_idx: int
    before: str
    token: str
    after: str
    pos_start: int
    pos_stop: int
    """Tokens [pos_start, pos_stop) of the document lie in this slice, whole or in part."""

    def __str__(self) -> str:
        return f"{self.before}[{self.token}]{self.after}"

    def _repr_html_(self) -> str:
        return display.context_html(self)


class Documents:
    """All documents of a store. ``len(documents)``, ``documents.text(3)``.

    Parameters
    ----------
    columns : dict of LazyArray
        The arrays of group ``documents``.
    labels, sources : list of str
        The names of the labels and of the sources.
    token_columns : mapping of str to tuple of str
        The names in each column of tokens.
    """

    def __init__(
        self,
        columns: dict[str, LazyArray],
        labels: list[str],
        sources: list[str],
        token_columns: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.columns = columns
        self.token_column_names = dict(token_columns)
        self.label_names = tuple(labels)
        self.source_names = tuple(sources)

    def __len__(self) -> int:
        return len(self.columns["source"])

    def __repr__(self) -> str:
        named = printable(", ".join(self.label_names))
        labels = f", labels {named}" if self.label_names else ""
        return f"<{len(self):,} documents of {len(self.source_names):,} sources{labels}>"

    @cached_property
    def start(self) -> NDArray[np.int64]:
        """The first kept token of every document; shape [documents + 1]. Kept in memory."""
        start: NDArray[np.int64] = self.columns["start"][:]
        check_edges(start, len(self.columns["token_id"]), "documents/start")
        return start

    def starts(self, lo: int, hi: int) -> NDArray[np.int64]:
        """Return ``start[lo : hi + 1]``: the edges of documents [lo, hi)."""
        return self.start[lo : hi + 1]

    @cached_property
    def label_codes(self) -> NDArray[np.int32] | None:
        """The label of every document as an index into ``label_names``, -1 for none."""
        if "label" not in self.columns:
            return None
        codes: NDArray[np.int32] = self.columns["label"][:]
        check_codes(codes, self.label_names, "documents/label", lowest=-1)
        return codes

    @overload
    def find(self, t: int) -> int: ...
    @overload
    def find(self, t: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def find(self, t: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """Return the document that holds token ``t``, or each of several."""
        found = np.searchsorted(self.start, t, side="right") - 1
        return int(found) if np.ndim(t) == 0 else found

    def check(self, doc_idx: int) -> None:
        """Raise ``IndexError`` where there is no such document."""
        if not 0 <= doc_idx < len(self):
            raise IndexError(f"document {doc_idx}: this store has documents 0 to {len(self) - 1}")

    def token_ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the kept tokens [start, stop) of the corpus."""
        return self.columns["token_id"].read(start, stop)

    def special(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of these tokens the tokenizer added."""
        if "special" not in self.columns:
            return np.zeros(stop - start, dtype=np.bool_)
        special: NDArray[np.bool_] = self.columns["special"].read(start, stop) == 1
        return special

    def column_names(self, name: str) -> tuple[str, ...]:
        """Return what the codes of a column of tokens mean.

        Raises
        ------
        KeyError
            There is no such column.
        """
        if name not in self.token_column_names:
            there = ", ".join(self.token_column_names) or "none"
            raise KeyError(f"column {name!r}: the columns of tokens in this store are: {there}")
        return self.token_column_names[name]

    def token_column(self, name: str, start: int, stop: int) -> NDArray[np.int32]:
        """Return a column's codes of tokens [start, stop) of the corpus; -1 for none.

        Raises
        ------
        KeyError
            There is no such column.
        """
        self.column_names(name)
        return self.columns[name].read(start, stop)

    def text(self, doc_idx: int) -> str:
        """Return a document's whole text."""
        self.check(doc_idx)
        lo, hi = self.columns["text_start"].read(doc_idx, doc_idx + 2).tolist()
        check_span(lo, hi, len(self.columns["text"]), f"documents/text_start, document {doc_idx}")
        try:
            return self.columns["text"].read(lo, hi).tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptDataError(
                f"documents/text, document {doc_idx}: is not UTF-8 ({error.reason})",
                path="documents/text",
            ) from error

    def image(self, doc_idx: int) -> bytes | None:
        """Return a document's image file, byte for byte as it was read; None where it has none."""
        self.check(doc_idx)
        if "image" not in self.columns:
            return None
        return self.images(doc_idx, doc_idx + 1)[0] or None

    def images(self, lo: int, hi: int) -> list[bytes]:
        """Return the image files of documents [lo, hi), empty where one has none."""
        edges = self.columns["image_start"].read(lo, hi + 1)
        check_rising(edges, len(self.columns["image"]), "documents/image_start")
        data = self.columns["image"].read(int(edges[0]), int(edges[-1]))
        places = itertools.pairwise((edges - edges[0]).tolist())
        return [data[start:stop].tobytes() for start, stop in places]

    def label(self, doc_idx: int) -> str | None:
        """Return a document's label, or None."""
        self.check(doc_idx)
        if "label" not in self.columns:
            return None
        code = int(self.columns["label"].read(doc_idx, doc_idx + 1)[0])
        return self._name(self.label_names, code, "label") if code >= 0 else None

    def source(self, doc_idx: int) -> Source:
        """Return where a document came from."""
        self.check(doc_idx)
        code = int(self.columns["source"].read(doc_idx, doc_idx + 1)[0])
        record = int(self.columns["record"].read(doc_idx, doc_idx + 1)[0])
        return Source(self._name(self.source_names, code, "source"), record)

    def _name(self, names: tuple[str, ...], code: int, column: str) -> str:
        check_codes(np.array([code]), names, f"documents/{column}")
        return names[code]

    def document(self, doc_idx: int, activations: Mapping[str, NDArray[Any]]) -> Document:
        """Return one document, with the activations that are given for it."""
        self.check(doc_idx)
        start, stop = (int(t) for t in self.starts(doc_idx, doc_idx + 1))
        text = self.text(doc_idx)
        chars = self.columns["char_start"].read(start, stop)
        char_stop = int(self.columns["char_stop"].read(doc_idx, doc_idx + 1)[0])
        where = f"documents/char_start, document {doc_idx}"
        check_rising(np.append(chars, char_stop), len(text), where)
        return Document(
            doc_idx=doc_idx,
            text=text,
            label=self.label(doc_idx),
            source=self.source(doc_idx),
            start=start,
            token_id=self.token_ids(start, stop),
            char_start=chars,
            char_stop=char_stop,
            special=self.special(start, stop),
            activations=activations,
            columns={name: self._named(name, start, stop) for name in self.token_column_names},
        )

    def _named(self, name: str, start: int, stop: int) -> tuple[str | None, ...]:
        names: tuple[str | None, ...] = (*self.token_column_names[name], None)  # -1 is the last
        codes = self.token_column(name, start, stop)
        check_codes(codes, self.token_column_names[name], f"documents/{name}", lowest=-1)
        return tuple(names[code] for code in codes.tolist())

    def context(self, doc_idx: int, pos_idx: int, words: int = 20) -> Context:
        """Return a token of a document among its words: :meth:`Document.context`."""
        return self.document(doc_idx, {}).context(pos_idx, words)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per document: tokens, label, source, record."""
        import pandas as pd

        names = np.array(self.source_names, dtype=object)
        table: dict[str, Any] = {"n_tokens": np.diff(self.start)}
        if self.label_codes is not None:
            table["label"] = pd.Categorical.from_codes(
                self.label_codes.tolist(), categories=pd.Index(self.label_names)
            )
        sources = self.columns["source"][:]
        check_codes(sources, self.source_names, "documents/source")
        table["source"] = names[sources]
        table["record"] = self.columns["record"][:]
        return pd.DataFrame(table, index=pd.RangeIndex(len(self), name="doc_idx"))

    def _repr_html_(self) -> str:
        return display.documents_html(self)


def words_around(text: str, lo: int, hi: int, words: int) -> tuple[int, int]:
    """Return where ``words`` whole words before ``text[lo:hi]`` begin and as many after it end.

    A word that ``text[lo:hi]`` lies in is taken in whole and counts for neither side. Only the
    neighbourhood is looked at, so that a book is no slower than a page; and on each side there are
    at most ``64 * (words + 1)`` characters, since not every text has white space.
    """
    limit = WORD_CHARACTERS * (words + 1)
    return _back(text, lo, words, limit), _forward(text, hi, words, limit)


def _back(text: str, lo: int, words: int, limit: int) -> int:
    width = limit // 2
    while True:
        first = max(0, lo - width)
        starts = [m.start() for m in _WORD.finditer(text, first, lo)]
        cut = lo
        if starts and lo < len(text) and not text[lo - 1].isspace() and not text[lo].isspace():
            cut = starts.pop()
        if first and not text[first].isspace() and not text[first - 1].isspace():
            if starts:
                starts = starts[1:]  # where it begins is not seen
            else:
                cut = -1
        if first == 0 or (cut >= 0 and len(starts) >= max(words, 1)):
            return starts[-words:][0] if starts and words else cut
        if width == limit:
            return first if words or cut < 0 else cut
        width = limit


def _forward(text: str, hi: int, words: int, limit: int) -> int:
    width = limit // 2
    while True:
        last = min(len(text), hi + width)
        stops = [m.end() for m in _WORD.finditer(text, hi, last)]
        cut = hi
        if stops and hi and not text[hi - 1].isspace() and not text[hi].isspace():
            cut = stops.pop(0)
        if last < len(text) and not text[last - 1].isspace() and not text[last].isspace():
            if stops:
                stops = stops[:-1]
            else:
                cut = -1
        if last == len(text) or (cut >= 0 and len(stops) >= max(words, 1)):
            return stops[:words][-1] if stops and words else cut
        if width == limit:
            return last if words or cut < 0 else cut
        width = limit
