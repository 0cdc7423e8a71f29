"""Redaction of credentials in messages, tracebacks and logs.

Errors of libraries quote URLs and headers. Texts with the form of a credential, and the values of
environment variables such as ``AWS_SECRET_ACCESS_KEY`` or ``HF_TOKEN``, are replaced by ``***``:
in plain form, and as URLs, JSON, ``repr`` and bytes encode them.

Values for JSON are redacted one by one before they are encoded (:func:`redacted_values`), because a
match in encoded JSON that ends at an escaped quote would include the escape.
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
"""Shortest value, in characters, that is treated as a secret; shorter ones occur everywhere."""

DEEPEST = 32
"""Depth of nesting beyond which a list or dictionary is converted to one text."""

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
    re.compile(  # a URL that was parsed as a path
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
    re.compile(  # but not "basic configuration": base64 of name and password has more than letters
        r"(?P<kept>\bbasic\s+)(?=[A-Za-z+/]*[0-9=]|[A-Za-z0-9+/]{20})[A-Za-z0-9+/]{8,}=*",
        re.IGNORECASE,
    ),
)


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return text without credentials.

    Parameters
    ----------
    text : str
        A message, a traceback, or a line of a log.
    environment : mapping, optional
        Environment whose secrets are redacted. Default: that of this process.

    Examples
    --------
    >>> redacted("GET https://me:pass@host/x?X-Amz-Signature=abc&n=1 failed", {})
    'GET https://***@host/x?X-Amz-Signature=***&n=1 failed'
    >>> redacted("token hf_abcdef is not valid", {"HF_TOKEN": "hf_abcdef"})
    'token *** is not valid'
    """
    return _cleaner(environment)(text)


def redacted_values(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Return a value as JSON types, without credentials in its texts and keys.

    A text under the name of a secret (``HF_TOKEN``) or of an authorization header is replaced as a
    whole. A value of a type that JSON does not have becomes its ``str``.

    Parameters
    ----------
    value : object
        Dictionaries, lists, texts and numbers, as for ``json.dumps``.
    environment : mapping, optional
        Environment whose secrets are redacted. Default: that of this process.

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
    """Return a function that redacts the credentials in a text."""
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
    """Return a pattern of these secrets in all their encodings, the longest first."""
    ordered = sorted(secrets, key=lambda secret: (-len(secret), secret))
    return re.compile("|".join("".join(_written(s)) for s in ordered)) if ordered else None


def _written(secret: str) -> Iterator[str]:
    r"""Yield a pattern for each character: plain, as ``%22``, ``\"``, ``\u0022`` or ``\x22``.

    Repeated escaping puts several backslashes before a character. A backslash of the secret itself
    matches all backslashes that follow, including those of the next character, possessively. So a
    text can be matched in one way only, and matching takes linear time.
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
    """Yield a pattern for each encoding of a character; ``bare``: without its backslashes."""
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
    """Return whether a value is hidden because of its name."""
    named = len(value) >= SHORTEST and _is_secret(name, value)
    return named or _HEADER.fullmatch(name) is not None


def _is_secret(name: str, value: str) -> bool:
    """Return whether a variable's name marks a secret that is no path, number or switch."""
    found = _SECRET_NAME.search(name)
    if found is None or value.lower() in ("true", "false"):
        return False
    if value.startswith(os.sep):  # as one in 64 S3 keys does
        return _PLACE.search(name) is None
    return not value.isdigit() or "PASS" in found[0].upper()
