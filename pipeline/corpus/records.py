"""From raw records to documents: selection of text, label, spans and image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from actlas.pipeline.corpus.fields import (
    DEFAULT_TEXT_FIELD,
    MISSING,
    Field,
    field_names,
    label_of,
)
from actlas.pipeline.corpus.formats.base import (
    MAX_DOCUMENT_BYTES,
    TOO_LONG,
    Raw,
    RepeatedNameError,
    Unreadable,
)
from actlas.pipeline.corpus.image_files import image_of
from actlas.pipeline.corpus.spans import ROLE, Span, column_name, spans_of
from actlas.pipeline.options import PlanOptions
from actlas.store.display.text import counted, listed, printable
from actlas.store.errors import CorpusError

if TYPE_CHECKING:
    from actlas.pipeline.corpus.chat import Chat

PATIENCE_RECORDS = 10_000
"""Records after which reading ends if none of them has text, or none has a label."""


class Record(NamedTuple):
    """A document and its origin.

    Attributes
    ----------
    text : str
        The text.
    label : str or None
        The label.
    source : str
        The file, or the part of a data set, that the document is from.
    record : int
        Index of the record in its source.
    image : bytes or None
        The bytes of the image file, where the record has one.
    spans : mapping of str to tuple of Span
        Named spans of the text, by column.
    """

    text: str
    label: str | None
    source: str
    record: int
    image: bytes | None = None
    spans: Mapping[str, tuple[Span, ...]] = MappingProxyType({})


@dataclass
class ReadCounts:
    """Numbers of records read and skipped.

    Attributes
    ----------
    n_read : int
        Records read.
    skipped : Counter of str
        Records skipped, by reason.
    first : dict of str to str
        The first record skipped, by reason.
    n_empty : int
        Sources without a record.
    first_empty : str
        The first of them.
    left_out : tuple of str
        A line for each reason for which files were not read.
    delimiters : dict of str to str
        The delimiter of each table of text, where it is not a comma (``.csv``) or a tab (``.tsv``).
    """

    n_read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    n_empty: int = 0
    first_empty: str = ""
    left_out: tuple[str, ...] = ()
    delimiters: dict[str, str] = field(default_factory=dict)

    @property
    def n_skipped(self) -> int:
        """All records skipped."""
        return self.skipped.total()

    def skip(self, reason: str, source: str, record: int, where: str = "") -> None:
        """Count a record as skipped; ``where`` is its place in the source, if that says more."""
        self.skipped[reason] += 1
        place = f", {where}" if where else ""
        self.first.setdefault(reason, f"{source} record {record}{place}")

    def skip_source(self, source: str) -> None:
        """Count a source that has no record."""
        self.n_empty += 1
        self.first_empty = self.first_empty or source

    def delimiter_lines(self) -> list[str]:
        """Return a line for each delimiter that is not the suffix's own, with its first table."""
        tables: dict[str, list[str]] = {}
        for path, delimiter in self.delimiters.items():
            tables.setdefault(delimiter, []).append(Path(path).name)
        return [
            f"{'a tab' if delimiter == chr(9) else repr(delimiter)} separates the columns of "
            f"{printable(listed(names, 3))} (--delimiter names another)"
            for delimiter, names in tables.items()
        ]

    def lines(self) -> list[str]:
        """Return a line for each reason: the number of records skipped, and the first of them."""
        lines = [
            f"{counted(n, 'record')} skipped: {reason} (the first: {self.first[reason]})"
            for reason, n in self.skipped.most_common()
        ]
        if self.n_empty:
            files = counted(self.n_empty, "file")
            lines.append(f"{files} without a record ({self.first_empty})")
        return lines


class RawSource(NamedTuple):
    """A source of records: a file, or a part of a data set.

    Attributes
    ----------
    name : str
        The name that documents have as their source.
    records : iterator of (int, Raw)
        The records with their indices.
    folder : Path or None
        The folder that paths in the records are relative to.
    """

    name: str
    records: Iterator[tuple[int, Raw]]
    folder: Path | None = None


