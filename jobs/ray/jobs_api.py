"""The job server of a Ray cluster: submit a command there, follow its log, learn its exit code.

Ray's own ``ray job submit`` ends with 1 whatever the command ended with; its server does keep the
exit code, and :meth:`JobServer.follow` returns it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from actlas.jobs.ray import address as ray_token
from actlas.store.errors import (
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_RESUME,
    ActlasError,
    ConfigError,
    InterruptedRunError,
)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

CONNECT_S = 10.0

LOST_AFTER_S = 60.0
"""A job is given up as out of sight after this long without an answer; it may well go on."""

_ADDRESS = re.compile(r"https?://[^/\s@?#]+/?")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_TOLD_TO_STOP = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP})

_INFRASTRUCTURE = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT")


class JobServer:
    """A cluster's job server that answers and lets us in.

    Parameters
    ----------
    address : str, optional
        ``http://HEAD:8265``. Default: ``RAY_API_SERVER_ADDRESS``, an http ``RAY_ADDRESS``, or
        this machine.

    Raises
    ------
    ConfigError
        The address is none, nothing answers there, or the token is missing or wrong.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _checked(address)
        _use_token()
        _probe(self.address)
        # Ray lets this variable win over what its client is given, and RAY_ADDRESS after it.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            from ray.exceptions import AuthenticationError, RayError
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ConfigError(
                f"submitting needs Ray ({error}): pip install 'actlas[extract]'"
            ) from (error)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        try:
            self._client: Any = JobSubmissionClient(self.address)
        except AuthenticationError as error:
            raise _refused(self.address, str(error)) from error
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise ConfigError(
                f"{self.address}: what answers there is no Ray job server ({_first(error)}). "
                "Give the head's dashboard, http://HEAD:8265.",
                address=self.address,
            ) from error

    def submit(
        self, entrypoint: str, *, environment: Mapping[str, str], metadata: Mapping[str, str]
    ) -> str:
        """Have the head run a shell command, and return the submission's id. Nothing is uploaded.

        Raises
        ------
        ActlasError
            The server refuses it.
        """
        try:
            job: str = self._client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"env_vars": dict(environment)},
                metadata=dict(metadata),
            )
        except (OSError, RuntimeError) as error:
            raise ActlasError(f"{self.address}: the job was not taken: {_first(error)}") from error
        return job

    def follow(self, job: str, write: Callable[[str], None]) -> int:
        """Pass a job's log on as it grows, and return what its command exited with.

        Returns
        -------
        int
            The command's own exit code; 75 where it was stopped, killed, or lost with its head.

        Raises
        ------
        InterruptedRunError
            The server has not answered for a minute. The job may go on.
        """
        import aiohttp
        from ray.exceptions import RayError

        n_shown, answered = 0, time.monotonic()
        while True:
            try:
                n_shown = asyncio.run(self._tail(job, n_shown, write))
                info = self._client.get_job_info(job)
            except (OSError, RuntimeError, RayError, aiohttp.ClientError) as error:
                if time.monotonic() - answered > LOST_AFTER_S:
                    raise InterruptedRunError(
                        f"{self.address} has not answered for {LOST_AFTER_S:.0f} s "
                        f"({_first(error)}): the job is out of sight and may go on."
                    ) from error
            else:
                answered = time.monotonic()
                if info.status.is_terminal():
                    return exit_code_of(info, write)
            time.sleep(1)

    async def _tail(self, job: str, n_shown: int, write: Callable[[str], None]) -> int:
        """Pass on what comes after the first ``n_shown`` characters; return how many there are."""
        n_read = 0
        async for text in self._client.tail_job_logs(job):
            n_read += len(text)
            if n_read > n_shown:
                write(_CONTROL.sub(_escaped, text[n_shown - n_read :]))
                n_shown = n_read
        return n_shown


def exit_code_of(info: Any, write: Callable[[str], None]) -> int:
    """Return the exit code of a job that is over, saying what its own log cannot say."""
    status, code = str(info.status.value), info.driver_exit_code
    if status == "STOPPED":
        write("the job was stopped; nothing done is lost: submit it again to go on\n")
        return EXIT_RESUME
    if code is None and status == "SUCCEEDED":
        return EXIT_DONE
    if code is None:
        write(f"the job failed: {_first(info.message or 'Ray does not say why')}\n")
        lost = str(getattr(info.error_type, "value", info.error_type)) in _INFRASTRUCTURE
        return EXIT_RESUME if lost else EXIT_ERROR
    if code == 127:
        write("the head has no `actlas` on its PATH: every node needs the same image\n")
        return EXIT_ERROR
    number = -code if code < 0 else code - 128
    if number <= 0:
        return int(code)
    write(f"the driver was killed by signal {number}; nothing done is lost: submit it again\n")
    return EXIT_RESUME if number in _TOLD_TO_STOP else EXIT_ERROR


def _checked(address: str | None) -> str:
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if given is None and os.environ.get("RAY_ADDRESS", "").startswith("http"):
        given = os.environ["RAY_ADDRESS"]
    given = given or DEFAULT_ADDRESS
    if not _ADDRESS.fullmatch(given):
        raise ConfigError(
            f"got {given!r}, expected the head's dashboard, such as http://HEAD:8265: jobs are "
            "submitted there, not at the port that workers join (6379)",
            address=given,
        )
    return given.rstrip("/")


def _use_token() -> None:
    """Turn Ray's token authentication on where there is a token: its client leaves it off.

    Raises
    ------
    ConfigError
        A token is asked for and there is none. (Ray would abort the process.)
    """
    if ray_token.mode() in ("", "token") and ray_token.token() is not None:
        os.environ[ray_token.MODE] = "token"


def _probe(url: str) -> None:
    """Raise where nothing answers: Ray's own client would wait for minutes."""
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=CONNECT_S):
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is asked with the token
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"nothing answers at {url} ({reason}): is the head up, started with "
            "--include-dashboard=true, and its port 8265 within reach of here? From outside: "
            "ssh -L 8265:localhost:8265 HEAD, or kubectl port-forward.",
            address=url,
        ) from error


def _refused(address: str, text: str) -> ConfigError:
    missing = text.startswith("Authentication required")
    return ray_token.refused(address, "none was sent" if missing else "ours is not it")


def _first(error: object) -> str:
    lines = str(error).strip().splitlines()
    return _CONTROL.sub(_escaped, lines[0])[:300] if lines else type(error).__name__


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
