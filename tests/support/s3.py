"""A local S3 server behind a proxy of ours that fails on purpose.

The server is moto's, in a process of its own. The proxy forwards to it, and by a seeded plan
answers 500 and 503, resets, stalls, cuts answers off, and loses acknowledgements: it forwards the
request and drops the connection, so that what was written is there and nobody was told.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BUCKET = "bucket"
FAULTS = ("500", "503", "reset", "stall", "truncate", "short", "lose", "lose-500", "409")
"""What may befall a request: two kinds of answers, a reset before the server is asked, no answer,
half an answer, half an answer that claims to be whole, an answer that is lost after the server did
it all, a 500 in the place of such an answer, and S3's ConditionalRequestConflict."""
KEY, SECRET = "AKIATESTINGTESTING01", "s3cr3t+Never/Shown+Anywhere+0123456789ab"


MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Serves until its stdin ends, at a port that the system chose."""


class Request:
    """What the proxy's plan may look at: method, path of the object, number from 1."""

    def __init__(self, number: int, method: str, path: str) -> None:
        self.number, self.method, self.path = number, method, path


Plan = Callable[[Request], str | None]
"""Which fault a request meets; None for none."""


def often(share: float, seed: int, kinds: tuple[str, ...] = FAULTS) -> Plan:
    """Let a share of all requests meet a fault, seeded."""
    rng, lock = random.Random(seed), threading.Lock()

    def plan(request: Request) -> str | None:
        with lock:
            fitting = [k for k in kinds if fits(k, request.method)]
            return rng.choice(fitting) if fitting and rng.random() < share else None

    return plan


def once(kind: str, method: str, part: str = "", times: int = 1) -> Plan:
    """Let the first requests of a method, whose path has a part, meet a fault."""
    left, lock = [times], threading.Lock()

    def plan(request: Request) -> str | None:
        with lock:
            if left[0] and request.method == method and part in request.path:
                left[0] -= 1
                return kind
        return None

    return plan


def always(kind: str, after: int = 0) -> Plan:
    """Let every request from a moment on meet the same fault."""
    start: list[int] = []
    lock = threading.Lock()

    def plan(request: Request) -> str | None:
        with lock:
            if not start:
                start.append(request.number)
        return kind if request.number >= start[0] + after else None

    return plan


def tell_size(url: str, out: Any) -> None:
    """Put the size of an object, or what kept us from it. Runs in a process of its own."""
    from actlas.store.objects.base import open_objects

    try:
        out.put(str(open_objects(url).size("x")))
    except RuntimeError as error:
        out.put(f"RuntimeError {error}")


def fits(kind: str, method: str) -> bool:
    """Whether a kind of fault makes sense for a method."""
    if kind in ("truncate", "short"):
        return method == "GET"
    if kind in ("lose", "lose-500", "409"):
        return method == "PUT"
    return True


ANSWERS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "409": (409, "ConditionalRequestConflict"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "InvalidAccessKeyId"),
    "unknown": (501, "NotImplemented"),
    "lose-500": (500, "InternalError"),
}


