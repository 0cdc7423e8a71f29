"""The address of a Ray cluster: a check of its port, and authentication with a token.

Ray 2.60 itself retries a refused token for 20 s with a line each time, and then reports only that
it could not connect.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NamedTuple

from actlas.store.errors import ConfigError

ANSWER_S = 5.0
"""Seconds that a head may take to answer an authentication request."""

MODE = "RAY_AUTH_MODE"
"""Environment variable that turns token authentication on."""

_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""Request without content that a head answers with the cluster's id."""

TOKEN_SOURCES = "RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token"

_SET_IT = (
    "Set RAY_AUTH_TOKEN_PATH to a file with the head's token, readable only by you, or "
    "RAY_AUTH_TOKEN to the token."
)


class Token(NamedTuple):
    """An authentication token.

    Attributes
    ----------
    text : str
        The token, which is secret.
    source : str
        The environment variable or file that it was read from.
    """

    text: str
    source: str


def mode() -> str:
    """Return the value of ``RAY_AUTH_MODE``: ``token``, ``disabled``, or an empty string."""
    return os.environ.get(MODE, "").lower()


def token() -> Token | None:
    """Return the token of this user, from the sources that Ray reads and in its order.

    Returns
    -------
    Token or None
        The token; None if no source has one.

    Raises
    ------
    ConfigError
        ``RAY_AUTH_TOKEN_PATH`` names a file without a token, or the text cannot be a token. (Ray
        would abort the process.)
    """
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _checked(text, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        text, reason = path.read_text(encoding="utf-8").strip(), "it is empty"
    except (OSError, UnicodeDecodeError) as error:
        text, reason = "", getattr(error, "strerror", None) or str(error)
    if text:
        return _checked(text, str(path))
    if named or mode() == "token":
        raise ConfigError(f"no token for the cluster in {path}: {reason}. {_SET_IT}")
    return None


def _checked(text: str, source: str) -> Token:
    if not (text.isascii() and text.isprintable()):
        raise ConfigError(
            f"{source}: expected a token, got {len(text):,} characters, some of which are not "
            f"printable ASCII. {_SET_IT}"
        )
    return Token(text, source)


def accepts_token(address: str, text: str | None) -> bool | None:
    """Return whether the head at ``host:port`` accepts a token, or a client without one.

    Parameters
    ----------
    address : str
        ``host:port`` of the head.
    text : str or None
        The token; None to ask without one.

    Returns
    -------
    bool or None
        None if that is unknown: the server is not a head, speaks TLS or answers too late, or grpc
        is not installed.
    """
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:
        return None  # grpc is installed with ray[default]
    metadata = (("authorization", f"Bearer {text}"),) if text is not None else ()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_METHOD)(b"", timeout=ANSWER_S, metadata=metadata)
        except grpc.RpcError as error:
            return False if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return True


def authenticate(address: str) -> None:
    """Check that the head at ``host:port`` accepts this user, before Ray connects.

    If the head requires a token, this user's token is right, and ``RAY_AUTH_MODE`` is not set, it
    is set to ``token``: Ray does so for the address ``auto``, but not for others.

    Parameters
    ----------
    address : str
        ``host:port`` of the head.

    Raises
    ------
    ConfigError
        The head requires a token, and this user's token is missing or wrong.
    """
    if os.environ.get("RAY_ENABLE_K8S_TOKEN_AUTH"):
        return  # tokens of Kubernetes are found and checked in other ways
    sent = token() if mode() == "token" else None
    if accepts_token(address, sent and sent.text) is not False:
        return
    if sent is None and not mode() and (sent := token()) and accepts_token(address, sent.text):
        if "ray" in sys.modules:
            raise refused(address, "this process sends none", f"Export {MODE}=token.")
        os.environ[MODE] = "token"
        return
    if sent is not None:
        raise refused(address, f"the one from {sent.source} is wrong")
    if mode():
        raise refused(address, f"{MODE}={mode()} prevents sending one", f"Unset {MODE}.")
    raise refused(address, "none was sent")


def refused(address: str, reason: str, what_next: str = _SET_IT) -> ConfigError:
    """Return the error of a cluster that refuses this user.

    Parameters
    ----------
    address : str
        Address of the cluster.
    reason : str
        Why the token is missing or wrong.
    what_next : str
        What to do.
    """
    return ConfigError(
        f"{address}: the cluster requires a token, and {reason}. {what_next}", address=address
    )


PORT_CHECK_S = 5.0
"""Seconds that a port may take to accept a connection."""


def check_port(address: str) -> str | None:
    """Return why the port at an address accepts no connection.

    Returns None if the port accepts, or if ``address`` has no ``host:port`` (``auto``). Ray 2.60
    itself retries for over 100 s with lines of its own.

    Parameters
    ----------
    address : str
        Address of a Ray cluster.

    Examples
    --------
    >>> check_port("auto")
    """
    where = host_and_port(address)
    if where is None:
        return None
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PORT_CHECK_S).close()
    except OSError as error:
        return f"nothing answers at {address} ({error.strerror or error})"
    return None


def host_and_port(address: str) -> str | None:
    """Return the ``host:port`` of a Ray address, or None if it has none.

    Parameters
    ----------
    address : str
        Address of a Ray cluster.

    Examples
    --------
    >>> host_and_port("ray://head:10001"), host_and_port("auto")
    ('head:10001', None)
    """
    where = address.removeprefix("ray://")
    host, _, port = where.rpartition(":")
    return where if host and port.isascii() and port.isdigit() and int(port) <= 65535 else None
