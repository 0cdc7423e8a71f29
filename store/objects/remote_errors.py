"""What an object store's error means, in words that hold no secret.

Answers of S3 repeat access keys, and of an expired session the session token itself: nothing of an
answer but its status and its code is ever passed on.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from actlas.store.errors import RunFaultError

Kind = Literal["missing", "exists", "range", "passing", "final"]

_STATUS = re.compile(r"status code: (?P<status>\d{3})(?P<words>[A-Za-z -]*)")

_CODE = re.compile(r"<Code>(?P<code>[A-Za-z0-9]{1,64})</Code>")

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")

_NO_CREDENTIALS = ("169.254.169.254", "169.254.170.2", "metadata.google", "MissingCredential")

_CREDENTIAL_CODES = (
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "AuthenticationFailed",
)


class Trouble(NamedTuple):
    """What went wrong with a request.

    Attributes
    ----------
    kind : str
        ``missing``: no such object. ``exists``: a conditional write found one, or met another.
        ``range``: the object ends before what was asked for. ``passing``: worth another try.
        ``final``: the same request would fail again.
    words : str
        What is known, without secrets.
    hint : str
        What to do.
    everywhere : bool
        Whether every other object meets it too, where it is ``final``: the credentials, the bucket
        or the endpoint are at fault. A 403 alone says nothing of the kind: rules of a bucket may
        be about single keys.
    """

    kind: Kind
    words: str
    hint: str = "wait until the store answers again"
    everywhere: bool = False


def trouble(error: Exception) -> Trouble:
    """Return what an error of obstore means."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    number = int(status["status"]) if status else 0
    words = f"{number}{status['words'].rstrip()}" if status else _first(error)
    words += f" ({code['code']})" if code else ""
    if any(sign in text for sign in _NO_CREDENTIALS):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        return Trouble("final", "no credentials were found", hint, everywhere=True)
    if any(sign in text for sign in _NO_BUCKET):
        hint = "make the bucket or mend the URL"
        return Trouble("final", f"no such bucket: {words}", hint, everywhere=True)
    if isinstance(error, FileNotFoundError):
        return Trouble("missing", words)
    name = type(error).__name__
    if name in ("AlreadyExistsError", "PreconditionError") or number == 412:
        return Trouble("exists", words)
    said = code["code"] if code else ""
    nobody = number == 401 or name == "UnauthenticatedError" or said in _CREDENTIAL_CODES
    if nobody or number == 403 or name == "PermissionDeniedError" or said == "AccessDenied":
        hint = "renew the credentials, or give them the right to read, write, list and delete there"
        return Trouble("final", f"refused: {words}", hint, everywhere=nobody)
    if number == 416:
        return Trouble("range", words)
    if number >= 500 or number in (408, 409, 429) or said == "RequestTimeout":
        return Trouble("passing", words)
    if number:
        return Trouble("final", words, "look at the bucket's rules and at the endpoint")
    if "BadScheme" in text:
        hint = "set AWS_ALLOW_HTTP=true if you mean to send it unencrypted"
        return Trouble("final", "the endpoint is http:// and not https://", hint, everywhere=True)
    return Trouble("passing", words)


def _first(error: Exception) -> str:
    """Say in a few words what kind of failure it was that has no status."""
    text = str(error)
    for sign, words in (
        ("TimedOut", "not answered in time"),
        ("timed out", "not answered in time"),
        ("Connect", "no connection"),
        ("body", "the answer was cut off"),
    ):
        if sign in text:
            return words
    return "the connection broke"


def outage(url: str, found: Trouble, seconds: float = 0.0) -> RunFaultError:
    """Return the run fault that a trouble becomes when no more tries are made."""
    tried = f", tried for {seconds:.0f} s" if seconds >= 1 else ""
    return RunFaultError(
        f"{url}: {found.words}{tried}. Nothing already written is harmed: {found.hint}, then run "
        "the same command again.",
        path=url,
    )
