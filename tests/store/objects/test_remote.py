"""Stores in a bucket: moto's S3 behind a proxy that fails on purpose. boto3 is the oracle."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import s3 as faulty
from support.jobs import wait_until
from support.s3 import BUCKET, KEY, S3, SECRET
from support.stores import Columns, create, fill, plan_for, truth, words_columns

import actlas
from actlas.jobs.run.run import run_extraction
from actlas.pipeline.options import RunOptions
from actlas.store.errors import (
    EXIT_RESUME,
    EXIT_USAGE,
    ConfigError,
    CorruptDataError,
    LeaseHeldError,
    RunFaultError,
    StoreExistsError,
    StoreNotFoundError,
)
from actlas.store.ledger import lease
from actlas.store.objects import remote as remote_objects
from actlas.store.objects import remote_requests
from actlas.store.objects.base import is_url, open_objects
from actlas.store.objects.local import LocalObjects
from actlas.store.objects.remote import RemoteObjects
from actlas.store.objects.remote_errors import classify
from actlas.store.objects.remote_requests import MAX_PUT_BYTES
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify

pytest.importorskip("obstore")

pytestmark = pytest.mark.slow

READ_FAULTS = ("500", "503", "reset", "stall", "truncate", "short")


@pytest.fixture
def objects(s3: S3) -> RemoteObjects:
    """An empty prefix of this test's own."""
    return RemoteObjects(s3.url(f"objects/{uuid.uuid4().hex[:8]}"))


