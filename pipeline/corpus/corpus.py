"""Corpora: sources of documents, read record by record.

=====================  ==========================================================================
``hf:NAME[:SPLIT]``    a data set on the hub, or a local folder in its form, streamed; or
                       ``hf:NAME:CONFIG:SPLIT`` where it has several configurations
``builtin:NAME``       a corpus shipped with actlas
``memory:DIGEST``      documents that were given in Python; they can be read only by giving them
anything else          a file, a folder (searched recursively) or a glob of ``.jsonl``, ``.json``,
                       ``.csv``, ``.tsv`` (each also ``.gz``, ``.bz2``, ``.xz``, ``.zst``),
                       ``.parquet``, ``.arrow`` and ``.txt`` (one document per file, or per line
                       with ``lines``, or per row with ``delimiter``; left out of a folder that
                       also has files of records)
=====================  ==========================================================================

Folders of images, for models that read images, are in :mod:`actlas.pipeline.corpus.image_folder`.

Files are read in the order of their names. A record without text, or with text that is no valid
Unicode, is skipped and counted; an empty text is a document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actlas.pipeline.corpus.files import CorpusFiles, find_files
from actlas.pipeline.corpus.formats.base import Position, TextForm
from actlas.pipeline.corpus.in_memory import PREFIX, InMemoryCorpus, refuse_name
from actlas.pipeline.corpus.readers import read_records, suffix_of
from actlas.pipeline.corpus.records import RawSource, ReadCounts, Record, Selection
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from actlas.pipeline.corpus.chat import Chat


class Corpus(Protocol):
    """A sequence of documents that can be read from the start any number of times.

    Attributes
    ----------
    finite : bool
        Whether reading the whole corpus is reasonable; it is not for a stream.
    drawn : bool
        Whether documents come in a seeded order of the whole corpus, so that its head is a sample.
    labelled : bool
        Whether documents have labels.
    text_field : str or None
        The field that the text is read from; None where records are plain text.
    """

    finite: bool
    drawn: bool
    labelled: bool
    text_field: str | None

    @property
    def uri(self) -> str:
        """The corpus as a plan names it."""

    @property
    def counts(self) -> ReadCounts:
        """Records read and skipped so far in the latest reading."""

    def records(self) -> Iterator[Record]:
        """Yield all documents in order, from the first.

        Raises
        ------
        CorpusError
            No record has text, or a source cannot be read.
        """

    def describe(self) -> str:
        """Return the corpus as the log names it."""

    def fraction(self) -> float | None:
        """Return the share of the corpus that the latest reading has covered; None if unknown."""


def open_corpus(options: PlanOptions, chat: Chat | None = None) -> Corpus:
    """Find a corpus. Only the names of files are read.

    Parameters
    ----------
    options : PlanOptions
        The corpus and its fields; and ``order`` and ``seed``, which give the order of a streamed
        data set's files.
    chat : Chat, optional
        The chat template, where ``messages_field`` is given.

    Raises
    ------
    CorpusError
        The corpus does not exist, or has no files of a known kind.
    ConfigError
        A field is given for a corpus without fields.
    """
    kind, _, name = options.corpus.partition(":")
    if options.documents is not None or kind in ("hf", "builtin"):
        refuse_file_options(options)
    if options.documents is not None:
        return InMemoryCorpus(options, options.documents, chat)
    if options.corpus.startswith(PREFIX):
        refuse_name(options.corpus)
    if kind == "hf":
        from actlas.pipeline.corpus.hub import HubCorpus

        return HubCorpus(options, name, chat)
    if kind == "builtin":
        return BuiltinCorpus(options, name)
    return FileCorpus(options, find_files(options.corpus), chat)


FILE_OPTIONS = ("delimiter", "lines")
"""Options of text files, which other corpora do not have."""


def refuse_file_options(options: PlanOptions) -> None:
    """Raise ``ConfigError`` if an option of text files is given for a corpus of another kind."""
    for name in FILE_OPTIONS:
        if getattr(options, name):
            raise ConfigError(
                f"--{name} is for files of text, and {options.corpus} has none. Leave it out.",
                field=name,
            )


class FileCorpus:
    """A corpus of local files.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    found : CorpusFiles
        The files and their root.
    chat : Chat, optional
        The chat template, where ``messages_field`` is given.
    """

    finite = True
    drawn = False

    def __init__(self, options: PlanOptions, found: CorpusFiles, chat: Chat | None = None) -> None:
        self.uri = options.corpus
        self.labelled = options.label_field is not None
        self.counts = ReadCounts()
        self._selection = Selection(options, chat)
        self._files, self._root, self._left_out = found
        self._form = _text_form(options, self._selection, self._files)
        plain = all((suffix_of(file) or "").startswith(".txt") for file in self._files)
        plain = plain and self._form.delimiter is None
        self.text_field = None if plain else self._selection.text.name
        self._sizes = [file.stat().st_size for file in self._files]
        self._place, self._position = 0, Position()

    def records(self) -> Iterator[Record]:
        """Yield the documents of all files."""
        self._form.found.clear()
        self.counts = ReadCounts(left_out=self._left_out.lines(), delimiters=self._form.found)
        yield from self._selection.select(self._sources(), self.counts)

    def _sources(self) -> Iterator[RawSource]:
        for place, file in enumerate(self._files):
            self._place, self._position = place, Position()
            name = file.relative_to(self._root).as_posix()
            records = read_records(file, self._selection.columns, self._position, self._form)
            yield RawSource(name, records, file.parent)
            self._position.fraction = 1.0

    def describe(self) -> str:
        """Return the corpus with the number of its files of each kind."""
        kinds = Counter(str(suffix_of(file)) for file in self._files)
        files = " and ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
        n = self._left_out.n_files.total()
        left_out = f"; {n:,} left out" if n else ""
        return f"{self.uri} ({files} to read{left_out})"

    def fraction(self) -> float | None:
        """Return the share of the files' bytes that was read."""
        done: float = sum(self._sizes[: self._place])
        done += self._sizes[self._place] * self._position.fraction
        return done / (sum(self._sizes) or 1)


