"""The documents of a future plan: read, tokenized, spooled to disk and ordered.

Memory holds a few numbers per document; texts and tokens are in the spool.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.corpus.corpus import Corpus
from actlas.pipeline.corpus.patches import PatchTokenizer
from actlas.pipeline.corpus.records import Record
from actlas.pipeline.corpus.spans import token_codes
from actlas.pipeline.corpus.tokenization import DocumentTokenizer, Tokens, Windows, batches
from actlas.pipeline.plan.spool import Spool
from actlas.store.display.pace import Pace
from actlas.store.display.text import counted
from actlas.store.errors import CorpusError
from actlas.store.format import layout
from actlas.store.format.schema import Order

if TYPE_CHECKING:
    from jaxtyping import Int64

Sample = Literal["all", "uniform", "head"]

Log = Callable[[str], None]

SpanCodes = tuple[NDArray[np.int32], ...]
"""The spans of a text, for each span column of the corpus: start, stop, code; [spans, 3]."""

MAX_NAMES = 1 << 16
"""Largest number of distinct labels; a field with more is no label."""


class Names:
    """Codes for names, numbered in the order of first occurrence."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def code(self, name: str | None) -> int:
        """Return a name's code; -1 for no name."""
        return -1 if name is None else self.codes.setdefault(name, len(self.codes))


class Item(NamedTuple):
    """A document to tokenize: its text, its index among all that were read, and its spans."""

    text: str
    place: int
    spans: SpanCodes


class Texts:
    """All texts and images that were read, in the order of reading.

    Parameters
    ----------
    spool : Spool
        The folder for the data.
    columns : tuple of str
        The span columns of the corpus.
    """

    def __init__(self, spool: Spool, columns: tuple[str, ...] = ()) -> None:
        self.file = spool.file("texts", np.uint8)
        self.edges = array("q", [0])
        self.images = spool.file("images", np.uint8)
        self.image_edges: array[int] | None = None
        """The edges of the image files; None while no document has an image."""
        self.source, self.record, self.label = array("i"), array("q"), array("i")
        self.sources, self.labels = Names(), Names()
        self.columns = {name: Names() for name in columns}
        self._spans = [spool.file(f"spans-{name}", np.int32) for name in columns]
        self._span_edges = [array("q", [0]) for _ in columns]

    def __len__(self) -> int:
        return len(self.source)

    def append(self, record: Record) -> Item:
        """Add a document's text, spans, image and origin, and return it for tokenization."""
        self.file.append(record.text.encode())
        self.edges.append(self.file.n_items)
        self._append_image(record.image)
        self.source.append(self.sources.code(record.source))
        self.record.append(record.record)
        self.label.append(self.labels.code(record.label))
        if len(self.labels.codes) > MAX_NAMES:
            raise CorpusError(
                f"There are more than {MAX_NAMES:,} different labels ({record.label!r} is one): "
                "that is no label. Name another field with --label-field.",
                field="label_field",
            )
        spans = self._coded(record)
        for codes, file, edges in zip(spans, self._spans, self._span_edges, strict=True):
            file.append(codes)
            edges.append(file.n_items)
        return Item(record.text, len(self) - 1, spans)

    def _append_image(self, image: bytes | None) -> None:
        if image and self.image_edges is None:
            self.image_edges = array("q", [0]) * (len(self) + 1)
        if self.image_edges is not None:
            self.images.append(image or b"")
            self.image_edges.append(self.images.n_items)

    def _coded(self, record: Record) -> SpanCodes:
        coded = []
        for name, names in self.columns.items():
            spans = [(span.start, span.stop, names.code(span.name)) for span in record.spans[name]]
            coded.append(np.array(spans, np.int32).reshape(-1, 3))
            if len(names.codes) > MAX_NAMES:
                raise CorpusError(
                    f"There are more than {MAX_NAMES:,} different labels in {name!r}: those are "
                    "no labels. Leave it out of --span-fields.",
                    field="span_fields",
                )
        return tuple(coded)

    def flush(self) -> None:
        """Flush all buffers to the operating system, so that the data can be read."""
        for file in (self.file, self.images, *self._spans):
            file.flush()

    def item(self, place: int) -> Item:
        """Return a document by its index."""
        pairs = zip(self._spans, self._span_edges, strict=True)
        spans = (file.read(edges[place], edges[place + 1]).reshape(-1, 3) for file, edges in pairs)
        return Item(self.text(place), place, tuple(spans))

    def text(self, place: int) -> str:
        """Return a text by its index."""
        return self.file.read(self.edges[place], self.edges[place + 1]).tobytes().decode()


