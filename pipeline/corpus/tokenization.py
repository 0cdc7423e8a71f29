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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConfigError, ModelError
from actlas.store.format import layout
from actlas.store.format.schema import LongDocuments, TokenizerSpec

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

BATCH_CHARS = 1 << 20

BATCH_TEXTS = 4096

PROBES = ("a", "The cat sat on the mat.", "1 2 3", "")


class Tokens(NamedTuple):
    """The kept tokens of a document.

    Attributes
    ----------
    token_id : ndarray of int32, shape [tokens]
        The token ids.
    char_start : ndarray of int32, shape [tokens]
        The character at which each token's slice of the text begins. The slices partition the text,
        or the beginning of a truncated document's text. Of tokens that together encode one
        character the first has the character, and the slices of the others are empty. So is that
        of a token in ``leads``.
    char_stop : int
        The character at which the last token's slice ends.
    columns : mapping of str to ndarray of int32, shape [tokens]
        Codes of the tokens in further columns; -1 for none.
    leads : ndarray of bool, shape [tokens], or None
        The tokens that stand for no character: blanks that a tokenizer puts before a text, or
        before a part of it, and that did not merge with what follows. None if there are none.
    """

    token_id: NDArray[np.int32]
    char_start: NDArray[np.int32]
    char_stop: int
    columns: Mapping[str, NDArray[np.int32]] = MappingProxyType({})
    leads: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.token_id)


