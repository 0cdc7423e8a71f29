"""Following a job through connections that break, on a real server of Ray's Jobs API.

The server is aiohttp's, speaks what Ray 2.60's dashboard speaks, and breaks connections as networks
do: it aborts them, ends them too early, answers with 503, stays silent. The oracle is the log that
it holds.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from actlas.jobs.ray import follow as following
from actlas.jobs.ray import jobs_api
from actlas.store.errors import EXIT_QUARANTINE, ActlasError, ConfigError, InterruptedRunError

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("ray.job_submission", reason="ray[default] is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # Ray's own client

JOB = "raysubmit_1"
LOG = "".join(f"line {n}: {'é' * (n % 7)}\n" for n in range(60))
INFO = {
    "type": "SUBMISSION",
    "submission_id": JOB,
    "entrypoint": "actlas",
    "status": "RUNNING",
    "driver_exit_code": None,
}

Fate = Callable[["Server", Any], Any]
"""What becomes of one connection to the log, after some of the log was sent."""


class Server:
    """A job server with one job. Each connection to its log has the next fate; the last one stays.

    Attributes
    ----------
    now : float
        The seconds that the client believes to have passed.
    n_known : int
        The characters of the log that the job has written so far.
    """

    def __init__(self) -> None:
        self.now, self.n_known, self.status = 0.0, 0, "RUNNING"
        self.fates: list[Fate] = []
        self.submissions: list[str] = []
        self.jobs = [JOB]
        self.n_connections = self.n_infos = 0
        self.answers = 200
        self._ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _serve(self) -> None:
        from aiohttp import web

        async def start() -> None:
            app = web.Application()
            app.router.add_get("/api/version", self.version)
            app.router.add_post("/api/jobs/", self.submit)
            app.router.add_get("/api/jobs/{job}", self.info)
            app.router.add_get(f"/api/jobs/{JOB}/logs", self.logs)
            app.router.add_get(f"/api/jobs/{JOB}/logs/tail", self.tail)
            self.runner = web.AppRunner(app, shutdown_timeout=0.1)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            self.address = f"http://127.0.0.1:{port}"
            self._ready.set()

        self.loop.run_until_complete(start())
        self.loop.run_forever()
        self.loop.close()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)

    async def version(self, _: Any) -> Any:
        names = ("version", "ray_version", "ray_commit", "session_name")
        return aiohttp.web.json_response({**dict.fromkeys(names, "2.60.0"), "version": "4"})

    async def submit(self, request: Any) -> Any:
        asked = (await request.json())["submission_id"]
        known = asked in self.jobs
        fate = self.submissions.pop(0)
        if fate in ("taken", "lost") and not known:
            self.jobs.append(asked)
        if fate != "taken":
            request.transport.abort()
        if known:
            return aiohttp.web.Response(status=500, text=f"{asked} already exists")
        return aiohttp.web.json_response({"job_id": None, "submission_id": asked})

    async def info(self, request: Any) -> Any:
        self.n_infos += 1
        if request.match_info["job"] not in self.jobs:
            return aiohttp.web.Response(status=404, text="does not exist")
        if self.answers != 200:
            return aiohttp.web.Response(status=self.answers, text="Unauthorized")
        code = 3 if self.status == "FAILED" else None
        return aiohttp.web.json_response({**INFO, "status": self.status, "driver_exit_code": code})

    async def logs(self, _: Any) -> Any:
        return aiohttp.web.json_response({"logs": LOG[: self.n_known]})

    async def tail(self, request: Any) -> Any:
        self.n_connections += 1
        fate = self.fates.pop(0) if len(self.fates) > 1 else self.fates[0]
        ws = aiohttp.web.WebSocketResponse()
        if (answer := await fate(self, (request, ws))) is not None:
            return answer
        return ws


async def send(server: Server, ws: Any, upto: int, piece: int = 37) -> None:
    server.n_known = max(server.n_known, upto)
    for at in range(0, upto, piece):
        await ws.send_str(LOG[at : min(at + piece, upto)])


def aborted(upto: int, after_s: float = 100.0) -> Fate:
    """Send the log so far, and break the connection after some time."""

    async def fate(server: Server, connection: Any) -> None:
        request, ws = connection
        await ws.prepare(request)
        await send(server, ws, upto)
        await asyncio.sleep(0.02)  # the text arrives
        server.now += after_s
        request.transport.abort()

    return fate


def ended(upto: int) -> Fate:
    """Send the log so far, and end the connection in all politeness, as a proxy does."""

    async def fate(server: Server, connection: Any) -> None:
        request, ws = connection
        await ws.prepare(request)
        await send(server, ws, upto, piece=211)

    return fate


def refused(status: int = 503) -> Fate:
    async def fate(server: Server, connection: Any) -> Any:
        return aiohttp.web.Response(status=status)

    return fate


def done(upto: int) -> Fate:
    """The job has ended: send the log up to somewhere, and close."""

    async def fate(server: Server, connection: Any) -> None:
        request, ws = connection
        await ws.prepare(request)
        server.status = "FAILED"
        await send(server, ws, upto, piece=1000)
        server.n_known = len(LOG)

    return fate


def silent(server: Server, connection: Any) -> Any:
    async def fate() -> None:
        request, ws = connection
        await ws.prepare(request)
        await send(server, ws, 100)
        await asyncio.sleep(30)

    return fate()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    server = Server()

    def sleep(seconds: float) -> None:
        server.now += seconds

    clock = SimpleNamespace(monotonic=lambda: server.now, sleep=sleep)
    monkeypatch.setattr(following, "time", clock)
    monkeypatch.setattr(jobs_api, "time", clock)
    yield server
    server.stop()


def followed(server: Server) -> tuple[str, int]:
    said: list[str] = []
    code = jobs_api.JobServer(server.address).follow(JOB, said.append)
    return "".join(said), code


def test_breaks_of_a_job_that_is_old(server: Server) -> None:
    """Hours go by, and a connection breaks now and then: nothing is lost, nothing is twice."""
    cuts = [0, 300, 300, 640, 650, 900, len(LOG)]
    server.fates = [aborted(cut, after_s=3600) for cut in cuts] + [done(len(LOG))]
    assert followed(server) == (LOG, EXIT_QUARANTINE)
    assert server.n_connections == len(cuts) + 1


def test_any_breaks(server: Server) -> None:
    rng = random.Random(0)
    for _ in range(6):
        server.status, upto, server.n_known = "RUNNING", 0, 0
        server.fates = []
        for _ in range(rng.randrange(1, 8)):
            upto = min(len(LOG), upto + rng.randrange(200))
            kinds = [aborted(upto, 90), ended(upto), refused(), aborted(max(0, upto - 50), 90)]
            server.fates.append(rng.choice(kinds))
        server.fates.append(done(rng.randrange(len(LOG))))
        assert followed(server) == (LOG, EXIT_QUARANTINE)


def test_a_connection_that_is_dead_without_a_sign(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SILENT_AFTER_S", 0.2)
    server.fates = [silent, silent, done(len(LOG))]
    assert followed(server) == (LOG, EXIT_QUARANTINE)
    assert server.n_connections == 3


def test_a_server_that_is_gone(server: Server) -> None:
    """It is asked again with growing pauses, for two minutes from the first failure on."""
    server.fates = [aborted(300, after_s=3600), refused()]
    said: list[str] = []
    client = jobs_api.JobServer(server.address)
    with pytest.raises(InterruptedRunError, match="has not answered for 120 s"):
        client.follow(JOB, said.append)
    assert "".join(said) == LOG[:300]
    assert 3720 < server.now < 3740
    assert 13 < server.n_connections < 20


def test_a_token_that_is_refused_by_now(server: Server) -> None:
    server.fates, server.answers = [ended(300)], 401
    with pytest.raises(ConfigError, match="token"):
        followed(server)
    assert server.n_infos == 1


def test_an_output_that_is_closed_is_no_broken_connection(server: Server) -> None:
    def closed(_: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    server.fates = [ended(300)]
    with pytest.raises(BrokenPipeError):
        jobs_api.JobServer(server.address).follow(JOB, closed)
    assert server.n_connections == 1


def test_a_log_whose_end_cannot_be_had(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head may go as soon as the job has ended: its exit code stands."""

    server.fates = [done(len(LOG))]
    monkeypatch.setattr(
        "ray.job_submission.JobSubmissionClient.get_job_logs",
        lambda *_: (_ for _ in ()).throw(RuntimeError("gone")),
    )
    text, code = followed(server)
    assert text == LOG + "the end of the log may be missing: gone\n"
    assert code == EXIT_QUARANTINE


@pytest.mark.parametrize(
    "fates",
    [["taken"], ["lost"], ["broken", "taken"], ["broken", "lost"], [*["broken"] * 3, "lost"]],
)
def test_a_job_is_submitted_once_through_breaks(server: Server, fates: list[str]) -> None:
    """Whether the request or its answer is lost: one job, and its id."""
    server.submissions = list(fates)
    job = jobs_api.JobServer(server.address).submit("actlas", environment={}, metadata={})
    assert server.jobs == [JOB, job]
    assert server.submissions == []


def test_a_submission_that_never_arrives(server: Server) -> None:
    server.submissions = ["broken"] * 9
    with pytest.raises(ActlasError, match="may have been submitted all the same: ray job status"):
        jobs_api.JobServer(server.address).submit("actlas", environment={}, metadata={})
    assert server.jobs == [JOB] and len(server.submissions) == 5


def test_a_submission_that_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.submissions, server.jobs = ["taken"], []
    client = jobs_api.JobServer(server.address)
    monkeypatch.setattr(client._client, "submit_job", refuses)
    with pytest.raises(ActlasError, match="the job was refused: no"):
        client.submit("actlas", environment={}, metadata={})


def refuses(**_: Any) -> None:
    raise RuntimeError("no")