@dataclass
class S3:
    """The server and the proxy, running.

    Attributes
    ----------
    plan : callable
        Which request meets which fault; changed while it runs.
    stall_s : float
        How long a stalled request is left without an answer.
    page : int
        Names in one page of a listing.
    counts : Counter
        Requests by method, and faults by kind.
    """

    server: str
    endpoint: str
    plan: Plan = lambda _: None
    stall_s: float = 3.0
    page: int = 1000
    counts: Counter[str] = field(default_factory=Counter)

    def url(self, name: str) -> str:
        """The URL of a store."""
        return f"s3://{BUCKET}/{name}"

    def client(self) -> Any:
        """boto3's own client, past the proxy."""
        import boto3

        return boto3.client("s3", endpoint_url=self.server, **_credentials())

    def keys(self, name: str) -> list[str]:
        """Every key of a store, as boto3 lists them."""
        pages = (
            self.client()
            .get_paginator("list_objects_v2")
            .paginate(Bucket=BUCKET, Prefix=f"{name}/")
        )
        return sorted(o["Key"][len(name) + 1 :] for p in pages for o in p.get("Contents", []))

    def body(self, name: str, key: str) -> bytes:
        """An object's bytes, as boto3 gets them."""
        found: bytes = self.client().get_object(Bucket=BUCKET, Key=f"{name}/{key}")["Body"].read()
        return found

    def put(self, name: str, key: str, body: bytes) -> None:
        """Put an object over what is there."""
        self.client().put_object(Bucket=BUCKET, Key=f"{name}/{key}", Body=body)

    def copy(self, source: str, target: str) -> None:
        """Copy a store whole."""
        client = self.client()
        for key in self.keys(source):
            client.copy_object(
                Bucket=BUCKET,
                Key=f"{target}/{key}",
                CopySource={"Bucket": BUCKET, "Key": f"{source}/{key}"},
            )

    def environment(self) -> dict[str, str]:
        """What a process needs to come here through the proxy, and to lose patience soon."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "ACTLAS_REQUEST_TIMEOUT_S": "1",
            "ACTLAS_RETRY_S": "30",
            "ACTLAS_READERS": "8",
        }


def _credentials() -> dict[str, str]:
    return {
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "region_name": "us-east-1",
    }


@contextmanager
def running() -> Iterator[S3]:
    """Run the server and the proxy, with one bucket."""
    process = subprocess.Popen(
        [sys.executable, "-c", MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        line = process.stdout.readline()
        assert line, f"moto does not start: it ended with {process.wait()}"
        port = int(line)
        proxy = _Proxy(("127.0.0.1", 0), port)
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        s3 = S3(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{proxy.server_address[1]}")
        proxy.s3 = s3
        s3.client().create_bucket(Bucket=BUCKET)
        try:
            yield s3
        finally:
            proxy.shutdown()
            proxy.server_close()
            thread.join()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """One server for all tests."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with running() as s3:
        yield s3


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server without faults, and an environment that leads to it."""
    from actlas.store.objects import remote_requests

    for name in [name for name in os.environ if name.startswith(("AWS_", "ACTLAS_R"))]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3_server.counts.clear()
    remote_requests._outages.clear()
    yield s3_server
    s3_server.plan, s3_server.page, s3_server.stall_s = (lambda _: None), 1000, 3.0


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    block_on_close = False

    def __init__(self, address: tuple[str, int], upstream: int) -> None:
        super().__init__(address, _Handler)
        self.upstream = upstream
        self.s3: S3
        self.lock = threading.Lock()
        self.number = 0
        self.writing: dict[str, threading.Lock] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients that give up are the point."""

    def next(self, method: str, path: str) -> Request:
        with self.lock:
            self.number += 1
            self.s3.counts[method] += 1
            return Request(self.number, method, path)

    def turn(self, path: str) -> threading.Lock:
        """moto looks whether an object is there and then writes it: two PUTs of one key must not
        do so at once, or both would be the first."""
        with self.lock:
            return self.writing.setdefault(path, threading.Lock())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Proxy

    def setup(self) -> None:
        super().setup()
        self._upstream: HTTPConnection | None = None

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self._body()
        request = self.server.next(self.command, self.path)
        s3 = self.server.s3
        fault = s3.plan(request)
        if fault is not None:
            with self.server.lock:
                s3.counts[fault] += 1
        if fault == "reset":
            return self._reset()
        if fault == "stall":
            time.sleep(s3.stall_s)
            return self._reset()
        if fault in ANSWERS and fault != "lose-500":
            return self._refuse(*ANSWERS[fault])
        if fault == "ignore":  # as servers do that do not know the header
            del self.headers["If-None-Match"]
        if self.command == "PUT":
            with self.server.turn(self.path):
                answer, data = self._forward(body)
        else:
            answer, data = self._forward(body)
        if fault == "lose":
            return self._reset()
        if fault == "lose-500":
            return self._refuse(*ANSWERS[fault])
        if fault == "short":  # half of it, and a header that says that this is all
            data = data[: len(data) // 2]
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault == "truncate" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            return self._reset()
        while fault == "drip" and data:  # never a stall, and never done
            self.wfile.write(data[:1])
            self.wfile.flush()
            data = data[1:]
            time.sleep(s3.stall_s / 200)
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()
        return None

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        path = self.path
        if "list-type=2" in path:  # moto checks no signature
            path += f"&max-keys={self.server.s3.page}"
        for last in (False, True):
            if self._upstream is None:
                self._upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
            try:
                self._upstream.request(self.command, path, body, headers)
                answer = self._upstream.getresponse()
                return answer, answer.read()
            except (HTTPException, OSError):
                self._upstream.close()
                self._upstream = None
                if last:
                    raise
        raise AssertionError

    def _refuse(self, status: int, code: str) -> None:
        # As S3 does, the answer repeats what nobody should see.
        secret = f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId><Token-0>{SECRET}</Token-0>"
        body = f"<Error><Code>{code}</Code><Message>no</Message>{secret}</Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _reset(self) -> None:
        """Send what is written so far, then a reset in the place of the rest."""
        self.close_connection = True
        try:
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        except OSError:
            return
