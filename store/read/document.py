"""``Document``: one document with its activations; ``Context``: a token with words around it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import marked_html, tokens_html
from actlas.store.display.text import counted, printable, shortened
from actlas.store.extras import explains_missing
from actlas.store.read.context_window import context_window
from actlas.store.read.numbers import whole_index

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Int32


class Source(NamedTuple):
    """The source of a document.

    Attributes
    ----------
    name : str
        A file, a data set of the Hugging Face hub, or a built-in corpus.
    record : int
        The number of the document's record in it.
    """

    name: str
    record: int


@dataclass(frozen=True)
class Document:
    """One document: its text, its kept tokens and their activations, in document order.

    Attributes
    ----------
    doc_idx : int
        The document's number in the store.
    text : str
        The complete text, including what follows the last kept token.
    label : str or None
        The document's label.
    source : Source
        The file or data set, and the record in it.
    start : int
        The index of the document's first token in the corpus.
    token_id : ndarray of int32, shape [tokens]
        The id of each kept token.
    char_start : ndarray of int32, shape [tokens]
        The index of each token's first character in the text.
    char_stop : int
        The index behind the last kept token's last character.
    special : ndarray of bool, shape [tokens]
        Whether the tokenizer added the token.
    activations : mapping of hookpoint to ndarray, shape [tokens, units]
        The activations, read when a hookpoint is accessed.
    columns : mapping of str to tuple of (str or None), one per token
        The values of the store's token columns: ``columns["role"][0] == "user"``.
    """

    doc_idx: int
    text: str
    label: str | None
    source: Source
    start: int
    token_id: Int32[NDArray[np.int32], " tokens"]
    char_start: Int32[NDArray[np.int32], " tokens"]
    char_stop: int
    special: Bool[NDArray[np.bool_], " tokens"]
    activations: Mapping[str, NDArray[Any]]
    columns: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_id)

    @cached_property
    def tokens(self) -> list[str]:
        """The text of each token; empty for a token that the tokenizer added.

        A character that is split into several tokens belongs to the first of them.
        """
        edges = [*self.char_start.tolist(), self.char_stop]
        return [self.text[a:b] for a, b in itertools.pairwise(edges)]

    def context(self, pos_idx: int, words: int = 20) -> Context:
        """Return one token with some words of the document on each side.

        A word is a run of characters other than white space. Words that contain an end of the token
        count for neither side.

        Parameters
        ----------
        pos_idx : int
            The token's position in the document; a negative one counts from the end.
        words : int
            The number of words on each side.

        Raises
        ------
        IndexError
            The document has no such token.
        """
        pos_idx = whole_index(pos_idx, len(self), "token", f"document {self.doc_idx}")
        starts = self.char_start
        lo = int(starts[pos_idx])
        hi = int(starts[pos_idx + 1]) if pos_idx + 1 < len(self) else self.char_stop
        start, stop = context_window(self.text, lo, hi, words)
        first = int(np.searchsorted(starts, start, side="right")) - 1  # a token may begin before it
        return Context(
            doc_idx=self.doc_idx,
            pos_idx=pos_idx,
            before=self.text[start:lo],
            token=self.text[lo:hi],
            after=self.text[hi:stop],
            pos_start=min(max(first, 0), pos_idx),
            pos_stop=max(int(np.searchsorted(starts, stop)), pos_idx + 1),
        )

    @explains_missing
    def to_pandas(self) -> pd.DataFrame:
        """Return one row per token: id, text, token columns, and the L2 norm at each hookpoint."""
        import pandas as pd

        columns: dict[str, Any] = {"token_id": self.token_id, "token": self.tokens, **self.columns}
        for name, rows in self.activations.items():
            columns[f"norm {name}"] = np.linalg.norm(rows.astype(np.float32), axis=1)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self), name="pos_idx"))

    def __repr__(self) -> str:
        source = printable(self.source.name)
        text = shortened(self.text, 60)
        n_tokens = counted(len(self), "token")
        return f"<document {self.doc_idx} of {source}: {n_tokens}, {text!r}>"

    def _repr_html_(self) -> str:
        label = f", label {self.label}" if self.label is not None else ""
        title = f"document {self.doc_idx}: {self.source.name}, record {self.source.record}{label}"
        return tokens_html(title, self.tokens, self.token_id.tolist())


@dataclass(frozen=True)
class Context:
    """A token with the words around it: ``before + token + after`` is a slice of the text.

    Attributes
    ----------
    doc_idx, pos_idx : int
        The document, and the token's position in it.
    before, token, after : str
        The words before the token, the token's text, and the words after it.
    pos_start, pos_stop : int
        The tokens of the document that lie in the slice, at least in part; half-open.
    """

    doc_idx: int
    pos_idx: int
    before: str
    token: str
    after: str
    pos_start: int
    pos_stop: int

    def __str__(self) -> str:
        return f"{self.before}[{self.token}]{self.after}"

    def __repr__(self) -> str:
        where = f"document {self.doc_idx}, token {self.pos_idx}"
        return f"<context of {where}: {shortened(str(self), 200)!r}>"

    def _repr_html_(self) -> str:
        title = f"document {self.doc_idx}, token {self.pos_idx}"
        return marked_html(self.before, self.token, self.after, title)
