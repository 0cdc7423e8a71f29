"""Opening a bucket: what a URL may say, which clients are made of it, how patient they are.

Credentials come from where obstore looks for them (the environment, a role of the machine or the
pod). They are never part of a URL, so they never reach a store, a receipt, a message or a log.
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
"""What has a conditional PUT. Only S3 is tested."""

SLOWEST_BYTES_PER_S = 1 << 20
"""A request may take so long as its bytes take at this rate, on top of the request timeout."""

SMALL_BYTES = 16 << 20

LONGEST_READ_S = 3600.0

_VENDORS = ("AWS_", "GOOGLE_", "AZURE_", "ACTLAS_")

_process: int | None = None
"""The process in which obstore's threads run."""


class Settings(NamedTuple):
    """How patient the clients are: from the environment, so that workers inherit it.

    Attributes
    ----------
    request_s : float
        ``ACTLAS_REQUEST_TIMEOUT_S``: one request that is not answered is given up after this.
    retry_s : float
        ``ACTLAS_RETRY_S``: how long a request is tried again before the store counts as out.
    n_readers : int
        ``ACTLAS_READERS``: range requests in flight at once.
    read_s : float
        An answer that keeps coming is given up after this.
    """

    request_s: float = 30.0
    retry_s: float = 120.0
    n_readers: int = 64
    read_s: float = LONGEST_READ_S

    @staticmethod
    def now() -> Settings:
        """Return what the environment says now.

        Raises
        ------
        ConfigError
            One of them is no number above 0.
        """
        default = Settings()
        return Settings(
            _number("ACTLAS_REQUEST_TIMEOUT_S", default.request_s),
            _number("ACTLAS_RETRY_S", default.retry_s),
            max(1, round(_number("ACTLAS_READERS", default.n_readers))),
        )

    def within(self, limit_s: float) -> Settings:
        """Return settings no more patient than so many seconds, for one try and for all."""
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
    """Return a bucket's URL without a slash at its end.

    Raises
    ------
    ConfigError
        It names no bucket, holds credentials, or leaves its prefix. The message repeats nothing of
        what may be secret.
    StoreNotFoundError
        Nothing here opens its scheme.
    """
    scheme = text.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise StoreNotFoundError(
            f"got a {scheme}:// URL; this version opens folders and "
            f"{', '.join(f'{s}://' for s in SCHEMES)}. An endpoint of your own is given as "
            "AWS_ENDPOINT_URL, the store as s3://bucket/prefix."
        )
    parts = urlsplit(text)
    # abfs://container@account.dfs.core.windows.net/prefix is how Azure writes it.
    user = parts.netloc.rpartition("@")[0]
    if parts.query or parts.fragment or (user and (scheme not in ("abfs", "abfss") or ":" in user)):
        raise ConfigError(
            f"a {scheme}:// URL with a user, a password, a query or a signature in it was given "
            "(it is not repeated here). Expected the bucket and the prefix alone, such as "
            f"{scheme}://bucket/run.zarr; credentials come from the environment.",
            field="store",
        )
    path = parts.path.strip("/")
    if not parts.netloc or any(part in ("", ".", "..") for part in path.split("/") if path):
        raise ConfigError(f"{text}: expected {scheme}://bucket/prefix", field="store")
    return f"{scheme}://{parts.netloc}" + (f"/{path}" if path else "")


def client(url: str, settings: Settings, n_sent: int | None = None) -> ObjectStore:
    """Return the client of a URL, to send so many bytes with a request, or to read any number.

    A stall ends after ``request_s``. While bytes are sent nothing tells it from a slow line: then a
    request may last as long again as its bytes take at ``SLOWEST_BYTES_PER_S``.

    Raises
    ------
    ConfigError
        obstore is not installed, or cannot make a client of this URL and this environment.
    RuntimeError
        This process was forked from one that uses object stores: obstore's threads stayed there,
        and a request would wait for ever.
    """
    _stay_in_process()
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
        options["read_timeout"] = timedelta(seconds=request_s)  # between two pieces of an answer
    # The first few tries are obstore's own; what it gives up is tried again until `retry_s`.
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
    try:
        return from_url(target, **more)
    except (BaseError, ValueError) as error:
        said = str(error).splitlines()[0] if not _secret(str(error)) else type(error).__name__
        raise ConfigError(f"{url}: no client can be made of it: {said}", field="store") from None


def _allowed_http() -> bool:
    names = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in names)


def _secret(text: str) -> bool:
    """Whether a text repeats a value from the environment that may be a secret."""
    words = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL")
    return any(
        len(value) > 3 and value in text
        for name, value in os.environ.items()
        if name.startswith(_VENDORS) and any(word in name for word in words)
    )


def _stay_in_process() -> None:
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise RuntimeError(
            "this process was forked from one that already used an object store, and the threads "
            "of its client stayed behind: a request would never be answered. Start processes with "
            "the method `spawn` or `forkserver`."
        )
