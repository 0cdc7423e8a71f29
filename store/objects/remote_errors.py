"""Classification of the errors of an object store, in messages without secrets.

S3's error bodies repeat access keys, and for an expired session the session token itself.
Therefore only the status and the error code of an answer appear in messages.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from actlas.store.errors import PlaceError, RunFaultError

Kind = Literal["missing", "exists", "range", "transient", "permanent"]

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


class RequestFailure(NamedTuple):
    """The failure of a request.

    Attributes
    ----------
    kind : str
        ``missing``: the object does not exist. ``exists``: a conditional write found an object, or
        met another write. ``range``: the object ends before the requested range. ``transient``: a
        retry may succeed. ``permanent``: a retry would fail again.
    message : str
        The cause, without secrets.
    hint : str
        What to do.
    everywhere : bool
        Whether a ``permanent`` failure concerns every object: the credentials, the bucket or the
        endpoint are wrong. A 403 alone does not mean that, since a bucket's rules may be about
        single keys.
    again : bool
        Whether a ``permanent`` failure ends a run with exit code 75: the credential expired or is
        not known, and the same command goes on with another. A missing right, bucket or variable
        is a fault of the place: exit code 2.
    """

    kind: Kind
    message: str
    hint: str = "wait until the store answers again"
    everywhere: bool = False
    again: bool = False


def classify(error: Exception) -> RequestFailure:
    """Classify an error of obstore."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    number = int(status["status"]) if status else 0
    message = f"{number}{status['words'].rstrip()}" if status else _first(error)
    message += f" ({code['code']})" if code else ""
    if any(sign in text for sign in _NO_CREDENTIALS):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        return RequestFailure("permanent", "no credentials were found", hint, everywhere=True)
    if any(sign in text for sign in _NO_BUCKET):
        hint = "create the bucket or correct the URL"
        return RequestFailure("permanent", f"no such bucket: {message}", hint, everywhere=True)
    if isinstance(error, FileNotFoundError):
        return RequestFailure("missing", message)
    name = type(error).__name__
    if name in ("AlreadyExistsError", "PreconditionError") or number == 412:
        return RequestFailure("exists", message)
    said = code["code"] if code else ""
    nobody = number == 401 or name == "UnauthenticatedError" or said in _CREDENTIAL_CODES
    if nobody or number == 403 or name == "PermissionDeniedError" or said == "AccessDenied":
        hint = "renew the credentials, or give them the right to read, write, list and delete there"
        refused = f"refused: {message}"
        return RequestFailure("permanent", refused, hint, everywhere=nobody, again=nobody)
    if number == 416:
        return RequestFailure("range", message)
    if number >= 500 or number in (408, 409, 429) or said == "RequestTimeout":
        return RequestFailure("transient", message)
    if number:
        return RequestFailure(
            "permanent", message, "look at the bucket's rules and at the endpoint"
        )
    if "BadScheme" in text:
        hint = "set AWS_ALLOW_HTTP=true if you mean to send it unencrypted"
        return RequestFailure(
            "permanent", "the endpoint is http:// and not https://", hint, everywhere=True
        )
    return RequestFailure("transient", message)


def _first(error: Exception) -> str:
    """Describe in a few words a failure without an HTTP status."""
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


def outage(url: str, found: RequestFailure, seconds: float = 0.0) -> RunFaultError:
    """Return the error for a request that is not retried again: a ``PlaceError`` if none helps.

    Parameters
    ----------
    url : str
        The object's URL.
    found : RequestFailure
        The last failure.
    seconds : float
        The time for which the request was retried.
    """
    tried = f", tried for {seconds:.0f} s" if seconds >= 1 else ""
    error = PlaceError if found.kind == "permanent" and not found.again else RunFaultError
    return error(
        f"{url}: {found.message}{tried}. Nothing already written is harmed: {found.hint}, then run "
        "the same command again.",
        path=url,
    )
