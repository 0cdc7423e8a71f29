"""The job server of a Ray cluster: submit a command, follow its log, return its exit code.

Ray's own ``ray job submit`` exits with 1 for any failed command. The server does keep the exit
code, and :meth:`JobServer.follow` returns it.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from actlas.jobs.ray import address as ray_token
from actlas.jobs.ray.follow import first_line, follow, limit_requests
from actlas.store.errors import (
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_RESUME,
    ActlasError,
    ConfigError,
)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Address of the dashboard of a head on this machine."""

CONNECT_S = 10.0
"""Seconds that a server may take to answer the first request."""

SUBMIT_PAUSES_S = (1.0, 2.0, 4.0)
"""Seconds between tries to submit a job whose connection breaks."""

_ADDRESS = re.compile(r"https?://[^/\s@?#]+/?")

_TOLD_TO_STOP = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP})

_INFRASTRUCTURE = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT")


class JobServer:
    """Client of a cluster's job server, which has answered and accepted this user.

    Parameters
    ----------
    address : str, optional
        ``http://HEAD:8265``. Default: ``RAY_API_SERVER_ADDRESS``, an http ``RAY_ADDRESS``, or
        this machine.

    Raises
    ------
    ConfigError
        The address is invalid, nothing answers, or the token is missing or wrong.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _checked(address)
        _use_token()
        _probe(self.address)
        # In Ray this variable takes precedence over the client's argument, then RAY_ADDRESS.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            from ray.exceptions import AuthenticationError, RayError
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ConfigError(
                f"submitting requires Ray ({error}): pip install 'actlas[extract]'"
            ) from error
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        try:
            self._client: Any = JobSubmissionClient(self.address)
        except AuthenticationError as error:
            raise _refused(self.address, str(error)) from error
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise ConfigError(
                f"{self.address}: the server is not a Ray job server ({first_line(error)}). Give "
                "the address of the head's dashboard, http://HEAD:8265.",
                address=self.address,
            ) from error
        limit_requests(self._client)

    def submit(
        self, entrypoint: str, *, environment: Mapping[str, str], metadata: Mapping[str, str]
    ) -> str:
        """Submit a shell command to the head, and return the submission id. Nothing is uploaded.

        Parameters
        ----------
        entrypoint : str
            The shell command.
        environment : mapping
            Environment variables of the command.
        metadata : mapping
            Metadata that Ray shows with the job.

        Raises
        ------
        ActlasError
            The server refuses the job, or no connection to it lasts long enough.
        """
        job = f"raysubmit_{uuid.uuid4().hex[:16]}"  # known here, so that no try makes a second job
        asked = {
            "entrypoint": entrypoint,
            "runtime_env": {"env_vars": dict(environment)},
            "metadata": dict(metadata),
        }
        for pause in (*SUBMIT_PAUSES_S, None):
            try:
                self._client.submit_job(submission_id=job, **asked)
                return job
            except (OSError, RuntimeError) as error:
                if self._has(job):  # the answer was lost, or is to a second try
                    return job
                reason = first_line(error)
                if not isinstance(error, OSError):
                    message = f"{self.address}: the job was refused: {reason}"
                    raise ActlasError(message) from error
                if pause is None:
                    raise ActlasError(
                        f"{self.address}: the connection broke ({reason}). The job may have been "
                        f"submitted all the same: ray job status --address {self.address} {job}",
                        job=job,
                    ) from error
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _has(self, job: str) -> bool:
        from ray.exceptions import RayError

        try:
            self._client.get_job_info(job)
        except (OSError, RuntimeError, RayError):
            return False
        return True

    def follow(self, job: str, write: Callable[[str], None]) -> int:
        """Write a job's log as it grows, and return the exit code of its command.

        Parameters
        ----------
        job : str
            The submission id.
        write : callable
            Receives the text of the log.

        Returns
        -------
        int
            The command's exit code; 75 if it was stopped, killed, or lost with its head.

        Raises
        ------
        InterruptedRunError
            The server has not answered for two minutes. The job may go on.
        ConfigError
            The server refuses the token by now. The job may go on.
        """
        from ray.exceptions import AuthenticationError

        try:
            info = follow(self._client, job, write, self.address)
        except AuthenticationError as error:
            raise _refused(self.address, str(error)) from error
        return exit_code_of(info, write)


def exit_code_of(info: Any, write: Callable[[str], None]) -> int:
    """Return the exit code of a finished job, and write the reason that its own log cannot have.

    Parameters
    ----------
    info : ray.job_submission.JobDetails
        The server's record of the job.
    write : callable
        Receives the reason.
    """
    status, code = str(info.status.value), info.driver_exit_code
    if status == "STOPPED":
        write("the job was stopped; finished shards are kept: submit it again to resume\n")
        return EXIT_RESUME
    if code is None and status == "SUCCEEDED":
        return EXIT_DONE
    if code is None:
        write(f"the job failed: {first_line(info.message or 'Ray gives no reason')}\n")
        lost = str(getattr(info.error_type, "value", info.error_type)) in _INFRASTRUCTURE
        return EXIT_RESUME if lost else EXIT_ERROR
    if code == 127:
        write("the head has no `actlas` on its PATH: all nodes need the same image\n")
        return EXIT_ERROR
    number = -code if code < 0 else code - 128
    if number <= 0:
        return int(code)
    write(f"the driver was killed by signal {number}; finished shards are kept: submit it again\n")
    return EXIT_RESUME if number in _TOLD_TO_STOP else EXIT_ERROR


def _checked(address: str | None) -> str:
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if given is None and os.environ.get("RAY_ADDRESS", "").startswith("http"):
        given = os.environ["RAY_ADDRESS"]
    given = given or DEFAULT_ADDRESS
    if not _ADDRESS.fullmatch(given):
        raise ConfigError(
            f"got {given!r}, expected the address of the head's dashboard, such as "
            "http://HEAD:8265: jobs are submitted there, not at the workers' port (6379)",
            address=given,
        )
    return given.rstrip("/")


def _use_token() -> None:
    """Turn token authentication on if there is a token, since Ray's client leaves it off.

    Raises
    ------
    ConfigError
        A token is required and none is found. (Ray would abort the process.)
    """
    if ray_token.mode() in ("", "token") and ray_token.token() is not None:
        os.environ[ray_token.MODE] = "token"


def _probe(url: str) -> None:
    """Raise if nothing answers; Ray's own client would wait for minutes."""
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=CONNECT_S):
            return
    except urllib.error.HTTPError:
        return  # it answers; the token is checked later
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"nothing answers at {url} ({reason}): check that the head runs with "
            "--include-dashboard=true and that this machine can reach its port 8265. From "
            "outside: ssh -L 8265:localhost:8265 HEAD, or kubectl port-forward.",
            address=url,
        ) from error


def _refused(address: str, text: str) -> ConfigError:
    missing = text.startswith("Authentication required")
    return ray_token.refused(
        address, "none was sent" if missing else "the one that was sent is wrong"
    )