@pytest.fixture
def hasty(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stalls are given up sooner than elsewhere."""
    monkeypatch.setenv("ACTLAS_REQUEST_TIMEOUT_S", "0.3")


def name_of(objects: RemoteObjects) -> str:
    return objects.url.removeprefix(f"s3://{BUCKET}/")


def made(path: str | Path, columns: Columns | None = None, **changes: object) -> Store:
    documents = columns or words_columns(0, 60, 20)
    return create(path, plan_for(documents, **changes), documents)


def test_objects_are_created_once_and_read_back(objects: RemoteObjects, s3: S3) -> None:
    parts = [b"ab", memoryview(b"cd"), np.arange(4, dtype="<u2").data, b""]
    whole = b"abcd" + np.arange(4, dtype="<u2").tobytes()
    assert objects.create("a/b", iter(parts))
    assert not objects.create("a/b", [b"other"])
    assert s3.body(name_of(objects), "a/b") == whole
    assert objects.read("a/b") == whole
    assert objects.read("a/b", 3) == whole[3:]
    assert objects.read("a/b", 3, 4) == whole[3:7]
    assert objects.read("a/b", 10, 100) == whole[10:]
    assert objects.read("a/b", 12, 5) == objects.read("a/b", 400) == b""
    assert objects.read("a/b", 2, 0) == b""
    assert b"".join(objects.stream("a/b", 5)) == whole
    assert objects.size("a/b") == 12
    objects.replace("a/b", b"new")
    assert s3.body(name_of(objects), "a/b") == b"new"
    objects.delete("a/b")
    objects.delete("a/b")
    assert objects.size("a/b") is None
    for absent in (
        lambda: objects.read("a/b"),
        lambda: objects.read("a/b", 2, 3),
        lambda: objects.read("a/b", 2, 0),
        lambda: list(objects.stream("a/b", 9)),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            absent()
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == f"{objects.url}/a/b"
    assert objects.create("empty", [])
    assert objects.read("empty") == objects.read("empty", 0, 9) == b""
    assert list(objects.stream("empty", 9)) == []
    assert objects.size("empty") == 0


def test_a_put_is_conditional_and_never_in_parts(objects: RemoteObjects, s3: S3) -> None:
    seen: list[tuple[str, str]] = []

    def look(request: faulty.Request) -> None:
        seen.append((request.method, request.path))

    s3.plan = look
    assert objects.create("big", [b"x" * (6 << 20), b"y" * (6 << 20)])
    assert seen == [("PUT", f"/{BUCKET}/{name_of(objects)}/big")]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", [k for k in faulty.FAULTS if k not in ("truncate", "short")])
def test_a_create_survives_each_fault_without_a_spurious_conflict(
    objects: RemoteObjects, s3: S3, kind: str
) -> None:
    s3.plan = faulty.once(kind, "PUT")
    assert objects.create("ours", [b"ours"]), "our own object, which the fault hid"
    s3.plan = faulty.once(kind, "PUT")
    assert not objects.create("ours", [b"theirs"])
    assert s3.body(name_of(objects), "ours") == b"ours"


def test_a_store_that_keeps_no_metadata_knows_its_own_bytes(objects: RemoteObjects, s3: S3) -> None:
    s3.put(name_of(objects), "theirs", b"bytes")
    assert not objects.create("theirs", [b"other"])
    assert objects.create("theirs", [b"by", b"tes"])


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", READ_FAULTS)
def test_reads_and_listings_survive_each_fault(objects: RemoteObjects, s3: S3, kind: str) -> None:
    body = os.urandom(300_000)
    objects.create("f/0", [body])
    objects.create("f/g/1", [b"x"])
    for read in (
        lambda: objects.read("f/0"),
        lambda: b"".join(objects.stream("f/0", 10_000)),
        lambda: objects.read("f/0", 5, 200_000),
        lambda: sorted(objects.names("f")),
        lambda: sorted(objects.walk()),
    ):
        plain = read()
        s3.plan = faulty.once(kind, "GET")
        assert read() == plain
        assert s3.counts[kind], "the fault befell nobody"
        s3.counts.clear()
    if kind not in ("truncate", "short"):
        s3.plan = faulty.once(kind, "HEAD")
        assert objects.size("f/0") == len(body)
        s3.plan = faulty.once(kind, "POST")
        objects.delete("f/0")
        assert objects.size("f/0") is None


def test_an_answer_that_is_always_cut_off_is_an_error(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTLAS_RETRY_S", "0.3")
    objects.create("x", [b"x" * 1000])
    s3.plan = faulty.always("truncate")
    patient = RemoteObjects(objects.url)
    with pytest.raises(RunFaultError):
        patient.read("x")
    with pytest.raises(RunFaultError):
        b"".join(patient.stream("x", 100))


@pytest.mark.timeout(30)
def test_an_answer_without_a_body_is_not_asked_for_for_ever(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is left comes each time, and is said to be all: at last none of one byte."""
    monkeypatch.setenv("ACTLAS_RETRY_S", "0.3")
    objects.create("x", [b"x" * 100])
    s3.plan = faulty.always("short")
    with pytest.raises(RunFaultError):
        b"".join(RemoteObjects(objects.url).stream("x", 100))


def test_threads_race_and_one_creates(objects: RemoteObjects, s3: S3) -> None:
    often, numbers = faulty.often(0.2, 3, ("500", "reset", "409")), itertools.count()

    def plan(request: faulty.Request) -> str | None:
        lost = request.method == "PUT" and ("lose", "lose-500", None, None)[next(numbers) % 4]
        return lost or often(request)

    s3.plan = plan
    for round_ in range(6):
        won: list[int] = []
        start = threading.Barrier(6)

        def race(i: int, key: str = f"r{round_}", won=won, start=start) -> None:  # type: ignore[no-untyped-def]
            start.wait()
            if objects.create(key, [bytes([i]) * 10_000]):
                won.append(i)

        threads = [threading.Thread(target=race, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert s3.body(name_of(objects), f"r{round_}") == bytes(won) * 10_000
    assert s3.counts["lose"] and s3.counts["lose-500"]


def test_listings_stream_page_by_page_and_stay_inside(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, name = s3.client(), name_of(objects)
    monkeypatch.setattr(remote_objects, "PAGE", 50)
    s3.page = 50
    for i in range(123):
        objects.replace(f"flat/{i:05d}.json", b"")
    client.put_object(Bucket=BUCKET, Key=f"{name}/tree/a/1", Body=b"")
    client.put_object(Bucket=BUCKET, Key=f"{name}/tree/b", Body=b"")
    client.put_object(Bucket=BUCKET, Key=f"{name}2/flat/beside", Body=b"")
    client.put_object(Bucket=BUCKET, Key=f"{name}/flat2/beside", Body=b"")
    s3.counts.clear()
    listed = objects.names("flat")
    first = [next(listed) for _ in range(3)]
    assert first == ["00000.json", "00001.json", "00002.json"]
    assert s3.counts["GET"] <= 2, "the whole listing was read for its first names"
    assert len(first) + len(list(listed)) == 123
    assert sorted(objects.names("tree")) == ["a", "b"]
    assert sorted(objects.names("")) == ["flat", "flat2", "tree"]
    assert list(objects.names("nowhere")) == []
    assert len(set(objects.walk())) == 126
    s3.plan = lambda request: "truncate" if request.number % 3 == 2 else None
    assert len(set(objects.walk())) == len(list(objects.walk())) == 126


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/x", "a//x"])
def test_keys_stay_inside_the_prefix(objects: RemoteObjects, key: str) -> None:
    with pytest.raises(ValueError):
        objects.create(key, [b"x"])
    with pytest.raises(ValueError):
        objects.read(key)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET.replace('/', '.')}@bucket/x",
        f"s3://bucket/x?X-Amz-Signature={KEY}",
        f"s3://bucket/x?versionId={KEY}",
        f"s3://bucket/x#{KEY}",
        f"abfss://container:{KEY}@account.dfs.core.windows.net/x",
    ],
)
def test_urls_with_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_objects(url)
    assert KEY not in str(caught.value)
    assert SECRET[:8] not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://bucket/a//b", "s3://bucket/a/../b"])
def test_urls_of_no_bucket_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_objects(url)


def test_other_urls_are_named() -> None:
    with pytest.raises(StoreNotFoundError, match=r"https://.*s3://"):
        open_store("https://example.org/run.zarr")
    assert not is_url("C:/x") and not is_url("a/b") and is_url("gs://b/x")
    assert open_objects("gs://bucket/x/").url == "gs://bucket/x"
    azure = "abfss://container@account.dfs.core.windows.net/x"
    assert open_objects(azure).url == azure
    assert isinstance(open_objects("file:///tmp/x"), LocalObjects)


def test_an_object_that_one_put_cannot_hold_is_refused(objects: RemoteObjects, s3: S3) -> None:
    gib = memoryview(np.broadcast_to(np.zeros(1, np.uint8), 1 << 20)[:1].tobytes() * (1 << 20))
    with pytest.raises(RunFaultError, match="shard_rows="):
        objects.create("x", (gib for _ in range((MAX_PUT_BYTES >> 20) + 1)))
    assert not s3.counts["PUT"]


def test_credentials_reach_neither_messages_nor_pickles(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [pickle.dumps(objects).decode("latin1"), repr(objects), objects.url]
    for kind, words in (("expired", "ExpiredToken"), ("denied", "403")):
        s3.plan = faulty.always(kind)
        for request in (
            lambda: objects.read("x"),
            lambda: objects.create("x", [b"x"]),
            lambda: list(objects.walk()),
        ):
            with pytest.raises(RunFaultError) as caught:
                request()
            assert words in str(caught.value)
            assert "credentials" in str(caught.value)
            said.append("".join(traceback.format_exception(caught.value)))
            said.append(pickle.dumps(caught.value).decode("latin1"))
    for text in said:
        assert KEY not in text
        assert SECRET not in text


def test_an_outage_is_a_run_fault_and_is_found_again_at_once(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTLAS_RETRY_S", "2")
    objects = RemoteObjects(objects.url)
    s3.plan = faulty.always("503")
    began = time.monotonic()
    with pytest.raises(RunFaultError, match=r"SlowDown.*repeat the same call"):
        objects.read("x")
    assert 1 < time.monotonic() - began < 30
    before, waits = s3.counts["GET"], list[float]()
    with monkeypatch.context() as patch:
        patch.setattr(remote_requests.time, "sleep", waits.append)
        with pytest.raises(RunFaultError):
            objects.read("x")
    assert (s3.counts["GET"], waits) == (before + 1, [])
    s3.plan = lambda _: None
    assert objects.size("x") is None
    s3.plan = faulty.once("503", "HEAD", times=6)
    assert objects.size("x") is None, "patience came back with the store"


OWN_FAULTS = [(403, "AccessDenied"), (403, "InvalidObjectState"), (400, "InvalidArgument")]
EVERYBODYS = [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (404, "NoSuchBucket")]


@pytest.mark.parametrize(("status", "code"), [*OWN_FAULTS, *EVERYBODYS])
def test_one_objects_own_fault_takes_no_patience_from_the_others(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setitem(faulty.ANSWERS, "refuse", (status, code))
    s3.plan = faulty.once("refuse", "GET", "/one")
    words = code if code != "NoSuchBucket" else "no such bucket"
    with pytest.raises(RunFaultError, match=words) as caught:
        objects.read("one")
    renewable = code in ("ExpiredToken", "InvalidAccessKeyId")
    assert caught.value.exit_code == (EXIT_RESUME if renewable else EXIT_USAGE)
    s3.plan = faulty.once("503", "HEAD")
    if (status, code) in OWN_FAULTS:
        assert objects.size("other") is None
    else:
        with pytest.raises(RunFaultError, match="503"):
            objects.size("other")


def test_an_object_that_stays_broken_is_no_outage_while_others_are_answered(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTLAS_RETRY_S", "1")
    objects = RemoteObjects(objects.url)
    objects.create("broken", [b"x" * 1000])
    ended: list[Exception] = []

    def read() -> None:
        try:
            objects.read("broken")
        except RunFaultError as error:
            ended.append(error)

    s3.plan = lambda request: "truncate" if request.path.endswith("/broken") else None
    reading = threading.Thread(target=read)
    reading.start()
    while reading.is_alive():
        assert objects.size("other") is None
        reading.join(0.02)
    assert ended
    s3.plan = faulty.once("503", "HEAD")
    assert objects.size("other") is None


def test_no_bucket_and_no_answer(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = RemoteObjects("s3://nobody/x")
    for request in (lambda: objects.read("a"), lambda: objects.create("a", [b"x"])):
        with pytest.raises(RunFaultError, match="no such bucket"):
            request()
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(RunFaultError, match="AWS_ALLOW_HTTP"):
        objects.read("a")
    monkeypatch.setenv("ACTLAS_RETRY_S", "soon")
    with pytest.raises(ConfigError, match="ACTLAS_RETRY_S"):
        RemoteObjects("s3://bucket/x").read("a")


def test_what_vendors_say_is_understood() -> None:
    """Answers as Google's and Azure's stores word them, where nothing of ours was run."""
    gone = FileNotFoundError(
        "Object at location x not found: status code: 404 Not Found: The specified bucket does "
        "not exist."
    )
    assert classify(gone).kind == "permanent"
    azure = FileNotFoundError("status code: 404 The specified container ContainerNotFound")
    assert classify(azure).kind == "permanent"
    assert classify(FileNotFoundError("status code: 404 Not Found")).kind == "missing"
    assert classify(Exception("status code: 429 Too Many Requests")).kind == "transient"
    assert classify(Exception("status code: 401 Unauthorized")).everywhere
    own = classify(Exception("status code: 403 Forbidden"))
    assert own.kind == "permanent" and not own.everywhere
    assert classify(Exception("error sending request")).kind == "transient"
    imds = classify(Exception("GET http://169.254.169.254/latest status code: 403 Forbidden"))
    assert imds.kind == "permanent" and "no credentials" in imds.message


@pytest.mark.parametrize(("method", "answer"), [("spawn", "3"), ("fork", "RuntimeError")])
def test_a_forked_process_is_told_instead_of_left_waiting(
    objects: RemoteObjects, method: str, answer: str
) -> None:
    objects.create("x", [b"abc"])
    context = multiprocessing.get_context(method)
    out = context.Queue()
    process = context.Process(target=faulty.tell_size, args=(objects.url, out))
    process.start()
    said = out.get(timeout=60)
    process.join()
    assert said.startswith(answer)
    assert method == "spawn" or "spawn" in said


def test_importing_the_store_loads_no_client() -> None:
    code = (
        "import sys, actlas.store.store, actlas.store.objects.base as o; "
        "o.open_objects('s3://b/x'); "
        "sys.exit(any(m in sys.modules for m in ('obstore', 'boto3', 'torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_store_in_a_bucket_is_the_one_in_a_folder(s3: S3, tmp_path: Path) -> None:
    """Object for object the same bytes, besides times and names of attempts."""
    label = (np.arange(60) % 2).astype(np.int32)
    columns = words_columns(1, 60, 20, label=label, label_names=("a", "b"))
    local = made(tmp_path / "run.zarr", columns)
    remote = made(s3.url("same.zarr"), columns)
    fill(local)
    fill(remote)
    keys = s3.keys("same.zarr")
    assert keys == sorted(local.objects.walk())
    differing = {k for k in keys if s3.body("same.zarr", k) != local.objects.read(k)}
    assert all(k.startswith("ledger/") for k in differing), differing
    assert remote.path == s3.url("same.zarr")
    report = verify(remote, full=True)
    assert report.damages == ()
    assert report.n_bytes == verify(local, full=True).n_bytes
    again = pickle.loads(pickle.dumps(open_store(remote.path)))
    rows = local.activations["mlp.1"]
    index = np.array([3, 900, 4, 4, 77])
    np.testing.assert_array_equal(again.activations["mlp.1"][index], rows[index])
    np.testing.assert_array_equal(again.activations["mlp.1"][10:700], rows[10:700])
    assert again.document(7).text == local.document(7).text
    assert again.statistics("mlp.1").n.sum() == local.statistics("mlp.1").n.sum()


def test_zarrs_own_object_store_reads_it(s3: S3) -> None:
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    store = made(s3.url("plain.zarr"))
    rows = fill(store)
    bucket = S3Store(
        BUCKET,
        prefix="plain.zarr",
        endpoint=s3.server,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    group = zarr.open_group(ObjectStore(bucket, read_only=True), mode="r")
    for name in store.activations:
        found = np.asarray(group[f"activations/{name}"][:]).astype(np.float32)
        np.testing.assert_array_equal(found, rows[name].astype(np.float32))
    np.testing.assert_array_equal(group["rows/token_id"][:], store.rows.token_id[:])


def test_damage_is_found_and_an_outage_is_none(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(s3.url("hurt.zarr"))
    fill(store)
    key = store.arrays.activations["mlp.1"].key(1)
    body = bytearray(s3.body("hurt.zarr", key))
    body[len(body) // 2] ^= 4
    s3.put("hurt.zarr", key, bytes(body))
    found = verify(open_store(store.path), full=True)
    assert [d.key for d in found.damages] == [key]
    with pytest.raises(CorruptDataError):
        open_store(store.path).activations["mlp.1"][256:512]
    monkeypatch.setenv("ACTLAS_RETRY_S", "1")
    opened = open_store(store.path)
    s3.plan = faulty.always("503", after=10)
    with pytest.raises(RunFaultError):
        verify(opened, full=True)


def test_planning_that_was_interrupted_goes_on(s3: S3, tmp_path: Path) -> None:
    """Whichever object is the last that was written, nothing looks whole, and all converges."""
    columns = words_columns(5, 12, 8)
    plan = plan_for(columns)
    whole = made(s3.url("whole.zarr"), columns)
    keys = s3.keys("whole.zarr")
    n_puts = len(keys)
    for last in (0, 1, n_puts // 2, n_puts - 1):
        name, seen = f"broken-{last}.zarr", set[str]()

        def stop(request: faulty.Request, last: int = last, seen: set[str] = seen) -> str | None:
            if request.method == "PUT":
                seen.add(request.path)
            return "denied" if len(seen) > last else None

        s3.plan = stop
        with pytest.raises(RunFaultError):
            create(s3.url(name), plan, columns)
        s3.plan = lambda _: None
        assert len(s3.keys(name)) == last
        with pytest.raises(StoreNotFoundError):
            open_store(s3.url(name))
        if last:
            other = plan_for(columns, seed=8)
            with pytest.raises(StoreExistsError, match="another plan"):
                create(s3.url(name), other, columns)
            assert len(s3.keys(name)) == last
        create(s3.url(name), plan, columns)
        assert s3.keys(name) == keys
        assert all(
            s3.body(name, k) == s3.body("whole.zarr", k)
            for k in keys
            if not k.startswith("ledger/plan")
        )
    assert verify(open_store(s3.url(name)), full=True).ok
    with pytest.raises(StoreExistsError, match=r"actlas\.extract"):
        create(whole.path, plan, columns)
    s3.put("full", "notes.txt", b"mine")
    with pytest.raises(StoreExistsError, match="not a store"):
        create(s3.url("full"), plan, columns)
    assert s3.keys("full") == ["notes.txt"]


def test_a_server_that_ignores_conditions_is_refused(s3: S3) -> None:
    s3.plan = faulty.always("ignore")
    with pytest.raises(ConfigError, match="If-None-Match"):
        made(s3.url("ignored.zarr"))
    assert s3.keys("ignored.zarr") == []
    s3.plan = lambda _: None
    s3.put("ignored.zarr", "ledger/staging/0123.probe", b"left")  # by a check that was killed
    made(s3.url("ignored.zarr"))


def test_a_store_copied_to_a_server_that_ignores_conditions_is_refused(s3: S3) -> None:
    """It was planned where they are honoured; the copy is asked where its lease is taken."""
    made(s3.url("planned.zarr"))
    s3.copy("planned.zarr", "copied.zarr")
    keys = s3.keys("copied.zarr")
    bodies = [s3.body("copied.zarr", key) for key in keys]
    copied = open_store(s3.url("copied.zarr"))
    s3.plan = faulty.always("ignore")
    with pytest.raises(ConfigError, match="If-None-Match"):
        run_extraction(copied, RunOptions(executor="inline"))
    assert s3.keys("copied.zarr") == keys
    assert [s3.body("copied.zarr", key) for key in keys] == bodies
    s3.plan = lambda _: None
    with lease.hold(copied.objects, reentrant=True), lease.hold(copied.objects) as held:
        assert held.number == 1
    assert s3.counts["DELETE"] == 1  # of the lease that was refused


def test_a_server_without_bulk_deletion(s3: S3, objects: RemoteObjects) -> None:
    objects.create("a/b c", [b"1"])
    s3.plan = lambda request: "unknown" if request.method == "POST" else None
    objects.delete("a/b c")
    objects.delete("a/b c")
    assert not s3.keys(name_of(objects)) and s3.counts["unknown"] == 0


def test_two_planners_leave_one_store(s3: S3) -> None:
    columns = words_columns(5, 12, 8)
    plan = plan_for(columns)
    ended: list[str] = []

    def planner() -> None:
        try:
            create(s3.url("two.zarr"), plan, columns)
        except StoreExistsError:
            ended.append("exists")
        else:
            ended.append("made")

    threads = [threading.Thread(target=planner) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended.count("made") == 1
    assert open_store(s3.url("two.zarr")).plan == plan
    assert verify(open_store(s3.url("two.zarr")), full=True).ok


def test_one_driver_at_a_time_and_a_dead_one_is_followed_at_once(
    objects: RemoteObjects, s3: S3
) -> None:
    with lease.hold(objects, heartbeat_s=0.05):
        with pytest.raises(LeaseHeldError), lease.hold(objects):
            raise AssertionError
        wait_until(lambda: bool(objects.size(f"{lease.FOLDER}/00000001.beat")))
    with lease.hold(objects):
        assert lease.highest(objects) == 2
    code = (
        "import os, signal\n"
        "from actlas.store.ledger import lease\n"
        "from actlas.store.objects.base import open_objects\n"
        f"with lease.hold(open_objects({objects.url!r})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    waits: list[str] = []
    with lease.hold(objects, log=waits.append):
        assert lease.highest(objects) == 4
    assert not waits, "the heartbeat of the dead was waited for"


@pytest.mark.parametrize("kind", ["503", "stall", "drip"])
def test_a_beat_that_is_not_answered_is_given_up_for_the_next(
    objects: RemoteObjects, s3: S3, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever waits in it for minutes looks dead, and does not see who has taken over."""
    monkeypatch.setenv("ACTLAS_REQUEST_TIMEOUT_S", "30")
    monkeypatch.setattr(lease, "REQUEST_LIMIT_S", 0.6)
    s3.stall_s = 20
    failing = {("GET", "lease") if kind == "drip" else ("PUT", ".beat")}
    patient = faulty.once("503", "HEAD")

    def plan(request: faulty.Request) -> str | None:
        met = any(request.method == method and part in request.path for method, part in failing)
        return kind if met else patient(request)

    with lease.hold(objects, heartbeat_s=0.05) as held:
        s3.counts.clear()
        s3.plan = plan
        began = time.monotonic()
        while s3.counts[kind] < 3:
            time.sleep(0.02)
            assert time.monotonic() - began < 30, "the first beats are still being tried"
        # That it was given up says nothing of the store to those who have more patience.
        assert objects.size("x") is None and s3.counts["503"]
        if kind == "drip":
            failing.clear()
        s3.put(name_of(objects), f"{lease.FOLDER}/00000002.json", b"{}")
        assert held.lost.wait(60)


def test_dask_and_many_readers(s3: S3, make: Callable[..., Store]) -> None:
    pytest.importorskip("dask.array")
    from actlas.analysis.dask_array import dask_array

    store = made(s3.url("lazy.zarr"))
    rows = fill(store)
    array = dask_array(open_store(store.path), "resid_post.0")
    total = array.astype(np.float64).sum(axis=0).compute()
    np.testing.assert_allclose(total, rows["resid_post.0"].astype(np.float64).sum(axis=0))
    assert actlas.open(store.path).n_stored_bytes() > 0
    assert truth(store, "mlp.1").shape == store.activations["mlp.1"].shape
