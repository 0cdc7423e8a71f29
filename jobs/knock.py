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
    where = host_and_port(address)
    if where is None:
        return None
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
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
