"""From text to kept tokens: no special tokens added, special strings in the text taken as text.

A :class:`DocumentTokenizer` works on its own copy of the tokenizer's backend, so that truncation,
padding and their warnings play no part, and the caller's tokenizer is not changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConfigError, ModelError
from actlas.store.format import layout
from actlas.store.format.schema import LongDocuments, TokenizerSpec

BATCH_BYTES = 1 << 20

BATCH_TEXTS = 4096

PROBES = ("a", "The cat sat on the mat.", "1 2 3", "")


class Tokens(NamedTuple):
    """A document's kept tokens.

    Attributes
    ----------
    token_id : ndarray of int32, shape [tokens]
    char_start : ndarray of int32, shape [tokens]
        The slices between these, the last one ending at ``char_stop``, are a partition of the
        document's text, or of its first part where the document is cut. Of several tokens that
        make one character the first has it, and the others' slices are empty.
    char_stop : int
    columns : mapping of str to ndarray of int32, shape [tokens]
        Codes of the tokens in further columns; -1 for none.
    """

    token_id: NDArray[np.int32]
    char_start: NDArray[np.int32]
    char_stop: int
    columns: Mapping[str, NDArray[np.int32]] = MappingProxyType({})

    def __len__(self) -> int:
        return len(self.token_id)


class DocumentTokenizer:
    """A tokenizer as a plan uses it.

    ``columns`` has the columns of tokens that ``cut`` gives, and the names of their codes.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        A fast one: only these say where in the text a token lies.
    identity : str
        What the plan calls it.

    Raises
    ------
    ModelError
        It is a slow one, or adds other tokens around one text than around another.
    """

    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, tokenizer: Any, identity: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not getattr(tokenizer, "is_fast", False) or backend is None:
            raise ModelError(
                f"{identity}: got a {type(tokenizer).__name__}, which cannot say where in the text "
                "a token lies. Expected a fast tokenizer: convert it to a tokenizer.json, or name "
                "another with --tokenizer.",
                tokenizer=identity,
            )
        self._backend = type(backend).from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.spec = self._describe(tokenizer, identity)

    def _describe(self, tokenizer: Any, identity: str) -> TokenizerSpec:
        prefix, suffix = self._probe(tokenizer, identity)
        special = {str(key): str(value) for key, value in tokenizer.special_tokens_map.items()}
        about = {"special": special, "prefix": prefix, "suffix": suffix}
        digest = hashlib.sha256(self._backend.to_str().encode())
        encoded = json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest.update(encoded.encode())
        return TokenizerSpec(
            id=identity,
            sha256=digest.hexdigest(),
            vocab_size=self._backend.get_vocab_size(with_added_tokens=True),
            prefix_ids=prefix,
            suffix_ids=suffix,
        )

    def _probe(self, tokenizer: Any, identity: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what the tokenizer adds before and after one text, found by trying."""
        found: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
        for probe in PROBES:
            whole = list(tokenizer(probe)["input_ids"])
            inner = self._backend.encode(probe, add_special_tokens=False).ids
            n = len(inner)
            places = [i for i in range(len(whole) - n + 1) if whole[i : i + n] == inner]
            around = {(tuple(whole[:i]), tuple(whole[i + n :])) for i in places}
            found = around if found is None else found & around
        if not found:
            raise ModelError(
                f"{identity}: this tokenizer does not add the same tokens around every text, so "
                "windows cannot be made. Name another with --tokenizer.",
                tokenizer=identity,
            )
        # Where an empty text leaves it open, all of it comes before.
        return max(found, key=lambda pair: len(pair[0]))

    def tokenize(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Yield the kept tokens of each text; the backend works on all CPUs."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        for i, text in enumerate(texts):
            encoding, encodings[i] = encodings[i], None
            yield tokens_of(encoding, len(text))


def tokens_of(encoding: Any, n_chars: int) -> Tokens:
    """Return the tokens of a text of ``n_chars`` characters as the backend has encoded it."""
    ids = np.array(encoding.ids, dtype=np.int32)
    ends = np.fromiter((stop for _, stop in encoding.offsets), dtype=np.int32, count=len(ids))
    # Trimmed blanks and characters made of several tokens: what a token reaches is what all
    # before it have reached, too.
    reached = np.minimum(np.maximum.accumulate(ends), n_chars)
    char_start = np.zeros_like(ids)
    char_start[1:] = reached[:-1]
    return Tokens(ids, char_start, n_chars if len(ids) else 0)


class Windows(NamedTuple):
    """How documents become windows, and which of a window's tokens are kept.

    Attributes
    ----------
    content : int
        Tokens of the text in a full window.
    prefix, suffix : tuple of int
        The tokens that the tokenizer adds around each window.
    long : {"window", "truncate"}
    keep_special : bool
        Whether prefix and suffix are among the kept tokens.
    """

    content: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    long: LongDocuments
    keep_special: bool

    @property
    def kept(self) -> int:
        """Kept tokens of a full window."""
        return self.content + (len(self.prefix) + len(self.suffix)) * self.keep_special

    def apply(self, tokens: Tokens) -> Tokens:
        """Return the document's kept tokens: cut, and with special tokens, as the plan says."""
        if self.long == "truncate" and len(tokens) > self.content:
            stop = int(tokens.char_start[self.content])
            tokens = Tokens(
                tokens.token_id[: self.content],
                tokens.char_start[: self.content],
                stop,
                {name: codes[: self.content] for name, codes in tokens.columns.items()},
            )
        return self._with_special(tokens) if self.keep_special and len(tokens) else tokens

    def _with_special(self, tokens: Tokens) -> Tokens:
        n_prefix, n_suffix = len(self.prefix), len(self.suffix)
        edges = np.append(tokens.char_start, np.int32(tokens.char_stop))
        ids: list[NDArray[np.int32]] = []
        starts: list[NDArray[np.int32]] = []
        borders = [*range(0, len(tokens), self.content), len(tokens)]
        for start, stop in pairwise(borders):
            ids += [
                np.array(self.prefix, np.int32),
                tokens.token_id[start:stop],
                np.array(self.suffix, np.int32),
            ]
            starts += [
                np.full(n_prefix, edges[start]),
                edges[start:stop],
                np.full(n_suffix, edges[stop]),
            ]
        before, after = np.full(n_prefix, -1, np.int32), np.full(n_suffix, -1, np.int32)
        columns = {
            name: np.concatenate(
                [part for a, b in pairwise(borders) for part in (before, codes[a:b], after)]
            )
            for name, codes in tokens.columns.items()
        }
        return Tokens(np.concatenate(ids), np.concatenate(starts), tokens.char_stop, columns)

    def special(self, start: NDArray[np.int64], begin: int, end: int) -> NDArray[np.bool_] | None:
        """Return which of the tokens [begin, end) are prefix or suffix; None where none is kept.

        Parameters
        ----------
        start : ndarray of int64, shape [documents + 1]
            The first kept token of each document.
        """
        if not self.keep_special:
            return None
        t = np.arange(begin, end, dtype=np.int64)
        document = np.searchsorted(start, t, side="right") - 1
        place = t - start[document]
        in_window = place % self.kept
        length = np.minimum(self.kept, start[document + 1] - start[document] - place + in_window)
        after = in_window >= length - len(self.suffix)
        special: NDArray[np.bool_] = (in_window < len(self.prefix)) | after
        return special


def make_windows(
    spec: TokenizerSpec, max_length: int, long: LongDocuments, keep_special: bool
) -> Windows:
    """Return the windows of at most ``max_length`` tokens, special ones included.

    Raises
    ------
    ConfigError
        There is no room in a window beside its special tokens.
    """
    try:
        content = layout.content_length(max_length, len(spec.prefix_ids) + len(spec.suffix_ids))
    except ValueError as error:
        raise ConfigError(str(error), field="max_length") from error
    return Windows(content, spec.prefix_ids, spec.suffix_ids, long, keep_special)


ItemT = TypeVar("ItemT", bound=tuple[Any, ...])


def batches(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    """Group items, whose first field is a text, into batches of about a mebibyte."""
    batch: list[ItemT] = []
    n_bytes = 0
    for item in items:
        batch.append(item)
        n_bytes += len(item[0])
        if n_bytes >= BATCH_BYTES or len(batch) == BATCH_TEXTS:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch
