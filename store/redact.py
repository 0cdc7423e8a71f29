"""What must not be written down: credentials in messages, tracebacks and logs.

Errors of libraries quote URLs and headers. Here whatever has the form of a credential in them, and
every value that the environment holds under a name such as ``AWS_SECRET_ACCESS_KEY`` or
``HF_TOKEN``, becomes ``***``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 6
"""Values of fewer characters are no secrets, and would be found everywhere."""

_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY|SAS|"
    r"(ACCESS|API|ACCOUNT|PRIVATE|STORAGE|AUTH|ACCESS_KEY|SECRET_ACCESS)_KEY(_ID)?)(_|$)",
    re.IGNORECASE,
)
_FORMS = (
    re.compile(r"(?P<kept>\b[a-z][a-z0-9+.\-]*://)[^/\s@'\"]+@", re.IGNORECASE),
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
    re.compile(r"(?P<kept>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/\-]{8,}=*", re.IGNORECASE),
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
    held = os.environ if environment is None else environment
    secrets = {
        value for name, value in held.items() if len(value) >= SHORTEST and _is_secret(name, value)
    }
    for secret in sorted(secrets | {quote(s, safe="") for s in secrets}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for form in _FORMS:
        replacement = r"\g<kept>" + HIDDEN + ("@" if form is _FORMS[0] else "")
        text = form.sub(replacement, text)
    return text


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable's name says so; one that names a file, a number or a switch holds none."""
    plain = value.lower() in ("true", "false") or value.isdigit() or os.sep in value[:1]
    return _SECRET_NAME.search(name) is not None and not plain
