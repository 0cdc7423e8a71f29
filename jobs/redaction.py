"""What must not be written down: credentials in messages, tracebacks and logs.

Errors of libraries quote URLs and headers. Here whatever has the form of a credential in them, and
every value that the environment holds under a name such as ``AWS_SECRET_ACCESS_KEY`` or
``HF_TOKEN``, becomes ``***``: as it is, and as URLs, JSON, ``repr`` and bytes write it.

What goes into JSON is redacted value by value before it is encoded (:func:`redacted_values`). In
the text of JSON a match that ends at an escaped quote would take the escape along.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any

HIDDEN = "***"

SHORTEST = 6
"""Values of fewer characters are no secrets, and would be found everywhere."""

DEEPEST = 32
"""Lists and dictionaries nested deeper than this are told as one text."""

_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY|SAS|"
    r"(ACCESS|API|ACCOUNT|PRIVATE|STORAGE|AUTH|ACCESS_KEY|SECRET_ACCESS)_KEY(_ID)?)(_|$)",
    re.IGNORECASE,
)

_PLACE = re.compile(r"(FILE|PATH|DIR|DIRECTORY|CREDENTIALS)$", re.IGNORECASE)

_HEADER = re.compile(
    r"(proxy-)?authorization|(set-)?cookie|x-amz-security-token|x-api-key", re.IGNORECASE
)

_FORMS = (
    re.compile(r"(?P<kept>\b[a-z][a-z0-9+.\-]{0,30}://)[^/\s'\"]+(?P<after>@)", re.IGNORECASE),
    re.compile(  # what is left of a URL that was taken for a path
        r"(?P<kept>\b[a-z][a-z0-9+.\-]{0,30}:/)[^/\s:'\"]+:[^/\s'\"]*(?P<after>@)", re.IGNORECASE
    ),
    re.compile(
        r"(?P<kept>[?&;](?:x-amz-(?:signature|credential|security-token)|sig|signature|token|"
        r"access_token|api_key|apikey|key|password|secret)=)[^&\s'\"]+",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?P<kept>\b(?:authorization|x-amz-security-token|x-api-key)['\"]?\s*[:=]\s*['\"]?"
        r"(?:(?:bearer|basic|token|aws4-hmac-sha256)\s+)?)[^\s'\",}]+",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<kept>\bbearer\s+)[A-Za-z0-9._~+/\-]{8,}=*", re.IGNORECASE),
    re.compile(  # not "basic configuration": base64 of a name and a password has more than letters
        r"(?P<kept>\bbasic\s+)(?=[A-Za-z+/]*[0-9=]|[A-Za-z0-9+/]{20})[A-Za-z0-9+/]{8,}=*",
        re.IGNORECASE,
    ),
)


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return text without credentials.

    Parameters
    ----------
    text : str
        A message, a traceback, a line of a log.
    environment : mapping, optional
        Whose secrets are looked for. Default: this process's.

    Examples
    --------
    >>> redacted("GET https://me:pass@host/x?X-Amz-Signature=abc&n=1 failed", {})
    'GET https://***@host/x?X-Amz-Signature=***&n=1 failed'
    >>> redacted("token hf_abcdef is not valid", {"HF_TOKEN": "hf_abcdef"})
    'token *** is not valid'
    """
    return _cleaner(environment)(text)


