"""Sealed JSON records: lines of JSON that end with their own sha256, parsed strictly."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from actlas.store.errors import CorruptDataError, FormatError

FORMAT_VERSION = 1
"""The version of the format, increased with each change that an older reader would misread."""

MAX_DEPTH = 64
"""The maximum nesting of JSON values in a record."""

_CONTAINERS = (dict, list)

SpecT = TypeVar("SpecT", bound=BaseModel)

_HEAD = b'{"record":'

_MIDDLE = b',"sha256":"'

_TAIL = b'"}\n'

_SEAL_BYTES = len(_MIDDLE) + 64 + len(_TAIL)


def seal(spec: BaseModel) -> bytes:
    """Encode a record as one line of JSON that ends with its own sha256.

    The line is ``{"record":<body>,"sha256":"<hex>"}`` and a line feed. The hash is over the bytes
    of ``<body>``, so a checker need not reproduce our formatting of numbers.
    """
    body = spec.model_dump_json().encode()
    return b"".join((_HEAD, body, _MIDDLE, hashlib.sha256(body).hexdigest().encode(), _TAIL))


def seal_of(data: bytes) -> str:
    """Return the sha256 that a sealed record ends with, without checking it."""
    return data[-64 - len(_TAIL) : -len(_TAIL)].decode("ascii", "replace")


def unseal(data: bytes, cls: type[SpecT], where: str) -> SpecT:
    """Decode and check a record that :func:`seal` encoded.

    Parameters
    ----------
    data : bytes
        The sealed record.
    cls : type
        The pydantic model of the record.
    where : str
        The record's location, for messages.

    Raises
    ------
    CorruptDataError
        The bytes are not the ones that were sealed.
    FormatError
        The record was written by another version of the format, or is malformed.
    """
    body = data[len(_HEAD) : -_SEAL_BYTES]
    computed = hashlib.sha256(body).hexdigest()
    if data != b"".join((_HEAD, body, _MIDDLE, computed.encode(), _TAIL)):
        raise CorruptDataError(
            f"{where}: expected a sealed record, got {len(data)} bytes whose sha256 is not the one "
            "that they end with: the file was changed or truncated after it was written. `actlas "
            "verify --full` lists all damage, `actlas repair` repairs it.",
            path=where,
        )
    try:
        record = json.loads(body)
        if too_deep(record):
            raise ValueError(f"JSON nested more than {MAX_DEPTH} deep")
        version = record.get("format_version", record.get("plan", {}).get("format_version"))
        if version != FORMAT_VERSION:
            raise version_error(where, version)
        return cls.model_validate(record)
    except ValidationError as error:
        raise FormatError(f"{where}: {summarize(error)}", path=where) from error
    except (ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}: this is no record of a store ({error})", path=where) from error


def too_deep(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Return whether JSON values are nested deeper than ``depth``; computed without recursion."""
    level = [value]
    for _ in range(depth):
        below: list[Any] = []
        for item in level:
            inner = item.values() if isinstance(item, dict) else item
            if isinstance(item, _CONTAINERS):
                below += [part for part in inner if isinstance(part, _CONTAINERS)]
        if not below:
            return False
        level = below
    return True


def version_error(where: str, version: object) -> FormatError:
    """Return the error for a store of another format version."""
    return FormatError(
        f"{where}: got format version {version!r}, this actlas reads version "
        f"{FORMAT_VERSION}. Use the actlas version that wrote it, or extract again.",
        path=where,
        found=version,
        expected=FORMAT_VERSION,
    )


def summarize(error: ValidationError) -> str:
    """Return in one line which fields of a record or configuration are wrong, with their values."""
    parts = []
    for item in error.errors()[:5]:
        where = ".".join(str(part) for part in item["loc"]) or "the whole"
        got = repr(item.get("input"))
        parts.append(f"{where}: {item['msg']} (got {got[:80]})")
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
