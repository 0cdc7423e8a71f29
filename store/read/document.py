"""One document of a store, and one of its tokens among the words around it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import marked_html, tokens_html
from actlas.store.display.text import printable
from actlas.store.read.context_window import context_window

if TYPE_CHECKING:
    import pandas as pd


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
        start, stop = context_window(self.text, lo, hi, words)
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
        label = f", label {self.label}" if self.label is not None else ""
        title = f"document {self.doc_idx}: {self.source.name}, record {self.source.record}{label}"
        return tokens_html(title, self.tokens, self.token_id.tolist())


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
        title = f"document {self.doc_idx}, token {self.pos_idx}"
        return marked_html(self.before, self.token, self.after, title)
