"""The command line in a process that sends itself a signal when it has written a chosen file.

``python -m support.signalled SIGKILL 3 /ledger/receipts/extract/ extract STORE ...`` kills itself
when its third file whose path holds those words has its final name. So a test need not guess when a
process is in the middle of its work.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from actlas.jobs.cli.app import main


def after(number: int, nth: int, words: str) -> None:
    """Send this process a signal once.

    Parameters
    ----------
    number : int
        The signal.
    nth : int
        After this file of those that count, from 1, has got its final name.
    words : str
        Files count whose path holds these words.
    """
    lock, n_named = threading.Lock(), 0

    def watched(real: Any) -> Any:
        def call(staged: Any, final: Any, **named: Any) -> Any:
            nonlocal n_named
            result = real(staged, final, **named)
            if words in os.fspath(final):
                with lock:
                    n_named += 1
                    if n_named == nth:
                        os.kill(os.getpid(), number)
            return result

        return call

    for name in ("link", "replace", "rename"):
        setattr(os, name, watched(getattr(os, name)))


if __name__ == "__main__":
    name, nth, words, *arguments = sys.argv[1:]
    after(signal.Signals[name], int(nth), words)
    main(arguments)
