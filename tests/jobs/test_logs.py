"""The log of a store in a bucket: whole lines as an object, without credentials."""

from __future__ import annotations

import json

import pytest
from support.s3 import KEY, S3, SECRET, always

from actlas.jobs import logs

pytest.importorskip("obstore")


def lines(s3: S3, store: str) -> dict[str, list[dict[str, str]]]:
    keys = [key for key in s3.keys(store) if key.startswith(f"{logs.FOLDER}/")]
    return {k: [json.loads(line) for line in s3.body(store, k).splitlines()] for k in keys}


def test_it_arrives_redacted(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WRITE_S", 0.05)
    monkeypatch.setattr(logs, "MAX_BYTES", 2000)
    handler = logs.start(s3.url("log.zarr"), "driver")
    try:
        for i in range(60):
            logs.LOGGER.info("line %d", i, extra={"shard": i})
            if i == 20:
                logs.LOGGER.warning("refused: %s", SECRET, extra={"url": f"https://{KEY}:x@h/"})
            if i % 20 == 0:
                _wait(s3, handler, i)
    finally:
        logs.end(handler)
    found = lines(s3, "log.zarr")
    assert len(found) > 1  # a full one is left, and the next begun
    assert all(key.endswith(f"-driver.{n:04d}.jsonl") for n, key in enumerate(sorted(found)))
    told = [line for key in sorted(found) for line in found[key]]
    assert [line["shard"] for line in told if "shard" in line] == [*range(60)]
    text = json.dumps(found)
    assert "refused: ***" in text
    assert KEY not in text and SECRET not in text


def _wait(s3: S3, handler: logs.logging.Handler, i: int) -> None:
    """Until the thread has written what there is."""
    from support.jobs import wait_until

    wait_until(lambda: f"line {i}" in json.dumps(lines(s3, "log.zarr")))


def test_a_bucket_that_is_out_stops_nothing(
    s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "LAST_WRITE_S", 3.0)
    s3.plan = always("denied")
    handler = logs.start(s3.url("out.zarr"), "driver")
    logs.LOGGER.info("a line")
    logs.end(handler)
    told = capsys.readouterr().err
    assert told.count("is delayed") == 1
    assert KEY not in told and SECRET not in told