class Selection:
    """Selects the documents among raw records, and counts the other records.

    Parameters
    ----------
    options : PlanOptions
        The names of the fields, and ``lowercase``.
    chat : Chat, optional
        The chat template, where ``messages_field`` is given.
    """

    def __init__(self, options: PlanOptions, chat: Chat | None = None) -> None:
        self.uri = options.corpus
        self.chat = chat
        self.text = Field(options.messages_field or options.text_field or DEFAULT_TEXT_FIELD)
        self.span_fields = {column_name(name): Field(name) for name in options.span_fields}
        self._seen: set[str] = set()
        self._names: list[str] = []
        self.label = Field(options.label_field) if options.label_field else None
        self.image = Field(options.image_field) if options.image_field else None
        self.lowercase = options.lowercase

    def columns(self, names: list[str], fields: list[str] | None = None) -> list[str]:
        """Return the columns of a table that are needed, in its order.

        Parameters
        ----------
        names : list of str
            The table's columns.
        fields : list of str, optional
            All its fields, nested ones as dotted paths, for messages; by default the columns.

        Raises
        ------
        RepeatedNameError
            A needed name is that of several columns.
        """
        self._names = self._names or fields or names
        wanted = [f for f in (self.text, self.label, self.image, *self.span_fields.values()) if f]
        found = {name for each in wanted for name in each.columns(names)}
        for name in found:
            if names.count(name) > 1:
                raise RepeatedNameError(name)
        return [name for name in names if name in found]

    def fits(self, names: list[str]) -> int:
        """Return how many of the fields that are read the columns of a table have."""
        wanted = (self.text, self.label, self.image, *self.span_fields.values())
        return sum(bool(each.columns(names)) for each in wanted if each is not None)

    def select(self, sources: Iterable[RawSource], counts: ReadCounts) -> Iterator[Record]:
        """Yield the documents among raw records.

        Parameters
        ----------
        sources : iterable of RawSource
            The records.
        counts : ReadCounts
            Updated with every record.

        Raises
        ------
        CorpusError
            No record has text; or a label field is given and no record has a label.
        """
        n_documents = n_labelled = 0
        example: Raw = ""
        for source in sources:
            n_before = counts.n_read
            for index, raw in source.records:
                counts.n_read += 1
                found = self._document(raw, source, index)
                example = example or raw if isinstance(raw, Mapping) else example
                if isinstance(found, Unreadable):
                    counts.skip(found.reason, source.name, index, found.where)
                else:
                    n_documents += 1
                    n_labelled += found.label is not None
                    yield found
                if counts.n_read == PATIENCE_RECORDS:
                    self._check(n_documents, n_labelled, counts, example)
            if counts.n_read == n_before:
                counts.skip_source(source.name)
        self._check(n_documents, n_labelled, counts, example)

    def _document(self, raw: Raw, source: RawSource, index: int) -> Record | Unreadable:
        if isinstance(raw, Unreadable):
            return raw
        text = raw if isinstance(raw, str) else self.text.of(raw)
        if isinstance(text, Unreadable):
            return text
        image = self._image(raw, source.folder)
        if isinstance(image, Unreadable):
            return image
        if image is not None and text in (MISSING, None):
            text = ""
        if self.chat is not None and text is not MISSING:
            return self._chat_record(self.chat.format(text), raw, source, index)
        if text is MISSING:
            return Unreadable("no image" if self.image else f"no field {self.text.name!r}")
        if not isinstance(text, str):
            return Unreadable(f"field {self.text.name!r} is no string")
        spans = self._spans(raw, text)
        if isinstance(spans, Unreadable):
            return spans
        if self.lowercase:
            lower = text.lower()
            if self.span_fields and len(lower) != len(text):
                return Unreadable("a text whose length --lowercase changes, so that spans shift")
            text = lower
        return self._record(text, spans, image, raw, source, index)

    def _chat_record(
        self,
        found: tuple[str, tuple[Span, ...]] | Unreadable,
        raw: Raw,
        source: RawSource,
        index: int,
    ) -> Record | Unreadable:
        if isinstance(found, Unreadable):
            return found
        text, spans = found
        return self._record(text, {ROLE: spans}, None, raw, source, index)

    def _record(
        self,
        text: str,
        spans: Mapping[str, tuple[Span, ...]],
        image: bytes | None,
        raw: Raw,
        source: RawSource,
        index: int,
    ) -> Record | Unreadable:
        value = self.label.of(raw) if self.label and isinstance(raw, Mapping) else None
        if isinstance(value, Unreadable):
            return value
        label = label_of(value)
        names = {span.name for each in spans.values() for span in each}
        try:
            "".join((label or "", *names)).encode()
            n_bytes = len(text.encode())
        except UnicodeEncodeError:
            return Unreadable("not valid Unicode (half of a surrogate pair)")
        if n_bytes > MAX_DOCUMENT_BYTES:
            return TOO_LONG
        return Record(text, label, source.name, index, image, spans)

    def _spans(self, raw: Raw, text: str) -> dict[str, tuple[Span, ...]] | Unreadable:
        """Return the spans of a record by column; plain text has none."""
        spans: dict[str, tuple[Span, ...]] = {}
        for name, span_field in self.span_fields.items():
            value = span_field.of(raw) if isinstance(raw, Mapping) else MISSING
            if value is not MISSING:
                self._seen.add(name)
            found = value if isinstance(value, Unreadable) else spans_of(value, name, text)
            if isinstance(found, Unreadable):
                return found
            spans[name] = found
        return spans

    def _image(self, raw: Raw, folder: Path | None) -> bytes | Unreadable | None:
        if self.image is None or not isinstance(raw, Mapping):
            return None
        value = self.image.of(raw)
        return value if isinstance(value, Unreadable) else image_of(value, folder)

    def _check(self, n_documents: int, n_labelled: int, counts: ReadCounts, example: Raw) -> None:
        names = field_names(example) if isinstance(example, Mapping) else []
        names = self._names or names
        if counts.n_read == 0:
            raise CorpusError(
                f"{self.uri}: it has no records. Expected at least one with text.",
                corpus=self.uri,
            )
        if n_documents == 0:
            advice = "Expected UTF-8 text, or records with a field of text."
            if names:
                advice = (
                    f"Its fields are {listed(names)}: name the one with text with --text-field (a "
                    "range of columns as first:last)."
                )
            if names and self.image is not None:
                advice = (
                    f"Its fields are {listed(names)}: name the one with the image, its bytes or "
                    "its path below the folder of the records, with --image-field."
                )
            if set(counts.skipped) == {TOO_LONG.reason}:
                advice = (
                    f"A document may have {MAX_DOCUMENT_BYTES >> 20} MiB. Expected shorter ones: "
                    "cut them, into one file each or into records of a .jsonl."
                )
            what = "text" if self.image is None else "text or an image"
            raise CorpusError(
                f"{self.uri}: none of {counted(counts.n_read, 'record')} has {what}. "
                f"{'; '.join(counts.lines())}. {advice}",
                corpus=self.uri,
                fields=names,
            )
        unseen = [field.name for name, field in self.span_fields.items() if name not in self._seen]
        if unseen:
            there = f"Its fields are {listed(names)}." if names else "Its records have no fields."
            raise CorpusError(
                f"{self.uri}: none of {counted(counts.n_read, 'record')} has a field "
                f"{unseen[0]!r}. {there} Name those with spans with --span-fields.",
                corpus=self.uri,
                fields=names,
            )
        if self.label is not None and n_labelled == 0:
            there = f"Its fields are {listed(names)}." if names else "Its records have no fields."
            raise CorpusError(
                f"{self.uri}: none of {counted(counts.n_read, 'record')} has a label in "
                f"{self.label.name!r}. {there} Name the one with the label with --label-field.",
                corpus=self.uri,
                fields=names,
            )