def _text_form(options: PlanOptions, selection: Selection, files: list[Path]) -> TextForm:
    """Return the form of a corpus's text files; raise if none of them could have it."""
    suffixes = [suffix_of(file) or "" for file in files]
    if options.lines and options.delimiter is not None:
        raise ConfigError(
            "--lines reads each line of a .txt file as a document, and --delimiter reads the file "
            "as a table. Leave one of them out.",
            field="lines",
        )
    if options.lines and not any(suffix.startswith(".txt") for suffix in suffixes):
        raise ConfigError(
            f"--lines is for .txt files, and {options.corpus} has none. Leave it out.",
            field="lines",
        )
    tables = (".csv", ".tsv", ".txt")
    if options.delimiter is not None and not any(s.startswith(tables) for s in suffixes):
        raise ConfigError(
            f"--delimiter is for tables of text ({', '.join(tables)}), and {options.corpus} has "
            "none. Leave it out.",
            field="delimiter",
        )
    delimiter = None if options.delimiter is None else options.delimiter.encode()
    return TextForm(delimiter, options.lines, selection.fits)


class BuiltinCorpus:
    """A corpus shipped with actlas.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    name : str
        The name after ``builtin:``.

    Raises
    ------
    CorpusError
        No builtin corpus has this name.
    ConfigError
        A field is given, and builtin documents have none.
    """

    finite = True
    drawn = False
    text_field: str | None = None

    def __init__(self, options: PlanOptions, name: str) -> None:
        from actlas.pipeline.builtin.corpora import BUILTIN_CORPORA, LABELLED

        if name not in BUILTIN_CORPORA:
            known = ", ".join(f"builtin:{known}" for known in BUILTIN_CORPORA)
            raise CorpusError(f"No builtin corpus {name!r}. Expected one of {known}.", name=name)
        fields = ("text_field", "label_field", "messages_field", "span_fields")
        given = [field for field in fields if getattr(options, field)]
        if given:
            flags = " and ".join("--" + field.replace("_", "-") for field in given)
            raise ConfigError(
                f"{flags}: for records with fields, and {options.corpus} has none. Leave it out.",
                field=given[0],
            )
        self.uri = options.corpus
        self.labelled = name in LABELLED
        self.counts = ReadCounts()
        self._make: Any = BUILTIN_CORPORA[name]
        self._lowercase = options.lowercase

    def records(self) -> Iterator[Record]:
        """Generate the documents and yield them."""
        self.counts = ReadCounts()
        for index, (text, label, _) in enumerate(self._make()):
            self.counts.n_read += 1
            yield Record(text.lower() if self._lowercase else text, label, self.uri, index)

    def describe(self) -> str:
        """Return the corpus as the log names it."""
        return self.uri

    def fraction(self) -> float | None:
        """Return None: the size is not known before the documents are generated."""
        return None
