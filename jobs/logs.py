"""A log per process as JSON lines in the store's folder ``ledger/logs/``."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from actlas.jobs.redaction import redacted, redacted_values
from actlas.jobs.terminal import echo
from actlas.store.display.pace import Pace
from actlas.store.objects.base import is_url, open_objects
from actlas.store.objects.local_paths import LocalPaths

LOGGER = logging.getLogger("actlas")

FOLDER = "ledger/logs"

WRITE_S, LAST_WRITE_S = 10.0, 10.0
"""Seconds between two writes of a log in a bucket, and time limit of the last write."""

MAX_BYTES = 4 << 20
"""Size from which a log in a bucket continues in another object."""


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time, level, message, and the fields of ``extra``."""

    _own = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON, without credentials."""
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
        line = json.dumps(redacted_values(body), ensure_ascii=False)
        return line.encode("utf-8", "backslashreplace").decode()  # escapes lone surrogates


class _File(logging.FileHandler):
    """A log file. If it cannot be written, one message is printed, and the work goes on."""

    _ended = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        LOGGER.removeHandler(self)
        self._give_up(sys.exc_info()[1])

    def close(self) -> None:
        """Write the buffer and close the file; an error is only printed."""
        try:
            super().close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: BaseException | None) -> None:
        if not self._ended:
            echo(f"the log {self.baseFilename} ends here: {redacted(str(error))}", err=True)
        self._ended = True


class _Object(logging.Handler):
    """A log in a bucket. Objects cannot be appended to, so the log is rewritten at intervals.

    A separate thread writes, so that the work never waits. A log beyond ``MAX_BYTES`` continues in
    the next numbered object. While the bucket is unavailable, lines wait; beyond ``MAX_BYTES`` of
    waiting lines, further ones are dropped and counted.

    Parameters
    ----------
    store_url : str
        URL of the store.
    name : str
        Name of the log without number and suffix.
    """

    def __init__(self, store_url: str, name: str) -> None:
        super().__init__()
        self._url, self._name = store_url, name
        self._lines: list[str] = []
        self._n_bytes = self._number = self._n_dropped = 0
        self._written = 0
        self._reported = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="actlas-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line for the writing thread. Called under the handler's lock."""
        try:
            line = self.format(record) + "\n"
        except Exception:  # noqa: BLE001 - reported by logging itself
            self.handleError(record)
            return
        if self._n_bytes > 2 * MAX_BYTES:
            self._n_dropped += 1
            return
        self._lines.append(line)
        self._n_bytes += len(line.encode())

    def close(self) -> None:
        """Write the remaining lines, for at most ``LAST_WRITE_S`` seconds."""
        self._ended.set()
        self._thread.join(LAST_WRITE_S)
        super().close()

    def _write_on(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(WRITE_S)
            try:
                self._write()
            except Exception as error:  # noqa: BLE001 - a log must not stop the work
                if not self._reported:
                    self._reported = True
                    words = redacted(str(error)).splitlines() or [type(error).__name__]
                    name = f"{self._url}/{FOLDER}/{self._name}"
                    echo(f"the log {name} is delayed: {words[0]}", err=True)

    def _write(self) -> None:
        assert self.lock is not None
        with self.lock:
            n = len(self._lines)
            body = "".join(self._lines).encode()
        if n == self._written:
            return
        key = f"{FOLDER}/{self._name}.{self._number:04d}.jsonl"
        open_objects(self._url).replace(key, body)
        self._written = n
        if len(body) > MAX_BYTES:
            with self.lock:
                del self._lines[:n]
                self._n_bytes -= len(body)
                self._number, self._written = self._number + 1, 0
                if self._n_dropped:
                    lost = json.dumps({"level": "warning", "dropped_lines": self._n_dropped}) + "\n"
                    self._lines.append(lost)
                    self._n_dropped = 0


def start(store_path: str, role: str) -> logging.Handler:
    """Open the log of this process in a store, as a file or an object, until :func:`end`.

    Parameters
    ----------
    store_path : str
        Path or URL of the store.
    role : str
        Role of the process, for the log's name.

    Returns
    -------
    logging.Handler
        Handler to pass to :func:`end`.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    name = f"{stamp}-{socket.gethostname()}-{os.getpid()}-{role}"
    handler: logging.Handler
    try:
        if is_url(store_path):
            handler = _Object(store_path, name)
        else:
            root = Path(store_path.removeprefix("file://")).absolute()
            folder = LocalPaths(root).folder(root / FOLDER)  # an untrusted store may link elsewhere
            folder.mkdir(parents=True, exist_ok=True)
            handler = _File(folder / f"{name}.jsonl", encoding="utf-8", delay=False)
    except OSError as error:
        echo(redacted(f"no log in {store_path}/{FOLDER}: {error}"), err=True)
        handler = logging.NullHandler()
    handler.setFormatter(JsonLines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    return handler


def end(handler: logging.Handler) -> None:
    """Close a log that :func:`start` opened."""
    LOGGER.removeHandler(handler)
    handler.close()


class NowAndThen:
    """Prints lines of progress to stderr as they become due, for work without a display.

    As a context manager it ends with the last line that was not due, where lines were printed
    before: the count of a long work ends with its whole number.
    """

    def __init__(self) -> None:
        self._pace = Pace()
        self._printed = False
        self._held_back: str | None = None

    def __call__(self, text: str) -> None:
        """Print a line if one is due."""
        if self._pace.due():
            self._printed, self._held_back = True, None
            echo(text, err=True)
        else:
            self._held_back = text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None and self._printed and self._held_back is not None:
            echo(self._held_back, err=True)
            self._held_back = None
