"""Which part of a record is its text, and which its label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_TEXT_FIELD = "text"

MISSING = object()
"""What a record gives for a field that it has not got."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field's name, a dotted path to it, or a range of columns.

    A field whose whole name is the given one wins; then a range ``first:last`` of fields, in the
    record's own order and both ends included; then a path through nested objects.

    Examples
    --------
    >>> Field("meta.set").of({"meta": {"set": "wiki"}})
    'wiki'
    >>> Field("b:c").of({"a": "1", "b": "two", "c": "words"})
    'two words'
    """

    name: str

    def of(self, record: Mapping[str, Any]) -> Any:
        """Return the field's value, or ``MISSING``. A range's cells are joined with single spaces.

        Empty cells of a range are left out; one that is not a string makes the range's value
        ``None``.
        """
        if self.name in record:
            return record[self.name]
        if ":" in self.name:
            return self._range(record)
        value: Any = record
        for part in self.name.split("."):
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
            return None
        return " ".join(cell.strip() for cell in cells if cell.strip())

    def _range_names(self, names: list[str]) -> list[str]:
        first, _, last = self.name.partition(":")
        if first not in names or last not in names:
            return []
        return names[names.index(first) : names.index(last) + 1]

    def columns(self, names: list[str]) -> list[str]:
        """Return which of a table's columns hold the field; none where it has not got it."""
        if self.name in names:
            return [self.name]
        if ":" in self.name:
            return self._range_names(names)
        head = self.name.split(".", 1)[0]
        return [head] if head in names else []


def field_names(record: Mapping[str, Any]) -> list[str]:
    """Return the names of a record's fields, nested ones as dotted paths."""
    names: list[str] = []
    for name, value in record.items():
        nested = field_names(value) if isinstance(value, Mapping) else []
        names += [f"{name}.{inner}" for inner in nested] or [str(name)]
    return names


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Return names for a message, at most ``limit`` of them."""
    shown = list(names)
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def label_of(value: Any) -> str | None:
    """Return a label as a string; None for none, for a blank, and for what is no single value."""
    if value is MISSING or value is None or isinstance(value, Mapping | list):
        return None
    text = str(value)
    return text if text.strip() else None
