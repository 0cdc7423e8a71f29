"""Credentials are never written down: not in a store, not in a log, not on a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.workers import FakeWorker, fake_store, make_fake

from actlas.jobs import logs
from actlas.jobs.cli import _tell
from actlas.jobs.ledger import Ledger
from actlas.jobs.run import run_extraction
from actlas.pipeline.options import RunOptions
from actlas.store.errors import EXIT_QUARANTINE, ActlasError, CorruptDataError
from actlas.store.redact import redacted

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYPLANTED",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7PLANTED",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzPLANTED==",
    "HF_TOKEN": "hf_abcdefghPLANTED",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "AZURE_STORAGE_KEY": "azurePLANTED/key==",
    "WANDB_API_KEY": "wandbPLANTED",
    "DATABASE_PASSWORD": "hunter2-PLANTED",
}
URLS = [
    "https://user:pa55-PLANTED@host.example/x",
    "s3://AKIAPLANTED:secretPLANTED@bucket/run.zarr",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=credPLANTED&X-Amz-Signature=sigPLANTED&n=1",
    "https://hub.example/resolve?token=tokPLANTED",
    "Authorization: Bearer bearerPLANTED.abc",
    "{'authorization': 'Bearer bearerPLANTED.def'}",
]
SECRETS = ["PLANTED", PLANTED["RAY_AUTH_TOKEN"], "hunter2", "pa55", "wJalrXUtnFEMI"]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def held_by(folder: Path) -> list[str]:
    """Where in a folder a secret stands, by a plain search through every byte."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        f"{path}: {secret}"
        for path in files
        for secret in SECRETS
        if secret.encode() in path.read_bytes()
    ]


class Talkative(FakeWorker):
    """Fails with all that it knows in its message."""

    def extract(self, shard: int, *, attempt: str) -> Any:
        logs.LOGGER.warning("trying %s", URLS[shard % len(URLS)], extra={"env": dict(os.environ)})
        try:
            raise ValueError(f"request to {URLS[shard % len(URLS)]} failed")
        except ValueError as error:
            logs.LOGGER.exception("it failed")
            everything = " ".join([*URLS, *PLANTED.values()])
            raise RuntimeError(f"shard {shard}: {everything}") from error


def test_a_run_that_fails_with_its_tracebacks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = fake_store(tmp_path)
    run = RunOptions(max_task_faults=1)
    outcome = run_extraction(store, run, lambda path, run: Talkative(path, run))
    assert outcome.exit_code == EXIT_QUARANTINE
    folder = Path(store.path)
    records = [path.read_text() for path in folder.glob("ledger/quarantine/*/*.json")]
    assert len(records) == store.plan.n_shards and all("***" in text for text in records)
    assert any("it failed" in path.read_text() for path in folder.glob("ledger/logs/*.jsonl"))
    assert not held_by(folder)
    shown = "".join(capfd.readouterr()) + outcome.line
    assert shown and not any(secret in shown for secret in SECRETS)


@pytest.mark.parametrize("folder", ["ledger/logs", "ledger/staging", "ledger/lease", "rows"])
def test_a_run_in_a_strangers_store_stays_in_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], folder: str
) -> None:
    """A link in the place of a folder would have a run write, or empty, one elsewhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("years of work")
    store = fake_store(tmp_path)
    place = Path(store.path) / folder
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(victim)
    run = RunOptions(max_task_faults=1)
    try:  # it is refused as a whole, or every shard that would lie there is; a log is given up
        run_extraction(store, run, make_fake)
        told = str(Ledger(store.objects, "extract", run).quarantined()) + capfd.readouterr().err
    except CorruptDataError as error:
        told = str(error)
    assert "leads out of the store" in told
    assert [path.name for path in victim.rglob("*")] == ["thesis.tex"]


def test_the_control_the_search_finds_them(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(" ".join([*URLS, *PLANTED.values()]))
    assert len(held_by(tmp_path)) == len(SECRETS)


def test_a_whole_run_writes_none_of_its_environment(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("One sentence about nothing much, and then another one.")
    words = ["extract", str(tmp_path / "run.zarr"), "--model", "builtin:actlas-6m", "--corpus"]
    words += [str(corpus), "--hookpoints", "resid_post.0", "--device", "cpu", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "actlas.jobs.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not held_by(tmp_path / "run.zarr")
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)


@pytest.mark.parametrize("meta", [{}, {"actlas.json": True}, {"actlas.debug": True}])
def test_an_error_that_is_told(meta: dict[str, bool], capfd: pytest.CaptureFixture[str]) -> None:
    for url in [*URLS, *PLANTED.values()]:
        _tell(ActlasError(f"cannot reach {url}"), meta)
    shown = "".join(capfd.readouterr())
    assert "cannot reach" in shown and not any(secret in shown for secret in SECRETS)


@pytest.mark.parametrize(
    "text",
    [
        "/data/run.zarr: rows [0, 64) are not extracted yet",
        "s3://bucket/run.zarr/rows/token_id/c/0",
        "https://host/x?page=2&n=1",
        "document 3: token 17 of key resid_post.3",
        "user@example.org wrote it",
        "planned with seed = 0, now asked for 1 (--seed)",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    environment = {"TOKENIZERS_PARALLELISM": "false", "SECRET_FILE": "/run/x", "MAX_TOKEN": "17"}
    assert redacted(text, {**environment, "PATH": "/data", "SHORT_TOKEN": "rows"}) == text
