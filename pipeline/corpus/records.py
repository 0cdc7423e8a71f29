"""From raw records to documents: text and label picked out, what has none counted."""

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
    listed,
)
from actlas.pipeline.corpus.image_files import image_of
from actlas.pipeline.corpus.readers import MAX_DOCUMENT_BYTES, TOO_LONG, Raw, Unreadable
from actlas.pipeline.corpus.spans import ROLE, Part, column_name, spans_of
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import CorpusError

if TYPE_CHECKING:
    from actlas.pipeline.corpus.chat import Chat

PATIENCE_RECORDS = 10_000
"""A corpus whose first records all have no text, or no label, is given up after so many."""


class Record(NamedTuple):
    """A document, and where it came from."""

    text: str
    label: str | None
    source: str
    record: int
    image: bytes | None = None
    """The image file's own bytes, where there is one."""
    parts: Mapping[str, tuple[Part, ...]] = MappingProxyType({})
    """Named parts of the text, by column."""


@dataclass
class ReadCounts:
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
        """Return a line for each reason: how many were skipped, and where the first was."""
        return [
            f"{n:,} records skipped: {reason} (the first: {self.first[reason]})"
            for reason, n in self.skipped.most_common()
        ]


class RawSource(NamedTuple):
    """Something with records in it: a file, a part of a data set."""

    name: str
    records: Iterator[tuple[int, Raw]]
    folder: Path | None = None
    """From which paths in the records are read."""


class Selection:
    """Picks text and label out of raw records, and counts what has none.

    Parameters
    ----------
    options : PlanOptions
        The fields that they name, and ``lowercase``, are read.
    chat : Chat, optional
        What lays messages out.
    """

    def __init__(self, options: PlanOptions, chat: Chat | None = None) -> None:
        self.uri = options.corpus
        self.chat = chat
        self.text = Field(options.messages_field or options.text_field or DEFAULT_TEXT_FIELD)
        self.spans = {column_name(name): Field(name) for name in options.span_fields}
        self._seen: set[str] = set()
        self.label = Field(options.label_field) if options.label_field else None
        self.image = Field(options.image_field) if options.image_field else None
        self.lowercase = options.lowercase

    def columns(self, names: list[str]) -> list[str]:
        """Return which of a table's columns are needed: all where one is missing, to name them."""
        fields = [f for f in (self.text, self.label, self.image, *self.spans.values()) if f]
        found = [field.columns(names) for field in fields]
        if not all(found):
            return names
        return [name for name in names if any(name in columns for columns in found)]

    def select(self, sources: Iterable[RawSource], counts: ReadCounts) -> Iterator[Record]:
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
                counts.n_read += 1
                found = self._document(raw, source, index)
                example = example or raw if isinstance(raw, Mapping) else example
                if isinstance(found, Unreadable):
                    counts.skip(found.reason, source.name, index)
                else:
                    n_documents += 1
                    n_labelled += found.label is not None
                    yield found
                if counts.n_read == PATIENCE_RECORDS:
                    self._check(n_documents, n_labelled, counts, example)
        self._check(n_documents, n_labelled, counts, example)

    def _document(self, raw: Raw, source: RawSource, index: int) -> Record | Unreadable:
        if isinstance(raw, Unreadable):
            return raw
        text = raw if isinstance(raw, str) else self.text.of(raw)
        image = self._image(raw, source.folder)
        if isinstance(image, Unreadable):
            return image
        if image is not None and text in (MISSING, None):
            text = ""
        if self.chat is not None and text is not MISSING:
            return self._laid_out(self.chat.lay_out(text), raw, source, index)
        if text is MISSING:
            return Unreadable("no image" if self.image else f"no field {self.text.name!r}")
        if not isinstance(text, str):
            return Unreadable(f"field {self.text.name!r} is no string")
        parts = self._spans(raw, text)
        if isinstance(parts, Unreadable):
            return parts
        if self.lowercase:
            lower = text.lower()
            if self.spans and len(lower) != len(text):
                return Unreadable("a text whose length --lowercase changes, so that spans shift")
            text = lower
        return self._record(text, parts, image, raw, source, index)

    def _laid_out(
        self,
        found: tuple[str, tuple[Part, ...]] | Unreadable,
        raw: Raw,
        source: RawSource,
        index: int,
    ) -> Record | Unreadable:
        if isinstance(found, Unreadable):
            return found
        text, parts = found
        return self._record(text, {ROLE: parts}, None, raw, source, index)

    def _record(
        self,
        text: str,
        parts: Mapping[str, tuple[Part, ...]],
        image: bytes | None,
        raw: Raw,
        source: RawSource,
        index: int,
    ) -> Record | Unreadable:
        label = label_of(self.label.of(raw)) if self.label and isinstance(raw, Mapping) else None
        names = {part.name for each in parts.values() for part in each}
        try:
            "".join((label or "", *names)).encode()
            n_bytes = len(text.encode())
        except UnicodeEncodeError:
            return Unreadable("not valid Unicode (half of a surrogate pair)")
        if n_bytes > MAX_DOCUMENT_BYTES:
            return TOO_LONG
        return Record(text, label, source.name, index, image, parts)

    def _spans(self, raw: Raw, text: str) -> dict[str, tuple[Part, ...]] | Unreadable:
        """Return the spans of a record by column; a text without fields has none."""
        parts: dict[str, tuple[Part, ...]] = {}
        for name, spans in self.spans.items():
            value = spans.of(raw) if isinstance(raw, Mapping) else MISSING
            if value is not MISSING:
                self._seen.add(name)
            found = spans_of(value, name, text)
            if isinstance(found, Unreadable):
                return found
            parts[name] = found
        return parts

    def _image(self, raw: Raw, folder: Path | None) -> bytes | Unreadable | None:
        if self.image is None or not isinstance(raw, Mapping):
            return None
        return image_of(self.image.of(raw), folder)

    def _check(self, n_documents: int, n_labelled: int, counts: ReadCounts, example: Raw) -> None:
        names = field_names(example) if isinstance(example, Mapping) else []
        if counts.n_read == 0:
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
                f"{self.uri}: none of {counts.n_read:,} records has {what}. "
                f"{'; '.join(counts.lines())}. {advice}",
                corpus=self.uri,
                fields=names,
            )
        unseen = [field.name for name, field in self.spans.items() if name not in self._seen]
        if unseen:
            there = f"Its fields are {listed(names)}." if names else "Its records have no fields."
            raise CorpusError(
                f"{self.uri}: none of {counts.n_read:,} records has a field {unseen[0]!r}. {there} "
                "Name those with spans with --span-fields.",
                corpus=self.uri,
                fields=names,
            )
        if self.label is not None and n_labelled == 0:
            there = f"Its fields are {listed(names)}." if names else "Its records have no fields."
            raise CorpusError(
                f"{self.uri}: none of {counts.n_read:,} records has a label in "
                f"{self.label.name!r}. {there} Name the one with the label with --label-field.",
                corpus=self.uri,
                fields=names,
            )