def redacted_values(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Return what JSON can say of a value, without credentials in its texts and keys.

    A text that stands under a name of a secret (``HF_TOKEN``) or of such a header goes whole. What
    JSON has no word for becomes its ``str``.

    Parameters
    ----------
    value : object
        Dictionaries, lists, texts, numbers, as they would be given to ``json.dumps``.
    environment : mapping, optional
        Whose secrets are looked for. Default: this process's.

    Examples
    --------
    >>> redacted_values({"n": 1, "said": ['not "a-b c"'], "API_KEY": "other-1"}, {"TOKEN": "a-b c"})
    {'n': 1, 'said': ['not "a-b c"'], 'API_KEY': '***'}
    >>> redacted_values({"said": ["GET /?q=a-b%20c%22d"]}, {"TOKEN": 'a-b c"d'})
    {'said': ['GET /?q=***']}
    """
    return _redacted_values(value, _cleaner(environment), ())


def _redacted_values(value: Any, clean: Callable[[str], str], path: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if len(path) == DEEPEST or id(value) in path:
        return clean(str(value))
    path = (*path, id(value))
    if isinstance(value, list | tuple):
        return [_redacted_values(one, clean, path) for one in value]
    if isinstance(value, Mapping):
        return {
            clean(str(key)): HIDDEN
            if isinstance(one, str) and _hides(str(key), one)
            else _redacted_values(one, clean, path)
            for key, one in value.items()
        }
    return clean(str(value))


def _cleaner(environment: Mapping[str, str] | None) -> Callable[[str], str]:
    """Return what takes the credentials out of a text."""
    held = os.environ if environment is None else environment
    found = (value.strip() for name, value in held.items() if _is_secret(name, value))
    secrets = _pattern(frozenset(value for value in found if len(value) >= SHORTEST))

    def clean(text: str) -> str:
        if secrets is not None:
            text = secrets.sub(HIDDEN, text)
        for form in _FORMS:
            text = form.sub(_hidden, text)
        return text

    return clean


def _hidden(match: re.Match[str]) -> str:
    return match["kept"] + HIDDEN + (match.groupdict().get("after") or "")


@lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Return what finds these texts however they are written; the longest first."""
    ordered = sorted(secrets, key=lambda secret: (-len(secret), secret))
    return re.compile("|".join("".join(_written(s)) for s in ordered)) if ordered else None


def _written(secret: str) -> Iterator[str]:
    r"""Yield a pattern for each character: plain, as ``%22``, ``\"``, ``\u0022`` or ``\x22``.

    Backslashes before it may be several, where what was escaped was escaped again. A secret's own
    take all of them along, those of the next character too, and give none back: so there is one way
    to match a text, and none takes longer than it is long.
    """
    first = True
    for char, same in groupby(secret):
        n = len(list(same))
        if char == "\\":
            yield rf"(?:\\|%(?:25)*5[cC]){{{n},{8 * n + 8}}}+"
        elif char.isascii() and (char.isalnum() or char in "-._~"):
            yield re.escape(char) * n
        else:
            one = f"(?:{'|'.join(_ways(char, bare=not first))})"
            yield one + f"(?:{'|'.join(_ways(char))})" * (n - 1)
        first = char != "\\"


def _ways(char: str, *, bare: bool = False) -> Iterator[str]:
    """Yield a pattern for each way to write a character; ``bare``: its backslashes are taken."""
    encoded = char.encode("utf-8", "surrogateescape")
    units = char.encode("utf-16-be", "surrogatepass")
    short = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}.get(char)
    several = r"\\{1,8}"
    lead = "" if bare else several
    yield re.escape(char) if bare else rf"\\{{0,8}}{re.escape(char)}"
    yield "".join(rf"%(?:25)*(?i:{byte:02x})" for byte in encoded)
    yield lead + several.join(rf"x(?i:{byte:02x})" for byte in encoded)
    yield lead + several.join(rf"u(?i:{units[i : i + 2].hex()})" for i in range(0, len(units), 2))
    if ord(char) < 256:
        yield rf"{lead}x(?i:{ord(char):02x})"
    if ord(char) >= 1 << 16:
        yield rf"{lead}U(?i:{ord(char):08x})"
    if short:
        yield rf"{lead}{short}"
    if char == " ":
        yield r"\+"


def _hides(name: str, value: str) -> bool:
    """Whether a value is hidden for its name's sake."""
    named = len(value) >= SHORTEST and _is_secret(name, value)
    return named or _HEADER.fullmatch(name) is not None


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable's name says so; one that names a file, a number or a switch holds none."""
    found = _SECRET_NAME.search(name)
    if found is None or value.lower() in ("true", "false"):
        return False
    if value.startswith(os.sep):  # as one in 64 keys of S3 does
        return _PLACE.search(name) is None
    return not value.isdigit() or "PASS" in found[0].upper()
