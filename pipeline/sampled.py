"""The first documents of a corpus, kept in memory as a plan would have them: to be measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.tokenization import Tokens, Windows

KEPT_TOKENS = 1 << 20
"""What comes behind them is counted, and not kept."""


class SampledColumns:
    """The columns of :class:`~actlas.store.document_columns.DocumentColumns` in memory.

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
