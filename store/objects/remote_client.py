"""Clients of object stores: which URLs are accepted, and their timeouts and retries.

obstore finds the credentials (in the environment, or in a role of the machine or pod). They are
never part of a URL, so they never reach a store, a receipt, a message or a log.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from actlas.store.errors import ConfigError, StoreNotFoundError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
"""URL schemes of object stores with a conditional PUT. Only S3 is tested."""

SLOWEST_BYTES_PER_S = 1 << 20
"""The slowest rate at which a request's body is expected to be sent: 1 MiB/s."""

SMALL_BYTES = 16 << 20
"""A request body of at most this size gets no extra time."""

LONGEST_READ_S = 3600.0
"""The maximum duration of one answer, in seconds."""

_VENDORS = ("AWS_", "GOOGLE_", "AZURE_", "ACTLAS_")

_process: int | None = None
"""The id of the process in which obstore's threads run."""


class Settings(NamedTuple):
    """Timeouts and concurrency of the clients, taken from the environment that workers inherit.

    Attributes
    ----------
    request_s : float
        ``ACTLAS_REQUEST_TIMEOUT_S``: seconds without an answer after which a request fails.
    retry_s : float
        ``ACTLAS_RETRY_S``: seconds for which a failing request is retried.
    n_readers : int
        ``ACTLAS_READERS``: the number of concurrent range requests.
    read_s : float
        The maximum duration of one answer, in seconds.
    """

    request_s: float = 30.0
    retry_s: float = 120.0
    n_readers: int = 64
    read_s: float = LONGEST_READ_S

    @staticmethod
    def now() -> Settings:
        """Return the settings that the environment gives now.

        Raises
        ------
        ConfigError
            A variable is not a number above 0.
        """
        default = Settings()
        return Settings(
            _number("ACTLAS_REQUEST_TIMEOUT_S", default.request_s),
            _number("ACTLAS_RETRY_S", default.retry_s),
            max(1, round(_number("ACTLAS_READERS", default.n_readers))),
        )

    def within(self, limit_s: float) -> Settings:
        """Return settings with every time limited to ``limit_s`` seconds."""
        request_s, retry_s, read_s = (
            min(seconds, limit_s) for seconds in (self.request_s, self.retry_s, self.read_s)
        )
        return self._replace(request_s=request_s, retry_s=retry_s, read_s=read_s)


def _number(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ConfigError(f"{name}: got {text!r}, expected a number above 0", field=name)
    return value


def parse_url(text: str) -> str:
    """Return a bucket's URL without a trailing slash.

    Raises
    ------
    ConfigError
        The URL names no bucket, contains credentials, or leaves its prefix. The message does not
        repeat anything that may be secret.
    StoreNotFoundError
        The scheme is not supported.
    """
    scheme = text.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise StoreNotFoundError(
            f"got a {scheme}:// URL; this version opens folders and "
            f"{', '.join(f'{s}://' for s in SCHEMES)}. For an endpoint of your own set "
            "AWS_ENDPOINT_URL, and give the store as s3://bucket/prefix."
        )
    parts = urlsplit(text)
    # Azure writes abfs://container@account.dfs.core.windows.net/prefix.
    user = parts.netloc.rpartition("@")[0]
    if parts.query or parts.fragment or (user and (scheme not in ("abfs", "abfss") or ":" in user)):
        raise ConfigError(
            f"got a {scheme}:// URL that contains a user, a password, a query or a signature (not "
            "repeated here). Expected the bucket and the prefix alone, such as "
            f"{scheme}://bucket/run.zarr; credentials come from the environment.",
            field="store",
        )
    path = parts.path.strip("/")
    if not parts.netloc or any(part in ("", ".", "..") for part in path.split("/") if path):
        raise ConfigError(f"{text}: expected {scheme}://bucket/prefix", field="store")
    return f"{scheme}://{parts.netloc}" + (f"/{path}" if path else "")


def client(url: str, settings: Settings, n_sent: int | None = None) -> ObjectStore:
    """Return a client for a URL, with timeouts that suit the size of the request's body.

    A request that stalls fails after ``request_s``. While a body is sent, a stall cannot be told
    from a slow connection: such a request may take the additional time that its bytes need at
    ``SLOWEST_BYTES_PER_S``.

    Parameters
    ----------
    url : str
        The bucket and the prefix.
    settings : Settings
        Timeouts and retries.
    n_sent : int, optional
        The number of bytes in the request's body; None for a read.

    Raises
    ------
    ConfigError
        obstore is not installed, or cannot create a client for this URL and this environment.
    RuntimeError
        This process was forked from one that uses object stores. obstore's threads exist only in
        the parent, so a request would never be answered.
    """
    _refuse_fork()
    slow_s: float | None = None
    if n_sent is not None:
        size = max(SMALL_BYTES, 1 << max(0, n_sent - 1).bit_length())
        slow_s = 0.0 if size == SMALL_BYTES else size / SLOWEST_BYTES_PER_S
    environment = {k: v for k, v in os.environ.items() if k.startswith(_VENDORS)}
    key = hash(tuple(sorted(environment.items())))
    return _client(url, settings, slow_s, key)


@lru_cache(maxsize=64)
def _client(url: str, settings: Settings, slow_s: float | None, _environment: int) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise ConfigError(
            f"{url}: opening a bucket needs obstore ({error}): pip install 'actlas[cloud]'."
        ) from error
    request_s = settings.request_s
    options: ClientConfig = {
        "timeout": timedelta(seconds=settings.read_s if slow_s is None else request_s + slow_s),
        "connect_timeout": timedelta(seconds=min(5.0, request_s)),
        "allow_http": _allowed_http(),
    }
    if slow_s is None:
        options["read_timeout"] = timedelta(seconds=request_s)  # between two parts of an answer
    # obstore makes the first few retries; Requests retries what it gives up, until `retry_s`.
    retry: RetryConfig = {
        "max_retries": 3 if settings.retry_s else 0,
        "retry_timeout": timedelta(seconds=settings.retry_s),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    target = f"{scheme}://{bucket}/{quote(prefix)}"
    more: dict[str, Any] = {"client_options": options, "retry_config": retry}
    if scheme in ("s3", "s3a"):
        # Objects are deleted one by one, and not every server knows DeleteObjects.
        more["disable_bulk_delete"] = True
    try:
        return from_url(target, **more)
    except (BaseError, ValueError) as error:
        said = str(error).splitlines()[0] if not _secret(str(error)) else type(error).__name__
        raise ConfigError(
            f"{url}: cannot create a client for this URL: {said}", field="store"
        ) from None


def _allowed_http() -> bool:
    names = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in names)


def _secret(text: str) -> bool:
    """Return whether a text repeats a value of the environment that may be a secret."""
    words = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL")
    return any(
        len(value) > 3 and value in text
        for name, value in os.environ.items()
        if name.startswith(_VENDORS) and any(word in name for word in words)
    )


def _refuse_fork() -> None:
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise RuntimeError(
            "this process was forked from one that had used an object store. The threads of its "
            "client exist only in the parent, so a request would never be answered. Start "
            "processes with the method `spawn` or `forkserver`."
        )
