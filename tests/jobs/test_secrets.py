"""Credentials are never written down: not in a store, not in a log, not on a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import yaml
from support.workers import FakeWorker, fake_store, make_fake

from actlas.jobs import logs
from actlas.jobs.cli.app import _print_error
from actlas.jobs.monitor.progress import PlainProgress
from actlas.jobs.monitor.run_stats import RunStats
from actlas.jobs.redaction import redacted, redacted_values
from actlas.jobs.run.run import run_extraction
from actlas.jobs.scheduler.driver import Driver
from actlas.jobs.scheduler.faults import FaultBudget
from actlas.jobs.scheduler.protocols import Event, Job, Lost, Placed, Ready
from actlas.pipeline.options import RunOptions
from actlas.store.errors import EXIT_QUARANTINE, ActlasError, CorruptDataError

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYPLANTED",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7PLANTED",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzPLANTED==",
    "HF_TOKEN": "hf_abcdefghPLANTED",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "AZURE_STORAGE_KEY": "azurePLANTED/key==",
    "WANDB_API_KEY": "wandbPLANTED",
    "DATABASE_PASSWORD": "hunter2-PLANTED",
    "QUOTES_PASSWORD": 'pa"ss\\wordPLANTED\'\\"',
    "LINES_SECRET": "first\nPLANTED in\tthe second/+",
    "WIDE_TOKEN": "grüße-\U0001f511-PLANTED",
    "SLASH_SECRET_ACCESS_KEY": "/startsLikeAPath+PLANTED",
    "PIN_PASSWORD": "8362915",
}
ODD = [value for name, value in PLANTED.items() if name[:4] in ("QUOT", "LINE", "WIDE", "SLAS")]
URLS = [
    "https://user:pa55-PLANTED@host.example/x",
    "s3://AKIAPLANTED:secretPLANTED@bucket/run.zarr",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=credPLANTED&X-Amz-Signature=sigPLANTED&n=1",
    "https://hub.example/resolve?token=tokPLANTED",
    "Authorization: Bearer bearerPLANTED.abc",
    "{'authorization': 'Bearer bearerPLANTED.def'}",
]
SECRETS = ["PLANTED", PLANTED["RAY_AUTH_TOKEN"], "hunter2", "pa55", "wJalrXUtnFEMI", "8362915"]


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
            everything = " ".join([*URLS, *PLANTED.values(), repr(PLANTED), json.dumps(PLANTED)])
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
    logged = "".join(path.read_text() for path in folder.glob("ledger/logs/*.jsonl")).splitlines()
    assert any("it failed" in json.loads(line)["message"] for line in logged)
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
        told = (
            str(FaultBudget(store.objects, "extract", run).quarantined()) + capfd.readouterr().err
        )
    except CorruptDataError as error:
        told = str(error)
    assert "leads out of the store" in told
    assert [path.name for path in victim.rglob("*")] == ["thesis.tex"]


def test_what_ray_says_of_a_worker_that_it_lost(tmp_path: Path) -> None:
    """Its message is a library's, and quotes what it likes: to a log, a record, a driver's beat."""
    store = fake_store(tmp_path, n_documents=4)
    run, said = RunOptions(max_process_deaths=1), " ".join([*URLS, *map(repr, ODD)])
    found: list[Event] = []
    cluster = SimpleNamespace(
        room=lambda: 1,
        start=lambda worker, name: found.extend([Placed(worker), Ready(worker)]),
        send=lambda worker, shard: found.append(Lost(worker, "process", said, f"from\n{said}")),
        wait=lambda timeout_s: [found.pop(0) for _ in found[:]],
        kill=lambda worker: None,
    )
    tally = RunStats(n_rows=1, n_rows_before=0, n_shards=1)
    ledger, watch = FaultBudget(store.objects, "extract", run), PlainProgress(tally, io.StringIO())
    stop: Any = SimpleNamespace(requested=False)
    log = logs.start(store.path, "driver")
    job = Job(store.path, run, (0,), make_fake)
    Driver(job, ledger, watch, stop, cluster, time.monotonic).run()  # type: ignore[arg-type]
    logs.end(log)
    [record] = ledger.quarantined().values()
    assert "***" in record.error and "***" in record.traceback
    Path(store.path, "beat.json").write_text(json.dumps(tally.snapshot()))
    assert "***" in Path(store.path, "beat.json").read_text()
    assert not held_by(Path(store.path))


def test_the_control_the_search_finds_them(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(" ".join([*URLS, *PLANTED.values()]))
    assert len(held_by(tmp_path)) == len(SECRETS)


@pytest.mark.slow
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
        _print_error(ActlasError(f"cannot reach {url}"), meta)
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
    environment |= {"PATH": "/data", "SHORT_TOKEN": "rows", "TOKEN_PATH": "/data/run.zarr"}
    assert redacted(text, environment) == text
    assert redacted_values({text: [text, 64, None]}, environment) == {text: [text, 64, None]}


def spellings(secret: str) -> list[str]:
    """How libraries write it, by those that do."""
    text = json.dumps(secret)
    urls = [quote(secret), quote(secret, safe=""), quote_plus(secret), quote(quote(secret))]
    urls += [re.sub("%..", lambda found: found[0].lower(), url) for url in urls]
    texts = [json.dumps(secret, ensure_ascii=False), text, json.dumps(text), json.dumps([text])]
    wide = re.sub(r"\\u....", lambda found: found[0][:2] + found[0][2:].upper(), text)
    codes = [repr(secret), ascii(secret), repr(secret.encode()), repr([{"a": repr(secret)}])]
    return [secret, *urls, *texts, wide, *codes, yaml.safe_dump([secret], width=1000)]


@pytest.mark.parametrize("secret", ODD)
def test_however_it_is_written(secret: str) -> None:
    for text in spellings(secret):
        assert "PLANTED" in text  # no way of writing touches it: it is found by itself
        kept = redacted(f"<{text}>", {"A_TOKEN": f" {secret}\n"})
        assert "***" in kept and len(kept) < 30 and kept[0] + kept[-1] == "<>", (text, kept)
    assert redacted(f"<{secret[:-1]}>", {"A_TOKEN": secret}) == f"<{secret[:-1]}>"


def test_half_a_pair_of_surrogates_is_logged() -> None:
    """Not through the logger: such a text in a test's report is more than xdist can send."""
    extra = {"file": "\udcff.jsonl"}
    record = logs.LOGGER.makeRecord("x", 20, "x.py", 1, "\udcff \ud800", (), None, None, extra)
    line = logs.JsonLines().format(record)
    assert json.loads(line.encode("utf-8"))["file"].endswith(".jsonl")


