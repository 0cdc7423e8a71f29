"""``actlas submit``: run an extraction on a Ray cluster, from any machine that reaches its head.

The code comes in the image of the cluster's nodes; nothing is uploaded. What the configuration
says travels as dotted overrides in the job's command line, which Ray shows in its dashboard: so
nothing secret may stand there, and nothing of this machine's environment goes along.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.config import SECTIONS, Asked, resolve
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import duration
from actlas.jobs.ray import address as ray_token
from actlas.store.errors import EXIT_DONE, EXIT_RESUME, ConfigError, InterruptedRunError

if TYPE_CHECKING:
    from actlas.jobs.ray.jobs_api import JobServer

MAX_BYTES = 100_000
"""Of a command line: Ray hands it to a shell as one argument, and Linux takes 131,071 bytes."""

_OVERRIDE = re.compile(r"\w+\.\w+=.*", re.DOTALL)

_SECRET = re.compile(r"://[^/\s]*@|[?&](X-Amz-[\w-]+|sig|signature|token|access_?key\w*)=", re.I)

_PLAIN = re.compile(r"[A-Za-z/][\w/.:-]*[\w/]", re.ASCII)

_OURS = frozenset({"executor", "address"})


def entrypoint(store: str, asked: Asked) -> str:
    """Return the shell command that the head runs.

    Parameters
    ----------
    store : str
        A URL, or a path that every node sees.
    asked : Asked
        What was given, checked; what was not is left to the defaults of the cluster's actlas.

    Raises
    ------
    ConfigError
        A value holds credentials, or the command line would be too long.

    Examples
    --------
    >>> from actlas.jobs.config import resolve
    >>> entrypoint("s3://b/run.zarr", resolve({}, ["plan.seed=3", "run.device=cuda"]))
    'actlas extract s3://b/run.zarr --executor ray --address auto plan.seed=3 run.device=cuda'
    """
    run = asked.run.model_dump(mode="json")
    given: dict[str, Any] = {f"plan.{key}": value for key, value in asked.plan.items()}
    for name in asked.origin:
        section, _, key = name.partition(".")
        if section == "run" and key not in _OURS:
            given[name] = run[key]
    words = ["actlas", "extract", store, "--executor", "ray", "--address", "auto"]
    words += [f"{name}={_yaml(value)}" for name, value in given.items()]
    for name, value in {"the store": store, **given}.items():
        if _SECRET.search(str(value)):
            raise ConfigError(
                f"{name} holds credentials, and a job's command line is shown to everyone who "
                "sees Ray's dashboard. Give them to the cluster's nodes, by their environment.",
                key=name,
            )
    text = shlex.join(words)
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(
            f"the configuration is {len(text.encode()):,} bytes as a command line, at most "
            f"{MAX_BYTES:,} can be submitted: shorten lists by globs (resid_post.*)."
        )
    return text


def _yaml(value: Any) -> str:
    """Return a value as one line of YAML that reads back as itself."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) is not None
    if plain and yaml.safe_load(value) == value:
        return str(value)
    quote = '"' if isinstance(value, str | list) else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=quote, width=1 << 30)
    return text.removesuffix("\n").removesuffix("\n...")


def where(config: str, rest: Sequence[str]) -> tuple[str, Asked]:
    """Return the store and what is asked for, from a file and what follows it.

    Raises
    ------
    ConfigError
        No store is named, or see :func:`actlas.jobs.config.resolve`.
    """
    named = rest[0] if rest and not _OVERRIDE.fullmatch(rest[0]) else None
    asked = resolve({}, rest[1:] if named is not None else rest, config)
    store = named or asked.store
    if not store:
        raise ConfigError(
            f"no store to extract into: a line `store: s3://bucket/run.zarr` in {config}, or "
            f"actlas submit {config} STORE",
        )
    if "://" not in store:  # as with a corpus: every node must see this path
        store = os.path.abspath(Path(store).expanduser())  # noqa: PTH100 - keep links
    return store, asked


def _ray_job(*words: str) -> str:
    """Return a command of Ray's, which sends a token only where it is told to: as we were."""
    sends = f"{ray_token.MODE}=token " if ray_token.mode() == "token" else ""
    return sends + shlex.join(["ray", "job", *words])


def _follow(server: JobServer, job: str, told: str) -> int:
    try:
        return server.follow(job, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"\nno longer following; the job goes on -> next: {told}", err=True)
        return EXIT_RESUME
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error} -> next: {told}") from error


@click.command("submit", short_help="Run an extraction on a Ray cluster.")
@click.argument("config", metavar="CONFIG.yaml", type=click.Path())
@click.argument("rest", nargs=-1, metavar=f"[STORE] [{'|'.join(SECTIONS)}.KEY=VALUE]...")
@click.option(
    "--address",
    metavar="URL",
    help="Of the head's dashboard, http://HEAD:8265.  [default: RAY_API_SERVER_ADDRESS, else "
    "http://127.0.0.1:8265]",
)
@click.option(
    "--follow/--no-follow",
    default=True,
    help="Show the job's log, and end with its exit code.  [default: follow]",
)
@click.option(
    "--drain",
    "drain_s",
    metavar="SECONDS",
    type=click.IntRange(min=1),
    default=600,
    help="How long `ray job stop` lets shards in flight finish; Ray's own 3 s are too few.  "
    "[default: 600]",
)
@debug_option
def command(
    config: str, rest: tuple[str, ...], address: str | None, follow: bool, drain_s: int
) -> int:
    """Submit what CONFIG.yaml says to a Ray cluster, whose nodes have actlas in their image.

    The file has the sections plan: and run:, and may name the store: `store: s3://b/run.zarr`.
    STORE, models and corpora must be seen under these names by every node. The same command again
    goes on where a job ended.
    """
    store, asked = where(config, rest)
    line = entrypoint(store, asked)
    from actlas.jobs.ray.jobs_api import JobServer

    server = JobServer(address)
    job = server.submit(
        line,
        environment={"RAY_JOB_STOP_WAIT_TIME_S": str(drain_s)},
        metadata={"store": store},
    )
    at = ["--address", server.address, job]
    watch = _ray_job("logs", "--follow", *at)
    click.echo(
        f"submitted {job} to {server.address}\n"
        f"  status  {shell('status', store)}\n"
        f"  follow  {watch}\n"
        f"  stop    {_ray_job('stop', *at)}"
        f"    (shards in flight may finish, for {duration(drain_s)} at most)"
    )
    return _follow(server, job, watch) if follow else EXIT_DONE
