"""A log per process, as JSON lines, in the store's own folder: ``ledger/logs/``."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from actlas.store.inside import Inside
from actlas.store.objects import is_url
from actlas.store.redact import redacted

LOGGER = logging.getLogger("actlas")
FOLDER = "ledger/logs"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and whatever was given as ``extra``."""

    _own = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        body: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "host": socket.gethostname(),
            "pid": record.process,
            "message": record.getMessage(),
        }
        body |= {k: v for k, v in vars(record).items() if k not in self._own and k[0] != "_"}
        if record.exc_info:
            body["traceback"] = self.formatException(record.exc_info)
        return redacted(json.dumps(body, ensure_ascii=False, default=str))


class _File(logging.FileHandler):
    """Gives up, saying so once, where the log cannot be written: the work itself goes on."""

    _ended = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        LOGGER.removeHandler(self)
        self._give_up(sys.exc_info()[1])

    def close(self) -> None:
        """Close, with what is still in the buffer; a disk that is full by now is only told of."""
        try:
            super().close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: BaseException | None) -> None:
        if not self._ended:
            sys.stderr.write(f"the log {self.baseFilename} ends here: {error}\n")
        self._ended = True


def start(store_path: str, role: str) -> logging.Handler:
    """Log to a new file of this process in a store's folder, until :func:`end`."""
    if is_url(store_path):
        return logging.NullHandler()
    root = Path(store_path).absolute()
    folder = Inside(root).folder(root / FOLDER)
    handler: logging.Handler
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"{stamp}-{socket.gethostname()}-{os.getpid()}-{role}.jsonl"
        handler = _File(folder / name, encoding="utf-8", delay=False)
    except OSError as error:
        sys.stderr.write(f"no log in {folder}: {error}\n")
        handler = logging.NullHandler()
    handler.setFormatter(JsonLines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    return handler


def end(handler: logging.Handler) -> None:
    """Close a log."""
    LOGGER.removeHandler(handler)
    handler.close()
