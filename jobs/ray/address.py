"""The token of a Ray cluster: where ours is, and whether a head lets us in with it.

Ray 2.60 itself tries for 20 s, telling of each time in a line of its own, and then says only that
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

MODE = "RAY_AUTH_MODE"

_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What a head is asked: its name, by a request without content."""

WHERE_TOKENS_ARE = "RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token"

_SET_IT = (
    "Set RAY_AUTH_TOKEN_PATH to a file with the token that the head was started with (only you may "
    "read it), or RAY_AUTH_TOKEN to the token."
)


class Token(NamedTuple):
    """A token, and where it was found. The text is for nobody's eyes."""

    text: str
    source: str


def mode() -> str:
    """Return what ``RAY_AUTH_MODE`` says: ``token``, ``disabled``, or nothing."""
    return os.environ.get(MODE, "").lower()


def token() -> Token | None:
    """Return our token, from where Ray looks for it, in its order; None where there is none.

    Raises
    ------
    ConfigError
        ``RAY_AUTH_TOKEN_PATH`` names a file without one, or what is there cannot be one. (Ray
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
            f"{source}: expected a token, got {len(text):,} characters of which some can be in "
            f"none (line breaks, or beyond ASCII). {_SET_IT}"
        )
    return Token(text, source)


def accepts_token(address: str, text: str | None) -> bool | None:
    """Return whether the head at ``host:port`` lets in who has this token, or none.

    None where it does not say: what answers is no head, or speaks TLS, or answers too late; or
    where we cannot ask.
    """
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:
        return None  # it comes with ray[default]
    metadata = (("authorization", f"Bearer {text}"),) if text is not None else ()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_METHOD)(b"", timeout=ANSWER_S, metadata=metadata)
        except grpc.RpcError as error:
            return False if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return True


def authenticate(address: str) -> None:
    """Make sure that the head at ``host:port`` lets us in, before Ray tries.

    Where it asks for a token, we have the right one, and nothing says whether tokens are sent,
    they are from here on: as Ray does for ``auto``, but not for an address.

    Raises
    ------
    ConfigError
        It wants a token, and ours is missing or wrong.
    """
    if os.environ.get("RAY_ENABLE_K8S_TOKEN_AUTH"):
        return  # Kubernetes' own tokens are found and judged in other ways
    sent = token() if mode() == "token" else None
    if accepts_token(address, sent and sent.text) is not False:
        return
    if sent is None and not mode() and (sent := token()) and accepts_token(address, sent.text):
        if "ray" in sys.modules:
            raise refused(address, "none is sent", f"Export {MODE}=token.")
        os.environ[MODE] = "token"
        return
    if sent is not None:
        raise refused(address, f"ours is not it (from {sent.source})")
    if mode():
        raise refused(address, f"{MODE}={mode()} keeps ours here", f"Unset {MODE}.")
    raise refused(address, "none was sent")


def refused(address: str, reason: str, what_next: str = _SET_IT) -> ConfigError:
    """Return that a cluster refuses us, and what to do."""
    return ConfigError(
        f"{address}: the cluster wants its token, and {reason}. {what_next}", address=address
    )


PORT_CHECK_S = 5.0


def check_port(address: str) -> str | None:
    """Return why nothing accepts at ``host:port``; None where something does.

    None also for what is no such address (``auto``). Ray 2.60 itself tries for over 100 s,
    telling of it in lines of its own.

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
    """Return the ``host:port`` of an address of Ray's, or None where it names none.

    >>> host_and_port("ray://head:10001"), host_and_port("auto")
    ('head:10001', None)
    """
    where = address.removeprefix("ray://")
    host, _, port = where.rpartition(":")
    return where if host and port.isascii() and port.isdigit() and int(port) <= 65535 else None
