"""``actlas submit``: run an extraction on a Ray cluster, from any machine that reaches its head.

The cluster's nodes have the code in their image; nothing is uploaded. The configuration becomes
dotted overrides in the job's command line, which Ray's dashboard shows. The command line must
therefore hold no secrets, and this machine's environment is not passed on.
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
from actlas.jobs.terminal import echo, echo_text
from actlas.store.errors import EXIT_DONE, EXIT_RESUME, ConfigError, InterruptedRunError

if TYPE_CHECKING:
    from actlas.jobs.ray.jobs_api import JobServer

MAX_BYTES = 100_000
"""Limit of a command line: Ray passes it to a shell as one argument, which Linux limits to 131,071
bytes."""

_OVERRIDE = re.compile(r"\w+\.\w+=.*", re.DOTALL)

_SECRET = re.compile(r"://[^/\s]*@|[?&](X-Amz-[\w-]+|sig|signature|token|access_?key\w*)=", re.I)

_PLAIN = re.compile(r"[A-Za-z/][\w/.:-]*[\w/]", re.ASCII)

_OURS = frozenset({"executor", "address"})


def entrypoint(store: str, asked: Asked) -> str:
    """Return the shell command that the head node runs.

    Parameters
    ----------
    store : str
        A URL, or a path that every node can read.
    asked : Asked
        The given options, checked; the cluster's actlas has the defaults of the others.

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
                f"{name} contains credentials, and everyone with access to Ray's dashboard sees a "
                "job's command line. Set them in the environment of the cluster's nodes.",
                key=name,
            )
    text = shlex.join(words)
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(
            f"the configuration takes {len(text.encode()):,} bytes as a command line, at most "
            f"{MAX_BYTES:,} can be submitted: shorten lists with globs (resid_post.*)."
        )
    return text


def _yaml(value: Any) -> str:
    """Return a value as one line of YAML that parses to the same value."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) is not None
    if plain and yaml.safe_load(value) == value:
        return str(value)
    quote = '"' if isinstance(value, str | list) else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=quote, width=1 << 30)
    return text.removesuffix("\n").removesuffix("\n...")


def where(config: str, rest: Sequence[str]) -> tuple[str, Asked]:
    """Return the store and the options of a command line.

    Parameters
    ----------
    config : str
        Path of the YAML file.
    rest : sequence of str
        The store, if given, and dotted overrides.

    Raises
    ------
    ConfigError
        No store is given, or an option is invalid: see :func:`actlas.jobs.config.resolve`.
    """
    named = rest[0] if rest and not _OVERRIDE.fullmatch(rest[0]) else None
    overrides = rest[1:] if named is not None else rest
    asked = resolve({}, [*overrides, "run.executor=ray"], config)  # which the job has in any case
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
    """Return a `ray job` command that sends a token if this process does."""
    sends = f"{ray_token.MODE}=token " if ray_token.mode() == "token" else ""
    return sends + shlex.join(["ray", "job", *words])


def _follow(server: JobServer, job: str, command: str) -> int:
    try:
        return server.follow(job, echo_text)
    except KeyboardInterrupt:
        echo("", f"no longer following; the job continues -> next: {command}", err=True)
        return EXIT_RESUME
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error} -> next: {command}") from error


@click.command("submit", short_help="Run an extraction on a Ray cluster.")
@click.argument("config", metavar="CONFIG.yaml", type=click.Path())
@click.argument("rest", nargs=-1, metavar=f"[STORE] [{'|'.join(SECTIONS)}.KEY=VALUE]...")
@click.option(
    "--address",
    metavar="URL",
    help="Address of the head's dashboard, http://HEAD:8265.  [default: RAY_API_SERVER_ADDRESS, "
    "else http://127.0.0.1:8265]",
)
@click.option(
    "--follow/--no-follow",
    default=True,
    help="Print the job's log, and exit with its exit code.  [default: follow]",
)
@click.option(
    "--drain",
    "drain_s",
    metavar="SECONDS",
    type=click.IntRange(min=1),
    default=600,
    help="Seconds that `ray job stop` gives the shards in flight to finish; Ray's own 3 s are too "
    "short.  [default: 600]",
)
@debug_option
def command(
    config: str, rest: tuple[str, ...], address: str | None, follow: bool, drain_s: int
) -> int:
    """Submit the extraction of CONFIG.yaml to a Ray cluster, whose nodes have actlas installed.

    The file has the sections plan: and run:, and may name the store: `store: s3://b/run.zarr`.
    Every node must reach STORE, models and corpora under these names. The same command resumes an
    extraction whose job has ended.
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
    echo(
        f"submitted {job} to {server.address}",
        f"  status  {shell('status', store)}",
        f"  follow  {watch}",
        f"  stop    {_ray_job('stop', *at)}"
        f"    (shards in flight get {duration(drain_s)} to finish)",
    )
    return _follow(server, job, watch) if follow else EXIT_DONE
