"""Sealed JSON records: canonical bytes that end with their own checksum, parsed strictly."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from actlas.store.errors import CorruptDataError, FormatError

FORMAT_VERSION = 1
"""Raised by one with each change that an older reader would misread."""

MAX_DEPTH = 64
"""Of JSON in JSON."""

SpecT = TypeVar("SpecT", bound=BaseModel)

_HEAD = b'{"record":'

_MIDDLE = b',"sha256":"'

_TAIL = b'"}\n'

_SEAL_BYTES = len(_MIDDLE) + 64 + len(_TAIL)


def seal(spec: BaseModel) -> bytes:
    """Encode a record as one line of JSON that ends with its own sha256.

    ``{"record":<body>,"sha256":"<hex>"}`` and a line feed: the hash is over the very bytes of
    ``<body>``, so that nobody has to write numbers the way that we do to check it.
    """
    body = spec.model_dump_json().encode()
    return b"".join((_HEAD, body, _MIDDLE, hashlib.sha256(body).hexdigest().encode(), _TAIL))


def seal_of(data: bytes) -> str:
    """Return the sha256 that a sealed record ends with, unchecked."""
    return data[-64 - len(_TAIL) : -len(_TAIL)].decode("ascii", "replace")


def unseal(data: bytes, cls: type[SpecT], where: str) -> SpecT:
    """Decode and check what :func:`seal` wrote.

    Raises
    ------
    CorruptDataError
        The bytes are not the ones that were sealed.
    FormatError
        They are, but not of this version's form.
    """
    body = data[len(_HEAD) : -_SEAL_BYTES]
    computed = hashlib.sha256(body).hexdigest()
    if data != b"".join((_HEAD, body, _MIDDLE, computed.encode(), _TAIL)):
        raise CorruptDataError(
            f"{where}: expected a sealed record, got {len(data)} bytes whose sha256 is not the one "
            "that they end with: the file was changed or cut after it was written. `actlas verify "
            "--full` says what else is damaged, `actlas repair` puts it back.",
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
        raise FormatError(f"{where}: no record of a store ({error})", path=where) from error


def too_deep(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether plain values are nested deeper than any record is; looked at without recursion."""
    level = [value]
    for _ in range(depth):
        below: list[Any] = []
        for item in level:
            inner = item.values() if isinstance(item, dict) else item
            if isinstance(item, dict | list):
                below += (part for part in inner if isinstance(part, dict | list))
        if not below:
            return False
        level = below
    return True


def version_error(where: str, version: object) -> FormatError:
    """Say which version of the format was found, which is read, and what to do."""
    return FormatError(
        f"{where}: this store has format version {version!r}, this actlas reads version "
        f"{FORMAT_VERSION}. Use the actlas version that wrote it, or extract again.",
        path=where,
        found=version,
        expected=FORMAT_VERSION,
    )


def summarize(error: ValidationError) -> str:
    """Say in one line where a record or configuration is wrong, and what was got."""
    parts = []
    for item in error.errors()[:5]:
        where = ".".join(str(part) for part in item["loc"]) or "the whole"
        got = repr(item.get("input"))
        parts.append(f"{where}: {item['msg']} (got {got[:80]})")
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
