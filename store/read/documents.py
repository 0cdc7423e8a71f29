"""``Documents``: the text, tokens, labels, images and sources of a store's documents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import table_html
from actlas.store.display.text import counted, printable
from actlas.store.errors import CorruptDataError
from actlas.store.extras import explains_missing
from actlas.store.format.validation import check_codes, check_edges, check_rising, check_span
from actlas.store.read.document import Context, Document, Source
from actlas.store.read.numbers import whole_index
from actlas.store.shards.lazy_array import LazyArray

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Int32, Int64


class Documents:
    """All documents of a store: ``len(documents)``, ``documents[-1]``, ``documents.text(3)``.

    Parameters
    ----------
    columns : dict of str to LazyArray
        The arrays of the group ``documents``.
    labels, sources : list of str
        The names that the codes of labels and sources stand for.
    token_columns : mapping of str to tuple of str
        The names that the codes of each token column stand for.
    activations : callable of (start, stop)
        Returns the activations of tokens [start, stop) of the corpus by hookpoint, read when they
        are accessed.
    """

    def __init__(
        self,
        columns: dict[str, LazyArray],
        labels: list[str],
        sources: list[str],
        token_columns: Mapping[str, tuple[str, ...]],
        activations: Callable[[int, int], Mapping[str, NDArray[Any]]],
    ) -> None:
        self.columns = columns
        self._activations = activations
        self.token_column_names = dict(token_columns)
        self.label_names = tuple(labels)
        self.source_names = tuple(sources)

    def __len__(self) -> int:
        return len(self.columns["source"])

    @overload
    def __getitem__(self, doc_idx: SupportsIndex) -> Document: ...
    @overload
    def __getitem__(self, doc_idx: slice) -> list[Document]: ...
    def __getitem__(self, doc_idx: SupportsIndex | slice) -> Document | list[Document]:
        """Return one document with its activations, or the documents of a slice."""
        if isinstance(doc_idx, slice):
            return [self[i] for i in range(*doc_idx.indices(len(self)))]
        index = self.index(doc_idx)
        start, stop = self.starts(index, index + 1).tolist()
        return self.document(index, self._activations(start, stop))

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        named = printable(", ".join(self.label_names))
        labels = f", labels {named}" if self.label_names else ""
        return f"<{counted(len(self), 'document')} of {len(self.source_names):,} sources{labels}>"

    @cached_property
    def start(self) -> Int64[NDArray[np.int64], " edges"]:
        """The first kept token of each document, and the end of the last; shape [documents + 1].

        It is kept in memory.
        """
        start: NDArray[np.int64] = self.columns["start"][:]
        check_edges(start, len(self.columns["token_id"]), "documents/start")
        return start

    def starts(self, lo: int, hi: int) -> Int64[NDArray[np.int64], " {hi-lo+1}"]:
        """Return the edges of documents [lo, hi), ``start[lo : hi + 1]``; shape [hi - lo + 1]."""
        return self.start[lo : hi + 1]

    @cached_property
    def label_codes(self) -> Int32[NDArray[np.int32], " documents"] | None:
        """The label of each document as an index into ``label_names``; shape [documents].

        -1 stands for no label. None if the store has no labels.
        """
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
        """Return the document that contains token ``t`` of the corpus; shape of ``t``."""
        found = np.searchsorted(self.start, t, side="right") - 1
        return int(found) if np.ndim(t) == 0 else found

    def index(self, doc_idx: SupportsIndex) -> int:
        """Return a document's number, from 0; a negative number counts from the end.

        Raises
        ------
        IndexError
            There is no document of this number.
        TypeError
            It is not a whole number.
        """
        return whole_index(doc_idx, len(self), "document", "this store")

    def token_ids(self, start: int, stop: int) -> Int32[NDArray[np.int32], " {stop-start}"]:
        """Return the ids of tokens [start, stop) of the corpus; shape [stop - start]."""
        return self.columns["token_id"].read(start, stop)

    def special(self, start: int, stop: int) -> Bool[NDArray[np.bool_], " {stop-start}"]:
        """Return whether the tokenizer added each of tokens [start, stop); shape [stop - start]."""
        if "special" not in self.columns:
            return np.zeros(stop - start, dtype=np.bool_)
        special: NDArray[np.bool_] = self.columns["special"].read(start, stop) == 1
        return special

    def column_names(self, name: str) -> tuple[str, ...]:
        """Return the names that the codes of a token column stand for.

        Raises
        ------
        KeyError
            The store has no such token column.
        """
        if name not in self.token_column_names:
            known = ", ".join(self.token_column_names) or "none"
            raise KeyError(f"column {name!r}: the columns of tokens in this store are: {known}")
        return self.token_column_names[name]

    def token_column(
        self, name: str, start: int, stop: int
    ) -> Int32[NDArray[np.int32], " {stop-start}"]:
        """Return a token column's codes for tokens [start, stop); shape [stop - start].

        The code -1 stands for no value.

        Raises
        ------
        KeyError
            The store has no such token column.
        """
        self.column_names(name)
        return self.columns[name].read(start, stop)

    def text(self, doc_idx: int) -> str:
        """Return a document's complete text."""
        doc_idx = self.index(doc_idx)
        lo, hi = self.columns["text_start"].read(doc_idx, doc_idx + 2).tolist()
        check_span(lo, hi, len(self.columns["text"]), f"documents/text_start, document {doc_idx}")
        try:
            return self.columns["text"].read(lo, hi).tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptDataError(
                f"documents/text, document {doc_idx}: the text is not UTF-8 ({error.reason})",
                path="documents/text",
            ) from error

    def image(self, doc_idx: int) -> bytes | None:
        """Return the bytes of a document's image file as read from the corpus, or None."""
        doc_idx = self.index(doc_idx)
        if "image" not in self.columns:
            return None
        return self.images(doc_idx, doc_idx + 1)[0] or None

    def images(self, lo: int, hi: int) -> list[bytes]:
        """Return the bytes of the image file of each of documents [lo, hi); empty for no image."""
        edges = self.columns["image_start"].read(lo, hi + 1)
        check_rising(edges, len(self.columns["image"]), "documents/image_start")
        data = self.columns["image"].read(int(edges[0]), int(edges[-1]))
        ranges = itertools.pairwise((edges - edges[0]).tolist())
        return [data[start:stop].tobytes() for start, stop in ranges]

    def label(self, doc_idx: int) -> str | None:
        """Return a document's label, or None if it has none."""
        doc_idx = self.index(doc_idx)
        if "label" not in self.columns:
            return None
        code = int(self.columns["label"].read(doc_idx, doc_idx + 1)[0])
        return self._name(self.label_names, code, "label") if code >= 0 else None

    def source(self, doc_idx: int) -> Source:
        """Return the source of a document."""
        doc_idx = self.index(doc_idx)
        code = int(self.columns["source"].read(doc_idx, doc_idx + 1)[0])
        record = int(self.columns["record"].read(doc_idx, doc_idx + 1)[0])
        return Source(self._name(self.source_names, code, "source"), record)

    def _name(self, names: tuple[str, ...], code: int, column: str) -> str:
        check_codes(np.array([code]), names, f"documents/{column}")
        return names[code]

    def document(self, doc_idx: int, activations: Mapping[str, NDArray[Any]]) -> Document:
        """Return one document with the given activations.

        Parameters
        ----------
        doc_idx : int
            The document's number.
        activations : mapping of hookpoint to ndarray, shape [tokens, units]
            The activations of its tokens; may be empty.
        """
        doc_idx = self.index(doc_idx)
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
        names: tuple[str | None, ...] = (*self.token_column_names[name], None)  # -1 indexes None
        codes = self.token_column(name, start, stop)
        check_codes(codes, self.token_column_names[name], f"documents/{name}", lowest=-1)
        return tuple(names[code] for code in codes.tolist())

    def context(self, doc_idx: int, pos_idx: int, words: int = 20) -> Context:
        """Return a token with ``words`` words on each side: see :meth:`Document.context`."""
        return self.document(doc_idx, {}).context(pos_idx, words)

    @explains_missing
    def to_pandas(self) -> pd.DataFrame:
        """Return one row per document: number of tokens, label, source and record."""
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
        rows = [("documents", f"{len(self):,}"), ("sources", f"{len(self.source_names):,}")]
        if self.label_names:
            rows.append(("labels", ", ".join(self.label_names)))
        return table_html(rows)
