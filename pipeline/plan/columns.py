"""The documents of a draft in the plan's order, read from the spool range by range."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.plan.draft import Draft, Names

if TYPE_CHECKING:
    from jaxtyping import Bool, Int32, UInt8

_HASH_BYTES = 8 << 20


class DraftColumns:
    """A spool as :class:`actlas.store.write.document_columns.DocumentColumns`.

    Parameters
    ----------
    draft : Draft
        The documents. Their spool must stay open while columns are read.
    labelled : bool
        Whether documents have labels.
    names : mapping of str to tuple of str, optional
        The names of the codes in the tokenizer's own token columns.
    """

    def __init__(
        self, draft: Draft, *, labelled: bool, names: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        texts, tokenized, order = draft.texts, draft.tokenized, draft.order
        place = np.array(tokenized.place, np.int64)[order]
        text_edges = np.array(texts.edges, np.int64)
        self._draft = draft
        self._text_from = text_edges[place]
        self._tokens_from = np.array(tokenized.edges, np.int64)[order]
        self.start = _edges(draft.lengths)
        self.text_start = _edges(text_edges[place + 1] - self._text_from)
        self.n_documents = len(order)
        self.n_tokens = int(self.start[-1])
        self.n_text_bytes = int(self.text_start[-1])
        # Without images the edges take no memory.
        self._image_from = self.image_start = np.broadcast_to(np.int64(0), len(order) + 1)
        if texts.image_edges is not None:
            image_edges = np.array(texts.image_edges, np.int64)
            self._image_from = image_edges[place]
            self.image_start = _edges(image_edges[place + 1] - self._image_from)
        self.n_image_bytes = int(self.image_start[-1])
        self.char_stop = np.array(tokenized.char_stop, np.int32)[order]
        self.record = np.array(texts.record, np.int64)[place]
        self.source, self.source_names = _used(texts.source, place, texts.sources)
        codes, used = _used(texts.label, place, texts.labels)
        self.label: NDArray[np.int32] | None = codes if labelled else None
        self.label_names = used if labelled else ()
        read = texts.labels.codes if labelled else ()
        self.labels_left_out = tuple(sorted(set(read) - set(used)))
        """Labels that only documents have that were read and not chosen."""
        all_names = dict(names or {})
        self._recoded: dict[str, NDArray[np.int32]] = {}
        for name, found in texts.columns.items():
            kept = [code for code, n in tokenized.n_of_code[name].items() if n and code >= 0]
            self._recoded[name], all_names[name] = _recoded(kept, found)
        self.token_column_names: Mapping[str, tuple[str, ...]] = all_names

    def token_ids(self, start: int, stop: int) -> Int32[NDArray[np.int32], " tokens"]:
        """Return the kept tokens [start, stop)."""
        return self._draft.tokenized.token_id.gather(self._tokens_from, self.start, start, stop)

    def char_starts(self, start: int, stop: int) -> Int32[NDArray[np.int32], " tokens"]:
        """Return, for the same tokens, the character of the document at which each begins."""
        return self._draft.tokenized.char_start.gather(self._tokens_from, self.start, start, stop)

    def special(self, start: int, stop: int) -> Bool[NDArray[np.bool_], " tokens"] | None:
        """Return, for the same tokens, which are special; None where these have no rows."""
        return self._draft.tokenized.windows.special(self.start, start, stop)

    def token_column(self, name: str, start: int, stop: int) -> Int32[NDArray[np.int32], " tokens"]:
        """Return, for the same tokens, the codes of a column; -1 for none."""
        codes: NDArray[np.int32] = self._draft.tokenized.columns[name].gather(
            self._tokens_from, self.start, start, stop
        )
        return self._recoded[name][codes] if name in self._recoded else codes

    def n_tokens_of(self, name: str) -> dict[str, int]:
        """Return the number of tokens of each name in a token column."""
        n_of_code, new = self._draft.tokenized.n_of_code[name], self._recoded.get(name)
        codes = {code: int(new[code]) if new is not None else code for code in n_of_code}
        names = self.token_column_names[name]
        return {names[codes[code]]: n for code, n in n_of_code.items() if code >= 0}

    def text(self, start: int, stop: int) -> UInt8[NDArray[np.uint8], " bytes"]:
        """Return bytes [start, stop) of all texts, one after the other."""
        return self._draft.texts.file.gather(self._text_from, self.text_start, start, stop)

    def image(self, start: int, stop: int) -> UInt8[NDArray[np.uint8], " bytes"]:
        """Return bytes [start, stop) of all images, one after the other."""
        return self._draft.texts.images.gather(self._image_from, self.image_start, start, stop)

    def fingerprint(self) -> str:
        """Return the sha256 of the documents in the plan's order.

        It covers the number of documents and the length of each in bytes, as little-endian signed
        64-bit integers, then the UTF-8 bytes of all texts; with images, then the length of each
        image in bytes and the bytes of all image files.
        """
        lengths = np.diff(self.text_start)
        digest = hashlib.sha256(np.array([self.n_documents], "<i8").tobytes())
        digest.update(lengths.astype("<i8").tobytes())
        for start in range(0, self.n_text_bytes, _HASH_BYTES):
            digest.update(self.text(start, min(start + _HASH_BYTES, self.n_text_bytes)).data)
        if self.n_image_bytes:
            digest.update(np.diff(self.image_start).astype("<i8").tobytes())
        for start in range(0, self.n_image_bytes, _HASH_BYTES):
            digest.update(self.image(start, min(start + _HASH_BYTES, self.n_image_bytes)).data)
        return digest.hexdigest()


class InputLengths(NamedTuple):
    """Lengths of the sequences that a model is fed: their sum, that of squares, the longest."""

    n_tokens: int
    n_pairs: int
    longest: int


def input_lengths(columns: DraftColumns, kept: int, full: int) -> InputLengths:
    """Return the lengths of the sequences that windows of documents make.

    Parameters
    ----------
    columns : DraftColumns
        The documents.
    kept, full : int
        Tokens of a full window that are kept, and all of its tokens.
    """
    lengths = np.diff(columns.start)
    n_full, rest = int((lengths // kept).sum()), lengths % kept
    rest = rest[rest > 0] + full - kept
    return InputLengths(
        n_tokens=n_full * full + int(rest.sum()),
        n_pairs=n_full * full**2 + int((rest**2).sum()),
        longest=full if n_full else int(rest.max()),
    )


def _edges(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _used(
    codes: array[int], place: NDArray[np.int64], names: Names
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return the codes of the chosen documents, and the names that occur among them, sorted."""
    chosen = np.array(codes, np.int32)[place]
    to, used = _recoded([code for code in np.unique(chosen).tolist() if code >= 0], names)
    return to[chosen], used


def _recoded(codes: Iterable[int], names: Names) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return the new code of each old code, and the used names, sorted."""
    known = list(names.codes)
    used = sorted((known[code], code) for code in codes)
    to = np.full(len(known) + 1, -1, np.int32)  # The last element is for no name, -1.
    for new, (_, old) in enumerate(used):
        to[old] = new
    return to, tuple(name for name, _ in used)
