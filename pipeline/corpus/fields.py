"""Fields of records: lookup by name, dotted path or range of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actlas.pipeline.corpus.formats.base import Unreadable

DEFAULT_TEXT_FIELD = "text"

MISSING = object()
"""The value of a field that a record does not have."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of records, given by its name, a dotted path, or a range of columns.

    A field of exactly this name takes precedence; then a range ``first:last`` of fields in the
    record's order, both ends included; then a path through nested objects.

    Parameters
    ----------
    name : str
        The name, path or range.

    Examples
    --------
    >>> Field("meta.set").of({"meta": {"set": "wiki"}})
    'wiki'
    >>> Field("b:c").of({"a": "1", "b": "two", "c": "words"})
    'two words'
    """

    name: str

    def of(self, record: Mapping[str, Any]) -> Any:
        """Return the field's value, or ``MISSING``; or why it cannot be read.

        The value of a range is its cells, joined with single spaces and without empty ones; it is
        ``None`` where a cell is not a string.
        """
        if self.name in record:
            return record[self.name]
        if ":" in self.name:
            return self._range(record)
        value: Any = record
        for part in self.name.split("."):
            if isinstance(value, Unreadable):
                return value
            if not isinstance(value, Mapping) or part not in value:
                return MISSING
            value = value[part]
        return value

    def _range(self, record: Mapping[str, Any]) -> Any:
        names = self._range_names(list(record))
        if not names:
            return MISSING
        cells = [record[name] for name in names]
        if not all(isinstance(cell, str) for cell in cells):
            return next((cell for cell in cells if isinstance(cell, Unreadable)), None)
        return " ".join(cell.strip() for cell in cells if cell.strip())

    def _range_names(self, names: list[str]) -> list[str]:
        first, _, last = self.name.partition(":")
        if first not in names or last not in names:
            return []
        return names[names.index(first) : names.index(last) + 1]

    def columns(self, names: list[str]) -> list[str]:
        """Return the columns of a table that hold the field; none if it is absent."""
        if self.name in names:
            return [self.name]
        if ":" in self.name:
            return self._range_names(names)
        head = self.name.split(".", 1)[0]
        return [head] if head in names else []


def field_names(record: Mapping[str, Any]) -> list[str]:
    """Return the names of a record's fields; nested fields as dotted paths."""
    names: list[str] = []
    for name, value in record.items():
        nested = field_names(value) if isinstance(value, Mapping) else []
        names += [f"{name}.{inner}" for inner in nested] or [str(name)]
    return names


def label_of(value: Any) -> str | None:
    """Return a label as a string; None if it is missing, blank, or no single value."""
    if value is MISSING or value is None or isinstance(value, Mapping | list):
        return None
    text = str(value)
    return text if text.strip() else None
