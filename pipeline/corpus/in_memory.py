"""Corpora that are given in Python: texts, mappings of fields, data sets, tables of pandas.

Such a corpus has no name by which it could be read again. Its identity is a digest of the records
that planning reads, ``memory:<digest>``: the same documents, given again, resume the same store.
Nothing else needs them again, since planning writes all texts and tokens into the store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.corpus.formats.base import Raw, Unreadable, select
from actlas.pipeline.corpus.records import RawSource, ReadCounts, Record, Selection
from actlas.pipeline.options import PlanOptions
from actlas.store.display.text import listed
from actlas.store.errors import CorpusError

if TYPE_CHECKING:
    from actlas.pipeline.corpus.chat import Chat

PREFIX = "memory:"
"""Begins the name of a corpus that was given in Python."""

DIGITS = 32
"""Hexadecimal digits of the digest in the name: 128 bits."""

_MISSING = ("NAType", "NaTType")
"""The types of pandas that stand for a missing value, beside NaN."""

_EXPECTED = (
    "Expected strings, or mappings with a field of text ({'text': ..., 'label': ...}): a list or "
    "another iterable of them, a datasets.Dataset, or a pandas.DataFrame; or a file, hf:NAME or "
    "builtin:NAME as a string."
)


class GivenDocuments:
    """The documents that a caller gave, as records that can be read.

    Parameters
    ----------
    source : object
        An iterable of strings or mappings, a ``Dataset`` or ``IterableDataset`` of ``datasets``, or
        a data frame of pandas or polars. An iterator can be read once.

    Raises
    ------
    CorpusError
        It is something else, or its strings are names of files.
    """

    def __init__(self, source: object) -> None:
        self._source: Any = source
        self.kind = type(source).__name__
        _refuse(source)
        self.n_records = len(source) if hasattr(source, "__len__") else None

    def rows(self, selection: Selection) -> Iterator[Raw]:
        """Yield the records, with the fields that are read.

        Parameters
        ----------
        selection : Selection
            Selects the columns of a table, and of a data set.
        """
        source = self._source
        if hasattr(source, "itertuples"):
            names = [str(name) for name in source.columns]
            select(selection.columns, names, names, Path("corpus"), f"the {self.kind}")
            rows: Iterable[Any] = (
                dict(zip(names, row, strict=True))
                for row in source.itertuples(index=False, name=None)
            )
        elif hasattr(source, "iter_rows"):
            rows = source.iter_rows(named=True)
        elif _is_dataset(source):
            rows = _plain_dataset(source, selection)
        else:
            rows = source
        for row in rows:
            yield _raw(row, selection)


class InMemoryCorpus:
    """A corpus that was given in Python.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan, with the documents.
    documents : GivenDocuments
        The documents.
    chat : Chat, optional
        The chat template, where ``messages_field`` is given.
    """

    drawn = False

    def __init__(
        self, options: PlanOptions, documents: GivenDocuments, chat: Chat | None = None
    ) -> None:
        self.labelled = options.label_field is not None
        self.counts = ReadCounts()
        self.finite = documents.n_records is not None
        self._documents = documents
        self._selection = Selection(options, chat)
        self.text_field: str | None = self._selection.text.name
        self._digest = hashlib.sha256()

    @property
    def uri(self) -> str:
        """``memory:`` and the digest of the records that were read so far."""
        return PREFIX + self._digest.hexdigest()[:DIGITS]

    def records(self) -> Iterator[Record]:
        """Yield the documents in order."""
        self.counts = ReadCounts()
        self._digest = hashlib.sha256()
        yield from self._selection.select([RawSource("memory", self._rows())], self.counts)

    def _rows(self) -> Iterator[tuple[int, Raw]]:
        for index, raw in enumerate(self._documents.rows(self._selection)):
            _update(self._digest, raw)
            yield index, raw

    def describe(self) -> str:
        """Return the corpus as the log names it."""
        n = self._documents.n_records
        many = "documents" if n is None else f"{n:,} documents"
        return f"{many} given in Python ({self._documents.kind})"

    def fraction(self) -> float | None:
        """Return the share of the records that was read; None if their number is not known."""
        n = self._documents.n_records
        return None if n is None else self.counts.n_read / max(n, 1)


def name_of(documents: GivenDocuments, options: PlanOptions, n_read: int, *, whole: bool) -> str:
    """Return the name that documents would have in a plan that read as many records.

    Parameters
    ----------
    documents : GivenDocuments
        The documents.
    options : PlanOptions
        The options of the plan, which say which fields are read.
    n_read : int
        The records that the plan read.
    whole : bool
        Whether these were all: further documents then make another corpus.
    """
    digest = hashlib.sha256()
    rows = documents.rows(Selection(options))
    for raw in islice(rows, n_read):
        _update(digest, raw)
    if whole and (more := next(rows, None)) is not None:
        _update(digest, more)
    return PREFIX + digest.hexdigest()[:DIGITS]


def refuse_name(uri: str) -> None:
    """Raise ``CorpusError``: documents that were given in Python cannot be read by their name."""
    raise CorpusError(
        f"{uri}: these documents were given in Python, and can be read again only by giving them "
        "again: corpus=documents, in Python. A store that is planned needs them no more (leave the "
        "corpus out), except where its documents are damaged: actlas.repair(store, "
        "corpus=documents).",
        corpus=uri,
    )


def _refuse(source: Any) -> None:
    """Raise ``CorpusError`` for what is no documents, or may be read in another way than meant."""
    kind = type(source).__name__
    if isinstance(source, Mapping) and _is_dataset(next(iter(source.values()), None)):
        raise CorpusError(
            f"corpus: got a {kind} with the splits {listed(map(str, source))}. Expected one of "
            "them, such as corpus=dataset['train'].",
            field="corpus",
        )
    if isinstance(source, set | frozenset):
        raise CorpusError(
            f"corpus: got a {kind}, whose order is another one in each process. Expected documents "
            "in an order, such as corpus=sorted(documents).",
            field="corpus",
        )
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        raise CorpusError(f"corpus: got a {kind}. {_EXPECTED}", field="corpus")
    if not isinstance(source, list | tuple):
        return
    if not source:
        raise CorpusError(f"corpus: got an empty {kind}. {_EXPECTED}", field="corpus")
    bad = next((each for each in source[:100] if not isinstance(each, str | Mapping)), None)
    if bad is not None:
        raise CorpusError(
            f"corpus: got a {kind} with a {type(bad).__name__} in it ({bad!r:.80}). {_EXPECTED}",
            field="corpus",
        )
    if all(isinstance(each, str | os.PathLike) and _is_file(each) for each in source):
        raise CorpusError(
            f"corpus: got a {kind} whose strings are names of files ({source[0]!r}, ...). A list "
            "is a list of documents; expected a folder or a glob for files, such as "
            f"{str(Path(source[0]).parent / '*.jsonl')!r}.",
            field="corpus",
        )


def _is_file(name: Any) -> bool:
    try:
        return len(name) < 4096 and Path(name).is_file()
    except (OSError, ValueError):
        return False


def _is_dataset(source: object) -> bool:
    module = type(source).__module__ or ""
    return module.partition(".")[0] == "datasets" and hasattr(source, "column_names")


def _plain_dataset(dataset: Any, selection: Selection) -> Iterable[Mapping[str, Any]]:
    """Return a data set with the columns that are read, as Python's values, images undecoded."""
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)
    names = dataset.column_names
    if names:
        wanted = selection.columns(list(names))
        dataset = dataset.select_columns(wanted or names[:1])
    for name, feature in (dataset.features or {}).items():
        if hasattr(feature, "decode") and type(feature).__name__ in ("Image", "Audio"):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    found: Iterable[Mapping[str, Any]] = dataset
    return found


def _raw(row: Any, selection: Selection) -> Raw:
    """Return a record with the fields that are read, as a file would give it."""
    if isinstance(row, str):
        return str(row)
    if not isinstance(row, Mapping):
        return Unreadable(f"a {type(row).__name__}, and no string or mapping of fields")
    names = [str(name) for name in row]
    values = dict(zip(names, row.values(), strict=True))
    return {name: _plain(values[name]) for name in selection.columns(names)}


def _plain(value: Any) -> Any:
    """Return a value without numpy's types; None for what pandas has for a missing one."""
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        value = value.tolist()
    nan = isinstance(value, float) and value != value
    return None if nan or type(value).__name__ in _MISSING else value


def _update(digest: Any, raw: Raw) -> None:
    """Add a record to a digest: the length of its JSON, then the JSON with sorted names."""
    if isinstance(raw, Unreadable):
        raw = {"unreadable": raw.reason}
    data = json.dumps(raw, sort_keys=True, default=_hashable).encode()
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _hashable(value: object) -> Any:
    """Return the JSON of a value of another type; it differs where what is read of it differs."""
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    text = str(value)
    return f"{type(value).__name__} {'' if ' at 0x' in text else text}"  # no address in memory