class TokenizedDocuments:
    """The kept tokens of the chosen documents, in the order of choice.

    Parameters
    ----------
    spool : Spool
        The folder for the data.
    windows : Windows
        The choice of kept tokens.
    columns : iterable of str
        All token columns: the tokenizer's own and the corpus's.
    """

    def __init__(self, spool: Spool, windows: Windows, columns: Iterable[str] = ()) -> None:
        self.windows = windows
        self.columns = {name: spool.file(f"column-{name}", np.int32) for name in columns}
        self.n_of_code: dict[str, Counter[int]] = {name: Counter() for name in self.columns}
        self.token_id = spool.file("token_id", np.int32)
        self.char_start = spool.file("char_start", np.int32)
        self.edges = array("q", [0])
        self.place, self.char_stop = array("q"), array("i")
        self.largest_id = -1

    @property
    def n_tokens(self) -> int:
        """Number of kept tokens so far."""
        return self.edges[-1]

    def take(
        self,
        items: Iterable[Item],
        tokenizer: DocumentTokenizer | PatchTokenizer,
        limit: int | None,
        log: Log,
    ) -> bool:
        """Tokenize documents up to a limit, and return whether any was left over.

        Parameters
        ----------
        items : iterable of Item
            The documents.
        tokenizer : DocumentTokenizer or PatchTokenizer
            The plan's tokenizer.
        limit : int or None
            Kept tokens after which no further document is taken.
        log : callable
            Receives lines of progress.
        """
        pace = Pace()
        for batch in batches(items):
            for i, tokens in enumerate(tokenizer.tokenize([item.text for item in batch])):
                if limit is not None and self.n_tokens >= limit:
                    return True
                tokens = self._with_columns(tokens, batch[i].spans)
                self._append(self.windows.apply(tokens), batch[i].place)
            if pace.due():
                goal = f" of {limit:,}" if limit is not None else ""
                log(f"{self.n_tokens:,}{goal} tokens in {counted(len(self.place), 'document')}")
        return False

    def _with_columns(self, tokens: Tokens, spans: SpanCodes) -> Tokens:
        """Return a document's tokens with the codes of all columns."""
        given = [name for name in self.columns if name not in tokens.columns]
        coded = (token_codes(tokens, span) for span in spans)
        columns = {**tokens.columns, **dict(zip(given, coded, strict=True))}
        return Tokens(tokens.token_id, tokens.char_start, tokens.char_stop, columns)

    def flush(self) -> None:
        """Flush all buffers to the operating system, so that the data can be read."""
        for file in (self.token_id, self.char_start, *self.columns.values()):
            file.flush()

    def _append(self, tokens: Tokens, place: int) -> None:
        self.token_id.append(tokens.token_id)
        self.char_start.append(tokens.char_start)
        for name, file in self.columns.items():
            file.append(tokens.columns[name])
            codes, counts = np.unique(tokens.columns[name], return_counts=True)
            self.n_of_code[name].update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        self.edges.append(self.token_id.n_items)
        self.place.append(place)
        self.char_stop.append(tokens.char_stop)
        if len(tokens):
            self.largest_id = max(self.largest_id, int(tokens.token_id.max()))