class DocumentTokenizer:
    """The tokenizer of a plan.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        A fast tokenizer: only these give the characters of each token.
    identity : str
        The tokenizer's id in the plan.
    prepend_bos : bool
        Whether every window begins with the BOS token, also where the tokenizer adds none.

    Attributes
    ----------
    columns : mapping of str to tuple of str
        The token columns that ``tokenize`` adds, and the names of their codes.
    spec : TokenizerSpec
        The plan's entry for the tokenizer.

    Raises
    ------
    ModelError
        The tokenizer is a slow one, or does not add the same tokens around every text.
    ConfigError
        With ``prepend_bos``: the tokenizer has no BOS token.
    """

    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, tokenizer: Any, identity: str, *, prepend_bos: bool = False) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not getattr(tokenizer, "is_fast", False) or backend is None:
            raise ModelError(
                f"{identity}: got a {type(tokenizer).__name__}, which does not give the characters "
                "of each token. Expected a fast tokenizer: convert it to a tokenizer.json, or name "
                "another with --tokenizer.",
                tokenizer=identity,
            )
        self._backend = type(backend).from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._is_blank: dict[int, bool] = {}
        bos = bos_id(tokenizer, identity) if prepend_bos else None
        self.spec = self._describe(tokenizer, identity, bos)

    def _describe(self, tokenizer: Any, identity: str, bos: int | None) -> TokenizerSpec:
        prefix, suffix = self._probe(tokenizer, identity)
        if bos is not None and prefix[:1] != (bos,):
            prefix = (bos, *prefix)
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
        """Return the tokens that the tokenizer adds before and after a text, found by trying."""
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
        # If the split is ambiguous, all added tokens come before the text.
        return max(found, key=lambda pair: len(pair[0]))

    def tokenize(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Yield the kept tokens of each text; the backend uses all CPUs."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        for i, text in enumerate(texts):
            encoding, encodings[i] = encodings[i], None
            yield self._tokens_of(encoding, len(text))

    def _tokens_of(self, encoding: Any, n_chars: int) -> Tokens:
        """Return the tokens of a text of ``n_chars`` characters from the backend's encoding.

        A blank that the tokenizer inserted has the offsets of the character that follows it, which
        belongs to the next token: in SentencePiece's ``▁``, ``Q`` the letter is the second's.
        """
        ids = np.array(encoding.ids, dtype=np.int32)
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        starts, ends = offsets[:, 0], offsets[:, 1].copy()
        shared = np.flatnonzero(starts[1:] < ends[:-1])
        inserted = shared[[self._blank(i) for i in ids[shared].tolist()]]
        ends[inserted] = np.minimum(starts[inserted], starts[inserted + 1])
        leads = np.zeros(len(ids), np.bool_)
        leads[inserted] = True
        return _tokens(ids, ends, n_chars, leads if len(inserted) else None)

    def _blank(self, token_id: int) -> bool:
        """Return whether a token's own text is nothing but blanks."""
        if token_id not in self._is_blank:
            if self._backend.decoder is None:
                text = str(self._backend.id_to_token(token_id)).strip("▁Ġ")
            else:
                text = self._backend.decode([token_id], skip_special_tokens=False)
            self._is_blank[token_id] = not text.strip()
        return self._is_blank[token_id]


def bos_id(tokenizer: Any, identity: str) -> int:
    """Return a tokenizer's BOS token.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer.
    identity : str
        The tokenizer's name, for messages.

    Raises
    ------
    ConfigError
        The tokenizer has none.
    """
    token: int | None = tokenizer.bos_token_id
    if token is None:
        eos = tokenizer.eos_token
        instead = f" (TransformerLens takes the EOS token instead: {eos!r})" if eos else ""
        raise ConfigError(
            f"--prepend-bos: the tokenizer {identity} has no BOS token. Leave it out; or copy the "
            f"tokenizer's files, set bos_token in tokenizer_config.json{instead}, and give the "
            "copy with --tokenizer.",
            field="prepend_bos",
        )
    return token


def _tokens(
    ids: NDArray[np.int32], ends: NDArray[np.int32], n_chars: int, leads: NDArray[np.bool_] | None
) -> Tokens:
    """Return tokens from the characters at which they end."""
    # Trimmed blanks, and characters of several tokens: a token's slice ends where it or any
    # earlier token ends, whichever is last.
    reached = np.minimum(np.maximum.accumulate(ends), n_chars)
    char_start = np.zeros_like(ids)
    char_start[1:] = reached[:-1]
    return Tokens(ids, char_start, n_chars if len(ids) else 0, leads=leads)


class Windows(NamedTuple):
    """The division of documents into windows, and the choice of kept tokens.

    Attributes
    ----------
    content : int
        Tokens of the text in a full window.
    prefix, suffix : tuple of int
        Special tokens that the tokenizer adds around each window.
    long : {"window", "truncate"}
        Whether a longer document becomes several windows, or is truncated to one.
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
        """Return the kept tokens of a document: truncated, and with special tokens, as planned."""
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

    def special(
        self, start: Int64[NDArray[np.int64], " edges"], begin: int, end: int
    ) -> Bool[NDArray[np.bool_], " tokens"] | None:
        """Return which of the tokens [begin, end) are prefix or suffix; None if none is kept.

        Parameters
        ----------
        start : ndarray of int64, shape [documents + 1]
            The first kept token of each document.
        begin, end : int
            The tokens of the corpus.
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
    """Return windows of at most ``max_length`` tokens.

    Parameters
    ----------
    spec : TokenizerSpec
        The tokenizer, whose special tokens surround each window.
    max_length : int
        Tokens of a window, special tokens included.
    long : {"window", "truncate"}
        See :class:`Windows`.
    keep_special : bool
        See :class:`Windows`.

    Raises
    ------
    ConfigError
        The special tokens leave no room in a window.
    """
    try:
        content = layout.content_length(max_length, len(spec.prefix_ids) + len(spec.suffix_ids))
    except ValueError as error:
        raise ConfigError(str(error), field="max_length") from error
    return Windows(content, spec.prefix_ids, spec.suffix_ids, long, keep_special)


ItemT = TypeVar("ItemT", bound=tuple[Any, ...])


def batches(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    """Group items, whose first field is a text, into batches of about 2**20 characters."""
    batch: list[ItemT] = []
    n_chars = 0
    for item in items:
        batch.append(item)
        n_chars += len(item[0])
        if n_chars >= BATCH_CHARS or len(batch) == BATCH_TEXTS:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch
