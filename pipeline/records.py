"""From raw records to documents: text and label picked out, what has none counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from actlas.pipeline.fields import (
    DEFAULT_TEXT_FIELD,
    MISSING,
    Field,
    field_names,
    label_of,
    listed,
)
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.readers import MAX_DOCUMENT_BYTES, TOO_LONG, Raw, Unreadable
from actlas.store.errors import CorpusError

PATIENCE_RECORDS = 10_000
"""A corpus whose first records all have no text, or no label, is given up after so many."""


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

    def columns(self, names: list[str]) -> list[str]:
        """Return which of a table's columns are needed: all where one is missing, to name them."""
        fields = [self.text, *([self.label] if self.label else [])]
        found = [field.columns(names) for field in fields]
        if not all(found):
            return names
        return [name for name in names if any(name in columns for columns in found)]

    def select(self, sources: Iterable[RawSource], tally: Tally) -> Iterator[Record]:
        """Yield the documents among raw records.

        Raises
        ------
        CorpusError
            None has text; or a label was asked for and none has one.
        """
        n_documents = n_labelled = 0
        example: Raw = ""
        for source in sources:
            for index, raw in source.records:
                tally.n_read += 1
                found = self._document(raw, source.name, index)
                example = example or raw if isinstance(raw, Mapping) else example
                if isinstance(found, Unreadable):
                    tally.skip(found.reason, source.name, index)
                else:
                    n_documents += 1
                    n_labelled += found.label is not None
                    yield found
                if tally.n_read == PATIENCE_RECORDS:
                    self._check(n_documents, n_labelled, tally, example)
        self._check(n_documents, n_labelled, tally, example)

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
            (label or "").encode()
            n_bytes = len(text.encode())
        except UnicodeEncodeError:
            return Unreadable("not valid Unicode (half of a surrogate pair)")
        return TOO_LONG if n_bytes > MAX_DOCUMENT_BYTES else Record(text, label, source, index)

    def _check(self, n_documents: int, n_labelled: int, tally: Tally, example: Raw) -> None:
        names = field_names(example) if isinstance(example, Mapping) else []
        if tally.n_read == 0:
            raise CorpusError(
                f"{self.uri}: there are no records in it. Expected at least one with text.",
                corpus=self.uri,
            )
        if n_documents == 0:
            advice = "Expected UTF-8 text, or records with a field of text."
            if names:
                advice = (
                    f"Its fields are {listed(names)}: name the one with text with --text-field (a "
                    "range of columns as first:last)."
                )
            if set(tally.skipped) == {TOO_LONG.reason}:
                advice = (
                    f"A document may have {MAX_DOCUMENT_BYTES >> 20} MiB. Expected shorter ones: "
                    "cut them, into one file each or into records of a .jsonl."
                )
            raise CorpusError(
                f"{self.uri}: none of {tally.n_read:,} records has text. "
                f"{'; '.join(tally.lines())}. {advice}",
                corpus=self.uri,
                fields=names,
            )
        if self.label is not None and n_labelled == 0:
            there = f"Its fields are {listed(names)}." if names else "Its records have no fields."
            raise CorpusError(
                f"{self.uri}: none of {tally.n_read:,} records has a label in "
                f"{self.label.name!r}. {there} Name the one with the label with --label-field.",
                corpus=self.uri,
                fields=names,
            )
