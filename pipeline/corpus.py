"""A corpus: where documents come from, one record after the other.

=====================  ==========================================================================
``hf:NAME[:SPLIT]``    a data set on the hub or a folder in its form, streamed by ``datasets``;
                       ``hf:NAME:CONFIG:SPLIT`` where it has several configurations
``builtin:NAME``       what actlas brings along
anything else          a file, a folder (searched through) or a glob of ``.jsonl``, ``.jsonl.gz``,
                       ``.jsonl.zst``, ``.parquet``, ``.csv`` and ``.txt`` (one document a file)
=====================  ==========================================================================

Files are read in the order of their names. A record without text, or whose text is no valid
Unicode, is skipped and counted; an empty text is a document and keeps its place.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from actlas.pipeline import readers
from actlas.pipeline.fields import (
    DEFAULT_TEXT_FIELD,
    MISSING,
    Field,
    field_names,
    label_of,
    listed,
)
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.readers import MAX_DOCUMENT_BYTES, Raw, Unreadable
from actlas.store.errors import ConfigError, CorpusError

PATIENCE_RECORDS = 10_000
"""A corpus whose first records all have no text is given up after so many."""


class Record(NamedTuple):
    """A document, and where it came from."""

    text: str
    label: str | None
    source: str
    record: int


@dataclass
class Tally:
    """What was read and what was skipped, and why."""

    n_read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """Where each reason was met first."""

    @property
    def n_skipped(self) -> int:
        """All that was skipped."""
        return self.skipped.total()

    def skip(self, reason: str, source: str, record: int) -> None:
        """Count a record that is no document."""
        self.skipped[reason] += 1
        self.first.setdefault(reason, f"{source} record {record}")

    def lines(self) -> list[str]:
        """Say for each reason how many were skipped, and where the first was."""
        return [
            f"{n:,} records skipped: {reason} (the first: {self.first[reason]})"
            for reason, n in self.skipped.most_common()
        ]


class Corpus(Protocol):
    """Documents to read from the front, as often as needed."""

    uri: str
    finite: bool
    """Whether reading all of it is a reasonable thing to do."""
    labelled: bool
    text_field: str | None
    tally: Tally
    """Of the latest reading, as far as it has come."""

    def records(self) -> Iterator[Record]:
        """Yield every document in its order, from the first on.

        Raises
        ------
        CorpusError
            No record has text, or something cannot be read.
        """

    def describe(self) -> str:
        """Say what is read."""

    def fraction(self) -> float | None:
        """Return which part of the corpus the latest reading has come through, where known."""


class RawSource(NamedTuple):
    """Something with records in it: a file, a part of a data set."""

    name: str
    records: Iterator[tuple[int, Raw]]


class Selection:
    """Picks text and label out of raw records, and counts what has none.

    Parameters
    ----------
    options : PlanOptions
        ``text_field``, ``label_field`` and ``lowercase`` are read.
    """

    def __init__(self, options: PlanOptions) -> None:
        self.uri = options.corpus
        self.text = Field(options.text_field or DEFAULT_TEXT_FIELD)
        self.label = Field(options.label_field) if options.label_field else None
        self.lowercase = options.lowercase
        self.n_labelled = 0

    def columns(self, names: list[str]) -> list[str]:
        """Return which of a table's columns are needed: all where it has no text, to name them."""
        text = self.text.columns(names)
        if not text:
            return names
        label = self.label.columns(names) if self.label else []
        wanted = {*text, *label}
        return [name for name in names if name in wanted]

    def select(self, sources: Iterable[RawSource], tally: Tally) -> Iterator[Record]:
        """Yield the documents among raw records."""
        n_documents, self.n_labelled = 0, 0
        seen: dict[str, None] = {}
        for source in sources:
            for index, raw in source.records:
                tally.n_read += 1
                found = self._document(raw, source.name, index)
                if isinstance(found, Unreadable):
                    tally.skip(found.reason, source.name, index)
                    if not seen and isinstance(raw, dict):
                        seen.update(dict.fromkeys(field_names(raw)))
                    if n_documents == 0 and tally.n_read >= PATIENCE_RECORDS:
                        raise self._nothing(tally, seen)
                    continue
                n_documents += 1
                self._check_labelled(found, raw, tally)
                yield found
        if n_documents == 0:
            raise self._nothing(tally, seen)

    def _document(self, raw: Raw, source: str, index: int) -> Record | Unreadable:
        if isinstance(raw, Unreadable):
            return raw
        text = raw if isinstance(raw, str) else self.text.of(raw)
        if text is MISSING:
            return Unreadable(f"no field {self.text.name!r}")
        if not isinstance(text, str):
            return Unreadable(f"field {self.text.name!r} is no string")
        label = label_of(self.label.of(raw)) if self.label and not isinstance(raw, str) else None
        if self.lowercase:
            text = text.lower()
        try:
            if len(text.encode()) > MAX_DOCUMENT_BYTES:
                return readers.TOO_LONG
            (label or "").encode()
        except UnicodeEncodeError:
            return Unreadable("not valid Unicode (half of a surrogate pair)")
        return Record(text, label, source, index)

    def _check_labelled(self, record: Record, raw: Raw, tally: Tally) -> None:
        if self.label is None or self.n_labelled > 0:
            return
        self.n_labelled += record.label is not None
        if self.n_labelled == 0 and tally.n_read >= PATIENCE_RECORDS:
            raise self.no_label(raw)

    def no_label(self, raw: Raw) -> CorpusError:
        """Return the error that no record has the label."""
        names = field_names(raw) if isinstance(raw, dict) else []
        there = f"Its fields are {listed(names)}." if names else "Its records have no fields."
        name = self.label.name if self.label else ""
        return CorpusError(
            f"{self.uri}: no record has a label in {name!r}. {there}", field="label_field"
        )

    def _nothing(self, tally: Tally, seen: Iterable[str]) -> CorpusError:
        if tally.n_read == 0:
            return CorpusError(
                f"{self.uri}: there are no records in it. Expected at least one with text.",
                corpus=self.uri,
            )
        names = list(seen)
        advice = (
            f"Its fields are {listed(names)}: name the one with text with --text-field (a range "
            "of columns as first:last)."
            if names
            else "Expected UTF-8 text, or records with a field of text."
        )
        return CorpusError(
            f"{self.uri}: none of {tally.n_read:,} records has text. "
            f"{'; '.join(tally.lines())}. {advice}",
            corpus=self.uri,
            fields=names,
        )


class FileCorpus:
    """Documents in local files.

    Parameters
    ----------
    options : PlanOptions
    files : list of Path
        In the order in which they are read.
    root : Path
        What sources are named from.
    """

    finite = True

    def __init__(self, options: PlanOptions, files: list[Path], root: Path) -> None:
        self.uri = options.corpus
        self.labelled = options.label_field is not None
        self.selection = Selection(options)
        plain = all(readers.suffix_of(file) == ".txt" for file in files)
        self.text_field = None if plain else self.selection.text.name
        self.tally = Tally()
        self.files, self.root = files, root
        self._sizes = [file.stat().st_size for file in files]
        self._n_files_read = 0

    def records(self) -> Iterator[Record]:
        """Yield the documents of all files."""
        self.tally = Tally()
        raw: Raw = ""
        yield from self.selection.select(self._sources(), self.tally)

    def _sources(self) -> Iterator[RawSource]:
        for self._n_files_read, file in enumerate(self.files):
            name = file.relative_to(self.root).as_posix()
            yield RawSource(name, readers.read_records(file, self.selection.columns))
        self._n_files_read = len(self.files)