class Draft(NamedTuple):
    """The documents of a future plan.

    Attributes
    ----------
    texts : Texts
        All texts that were read.
    tokenized : TokenizedDocuments
        The chosen documents.
    order : ndarray of int64, shape [documents]
        ``order[i]`` is the index of the chosen document that comes i-th in the plan.
    sample : {"all", "uniform", "head"}
        The part of the corpus that was chosen.
    """

    texts: Texts
    tokenized: TokenizedDocuments
    order: NDArray[np.int64]
    sample: Sample

    @property
    def lengths(self) -> Int64[NDArray[np.int64], " documents"]:
        """Kept tokens of each document, in the plan's order; shape [documents]."""
        edges = np.array(self.tokenized.edges, np.int64)
        return (edges[1:] - edges[:-1])[self.order]


def collect(
    corpus: Corpus,
    tokenizer: DocumentTokenizer | PatchTokenizer,
    windows: Windows,
    spool: Spool,
    *,
    columns: tuple[str, ...] = (),
    order: Order,
    sample: Literal["uniform", "head"],
    max_tokens: int | None,
    seed: int,
    log: Log = lambda _: None,
) -> Draft:
    """Read, tokenize and order the documents of a plan.

    With ``max_tokens``, a uniform sample takes documents in a seeded order of the whole corpus, and
    a head takes them from its beginning; both end after the document that reaches ``max_tokens``.
    The chosen documents are then shuffled, or restored to the corpus's order.

    Parameters
    ----------
    corpus : Corpus
        The corpus.
    tokenizer : DocumentTokenizer or PatchTokenizer
        The plan's tokenizer.
    windows : Windows
        The choice of kept tokens.
    spool : Spool
        The folder for texts and tokens.
    columns : tuple of str
        The span columns of the corpus.
    order : {"shuffled", "corpus"}
        The order of the documents.
    sample : {"uniform", "head"}
        The part of the corpus to choose where ``max_tokens`` is less than all.
    max_tokens : int or None
        Kept tokens to choose; None for the whole corpus.
    seed : int
        Seed of the order and of the uniform sample.
    log : callable
        Receives lines of progress.

    Raises
    ------
    CorpusError
        See :meth:`Corpus.records`; or no document has a token.
    OSError
        The spool's disk is full or fails.
    """
    texts = Texts(spool, columns)
    tokenized = TokenizedDocuments(spool, windows, (*tokenizer.columns, *columns))
    uniform = sample == "uniform" and max_tokens is not None and not corpus.drawn
    items: Iterator[Item]
    if uniform:
        for _ in _spooled(corpus, texts, log):
            pass
        texts.flush()
        visited = layout.permutation(seed, layout.STREAM_DOCUMENTS, 0, len(texts))
        items = (texts.item(place) for place in map(int, visited))
    else:
        items = _spooled(corpus, texts)
    left_over = tokenized.take(items, tokenizer, max_tokens, log)
    texts.flush()
    tokenized.flush()
    if tokenized.n_tokens == 0:
        raise CorpusError(
            f"{corpus.uri}: {counted(len(texts), 'document')}, and not one token in them: every "
            "text is empty. Expected text.",
            corpus=corpus.uri,
        )
    n = len(tokenized.place)
    if order == "corpus":
        in_order = np.argsort(np.array(tokenized.place, np.int64), kind="stable")
    elif uniform:
        in_order = np.arange(n, dtype=np.int64)
    else:
        in_order = layout.permutation(seed, layout.STREAM_DOCUMENTS, 0, n)
    return Draft(texts, tokenized, in_order, sample if left_over else "all")


def _spooled(corpus: Corpus, texts: Texts, log: Log | None = None) -> Iterator[Item]:
    """Yield each document of a corpus, once its text is in the spool."""
    pace = Pace()
    for record in corpus.records():
        yield texts.append(record)
        if log is not None and pace.due():
            log(f"{counted(len(texts), 'document')} read, to choose from")