def test_lines_of_a_log_stay_json(tmp_path: Path) -> None:
    """Whatever is found in them: no match takes the escape of a quote along."""
    said = ['GET https://h/x?token=abc"def', "-> 'https://h/?sig=\\", *URLS]
    said += [text for secret in ODD for text in spellings(secret)]
    itself: dict[str, Any] = {"said": said}
    itself |= {"again": itself, "more": [itself, itself]}
    handler = logs.start(str(tmp_path), "driver")
    try:
        for text in said:
            extra = {"text": text, text: {text: [text, (text, 1.5)]}, "places": {Path("/x"), 1}}
            logs.LOGGER.info("%s", text, extra=extra)
        headers = {"Authorization": "PLANTED one", "X-Api-Key": "PLANTED", "Content-Length": "7"}
        logs.LOGGER.info("headers", extra={"headers": headers, "other": {"OUR_TOKEN": "PLANTED"}})
        logs.LOGGER.info("itself", extra={"itself": itself})
    finally:
        logs.end(handler)
    assert not held_by(tmp_path)
    [file] = tmp_path.rglob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(lines) == len(said) + 2
    assert lines[0]["text"] == 'GET https://h/x?token=***"def'
    assert lines[-2]["headers"] == {"Authorization": "***", "X-Api-Key": "***"} | {
        "Content-Length": "7"
    }
    assert lines[-2]["other"] == {"OUR_TOKEN": "***"}
    assert lines[-1]["level"] == "info" and "***" in str(lines[-1]["itself"])


def test_a_long_text_takes_no_longer_than_it_is_long() -> None:
    secrets = {"A_TOKEN": "\\" * 9 + '"' * 9 + " " * 9, "B_TOKEN": '"\\' * 9, "C_TOKEN": "%:/@" * 9}
    began = time.process_time()
    for part in ("\\", '\\"', "%25", "a.", "s3:/", "://a:", "+ "):
        redacted(part * 20_000, secrets)
    assert time.process_time() - began < 20  # 0.5 s; its square would be hours
