"""Ports for servers that are told theirs before they start."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

FIRST, LAST = 20_000, 30_000
"""Below the range from which systems choose ports by themselves: nobody is given one by chance
between its choice here and its use."""


def free_ports(n: int) -> list[int]:
    """Return ports that nothing listens at, different ones in processes that ask at once."""
    return [port for _, port in zip(range(n), _free(), strict=False)]


def _free() -> Iterator[int]:
    first = FIRST + 16 * os.getpid() % (LAST - FIRST)
    for port in (*range(first, LAST), *range(FIRST, first)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        yield port
