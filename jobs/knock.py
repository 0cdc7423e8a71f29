"""Whether anything listens at an address, before a library waits for it for minutes."""

from __future__ import annotations

import socket

KNOCK_S = 5.0


def knock(address: str) -> str | None:
    """Return why nothing accepts at ``host:port``; None where something does.

    None also for what is no such address (``auto``). Ray 2.60 itself tries for over 100 s,
    telling of it in lines of its own.

    >>> knock("auto")
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except OSError as error:
        return f"nothing answers at {address} ({error.strerror or error})"
    return None
