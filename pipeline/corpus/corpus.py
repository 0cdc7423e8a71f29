"""A corpus: where documents come from, one record after the other.

=====================  ==========================================================================
``hf:NAME[:SPLIT]``    a data set on the hub, or a local folder in its form, streamed; or
                       ``hf:NAME:CONFIG:SPLIT`` where it has several configurations
``builtin:NAME``       what actlas brings along
anything else          a file, a folder (searched through) or a glob of ``.jsonl``, ``.jsonl.gz``,
                       ``.jsonl.zst``, ``.parquet``, ``.csv`` and ``.txt`` (one document a file;
                       in a folder that has files of records they are notes, and left out)
=====================  ==========================================================================

A folder of images is :mod:`actlas.pipeline.corpus.image_folder`, and needs a model that reads them.

Files are read in the order of their names. A record without text, or whose text is no valid
Unicode, is skipped and counted; an empty text is a document and keeps its place.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from actlas.pipeline.corpus.readers import READERS, Position, files_below, read_records, suffix_of
from actlas.pipeline.corpus.records import RawSource, ReadCounts, Record, Selection
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from actlas.pipeline.corpus.chat import Chat


class Corpus(Protocol):
    """Documents to read from the front, as often as needed."""

    uri: str
    finite: bool
    """Whether reading all of it is a reasonable thing to do."""
    drawn: bool
    """Whether documents come in a seeded order of the whole corpus: its head is then a sample."""
    labelled: bool
    text_field: str | None
    """Which field text is taken from; None where records are texts alone."""

    @property
    def counts(self) -> ReadCounts:
        """Of the latest reading, as far as it has come."""

    def records(self) -> Iterator[Record]:
        """Yield every document in its order, from the first on.

        Raises
        ------
        CorpusError
            No record has text, or something cannot be read.
        """

    def describe(self) -> str:
        """Describe what is read."""

    def fraction(self) -> float | None:
        """Return how much of the corpus the latest reading has come through, where known."""


def open_corpus(options: PlanOptions, chat: Chat | None = None) -> Corpus:
    """Find a corpus. Nothing is read but the names of files.

    Parameters
    ----------
    options : PlanOptions
        ``corpus``, ``text_field``, ``label_field``, ``lowercase``; and ``order`` and ``seed``,
        from which the order of a streamed data set's files comes.
    chat : Chat, optional
        Lays messages out, where ``messages_field`` names them.

    Raises
    ------
    CorpusError
        There is nothing there, or nothing of a kind that can be read.
    ConfigError
        A field was named for a corpus without fields.
    """
    kind, _, name = options.corpus.partition(":")
    if kind == "hf":
        from actlas.pipeline.corpus.hub import HubCorpus

        return HubCorpus(options, name, chat)
    if kind == "builtin":
        return BuiltinCorpus(options, name)
    return FileCorpus(options, find_files(options.corpus), chat)


class Found(NamedTuple):
    """Corpus files in the order in which they are read, and their common root.

    ``n_notes`` files of text lie beside files of records and are left out.
    """

    files: list[Path]
    root: Path
    n_notes: int = 0


def find_files(pattern: str) -> Found:
    """Return the corpus files that a path, folder or glob means, sorted.

    Raises
    ------
    CorpusError
        There are none.
    """
    known = ", ".join(READERS)
    path = Path(pattern).expanduser()
    if path.is_dir():
        every = sorted(file for file in files_below(path) if suffix_of(file))
        files = [file for file in every if suffix_of(file) != ".txt"] or every
        if not files:
            raise CorpusError(
                f"{pattern}: this folder has no corpus files in it. Expected {known}.", path=pattern
            )
        return Found(files, path, len(every) - len(files))
    if path.exists():
        if suffix_of(path) is None:
            raise CorpusError(
                f"{pattern}: got a file with the suffix {path.suffix!r}, expected one of {known}.",
                path=pattern,
            )
        return Found([path], path.parent)
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [file for file in matches if file.is_file() and suffix_of(file)]
    if not files:
        what = "there is no such path"
        if matches:
            what = f"none of its {len(matches)} matches is a corpus file"
        raise CorpusError(
            f"{pattern}: {what}. Expected a file, folder or glob of {known}; hf:NAME[:SPLIT]; or "
            "builtin:NAME.",
            path=pattern,
        )
    return Found(files, _fixed_part(path))


def _fixed_part(pattern: Path) -> Path:
    """Return the folders of a glob before its first wildcard."""
    root = pattern
    while glob.has_magic(str(root)):
        root = root.parent
    return root


class FileCorpus:
    """Documents in local files.

    Parameters
    ----------
    options : PlanOptions
    found : Found
        The files, and the folder from which sources are named.
    """

    finite = True
    drawn = False

    def __init__(self, options: PlanOptions, found: Found, chat: Chat | None = None) -> None:
        self.uri = options.corpus
        self.labelled = options.label_field is not None
        self.counts = ReadCounts()
        self._selection = Selection(options, chat)
        self._files, self._root, self._n_notes = found
        plain = all(suffix_of(file) == ".txt" for file in self._files)
        self.text_field = None if plain else self._selection.text.name
        self._sizes = [file.stat().st_size for file in self._files]
        self._place, self._position = 0, Position()

    def records(self) -> Iterator[Record]:
        """Yield the documents of all files."""
        self.counts = ReadCounts()
        yield from self._selection.select(self._sources(), self.counts)

    def _sources(self) -> Iterator[RawSource]:
        for place, file in enumerate(self._files):
            self._place, self._position = place, Position()
            name = file.relative_to(self._root).as_posix()
            records = read_records(file, self._selection.columns, self._position)
            yield RawSource(name, records, file.parent)
            self._position.fraction = 1.0

    def describe(self) -> str:
        """Describe what is read, and how many files there are of each kind."""
        kinds = Counter(str(suffix_of(file)) for file in self._files)
        files = " and ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
        left_out = f"; {self._n_notes:,} .txt beside them left out" if self._n_notes else ""
        return f"{self.uri} ({files} to read{left_out})"

    def fraction(self) -> float | None:
        """Return the share of all files' bytes that was read."""
        done: float = sum(self._sizes[: self._place])
        done += self._sizes[self._place] * self._position.fraction
        return done / (sum(self._sizes) or 1)


class BuiltinCorpus:
    """Documents that actlas brings along."""

    finite = True
    drawn = False
    text_field: str | None = None

    def __init__(self, options: PlanOptions, name: str) -> None:
        from actlas.pipeline.builtin.corpora import BUILTIN_CORPORA, LABELLED

        if name not in BUILTIN_CORPORA:
            known = ", ".join(f"builtin:{known}" for known in BUILTIN_CORPORA)
            raise CorpusError(f"There is no {options.corpus}; there are {known}.", name=name)
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
        """Yield the documents, made anew."""
        self.counts = ReadCounts()
        for index, (text, label, _) in enumerate(self._make()):
            self.counts.n_read += 1
            yield Record(text.lower() if self._lowercase else text, label, self.uri, index)

    def describe(self) -> str:
        """Describe what is read."""
        return self.uri

    def fraction(self) -> float | None:
        """Return None: it is not known before it is made."""
        return None
