"""Stores that a stranger made: whoever can write a plan can seal it, so the seals are right here.

Every store is used in every reading way by a process of its own (``support.hostile_stores``), whose
memory is limited and whose every opened file is looked at. What may come of it is an error of ours,
or data; never another exception, a file outside the store, a hang, or a dead process.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the encoder that fills the store needs torch")

from support.features import Relu
from support.hostile_stores import LIMIT_BYTES, Person
from support.stores import create, fill, plan_for, words_columns

import actlas
from actlas.analysis.features.encode import Encoder, create_features, finish
from actlas.analysis.features.extremes import gather_extremes
from actlas.analysis.features.index import index_features
from actlas.jobs.cli.app import cli
from actlas.store.errors import ActlasError, CorruptDataError, FormatError
from actlas.store.ledger.derived import FLAT_CHUNK, flat
from actlas.store.objects.local import LocalObjects
from actlas.store.shards.chunks import crc32c
from actlas.store.shards.lazy_array import LARGE_BYTES, LazyArray
from actlas.store.shards.writer import ShardWriter

pytestmark = pytest.mark.slow

LONG = os.environ.get("ACTLAS_CHAOS") == "long"
EXAMPLES = 800 if LONG else 40
SEED = int(os.environ.get("ACTLAS_CHAOS_SEED", "0"))
HOOKPOINT = "resid_post.0"


class Made(NamedTuple):
    """A good store with everything in it, and who uses its changed copies."""

    path: Path
    person: Person
    base: dict[str, Any]


def make(path: Path, **changes: Any) -> None:
    n = 24
    labels = {"label": (np.arange(n) % 2).astype(np.int32), "label_names": ("S", "N")}
    columns = words_columns(3, n, 20, **labels)
    codes = {"role": (np.arange(columns.n_tokens) % 3 - 1).astype(np.int32)}
    columns.codes, columns.token_column_names = codes, {"role": ("user", "assistant")}
    hookpoints = [{"name": HOOKPOINT, "module": "layers.0", "side": "output", "width": 24}]
    plan = plan_for(columns, hookpoints=tuple(hookpoints), shard_rows=128, **changes)
    store = create(path, plan, columns)
    fill(store)
    sae = Relu(24, 40, HOOKPOINT)
    features = create_features(store, sae, "made", "nowhere")  # type: ignore[arg-type]
    encoder = Encoder(store, features, sae)  # type: ignore[arg-type]
    for shard in range(store.plan.n_shards):
        encoder.extract(shard, attempt="test")
    finish(store, features, "test")
    index_features(store, features, attempt="test", block_codes=900, memory_bytes=48 * 2000)
    gather_extremes(store, HOOKPOINT, attempt="test", k=8)


@pytest.fixture(scope="module", params=["dense", "none"] if LONG else ["dense"])
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    path = tmp_path_factory.mktemp("good") / "run.zarr"
    make(path, compression=request.param)
    person = Person(path)
    try:
        yield Made(path, person, person.use(path))
    finally:
        sys.stdout.write(f"\n{person.n} stores were used\n")
        person.close()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "run.zarr"
    make(path, compression="none")
    return path


def copied(made: Path, to: Path) -> Path:
    """A copy of links: who changes a file puts another in its place."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(made, to, copy_function=os.link)
    return to


def put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def sealed(record: Any) -> bytes:
    body = json.dumps(record).encode()
    return b'{"record":%s,"sha256":"%s"}\n' % (body, hashlib.sha256(body).hexdigest().encode())


def record_of(path: Path) -> Any:
    return json.loads(path.read_bytes())["record"]


def change_record(store: Path, key: str, record: Any) -> None:
    """Seal a record, and whatever names a plan's seal, again."""
    data = sealed(record)
    put(store / key, data)
    if key != "ledger/plan.json":
        return
    if (store / "ledger/plan.copy.json").exists():
        put(store / "ledger/plan.copy.json", data)
    seal = data[-67:-3].decode()
    for other in [*store.glob("ledger/receipts/*/*.json"), *store.glob("ledger/features/*.json")]:
        change_record(
            store, str(other.relative_to(store)), record_of(other) | {"plan_sha256": seal}
        )


def change_attributes(store: Path, key: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a ``zarr.json``, and its sha256 in the plan."""
    metadata = json.loads((store / key).read_bytes())
    change(metadata)
    data = json.dumps(metadata).encode()
    put(store / key, data)
    plan = record_of(store / "ledger/plan.json")
    plan["objects"][key] = [hashlib.sha256(data).hexdigest(), len(data)]
    change_record(store, "ledger/plan.json", plan)


def hold(found: dict[str, Any], base: dict[str, Any], what: object, *, same: bool = False) -> None:
    assert not found["wrong"], (what, found["wrong"])
    assert not found["outside"], (what, found["outside"])
    if same:  # what was read is what is there
        for name, digest in found["digest"].items():
            assert digest == base["digest"][name], (what, name)


NASTY: list[Any] = [
    *(0, -1, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**40, 2**47, 2**53, 2**62, 2**63 - 1, 2**63, 2**64),
    *(10**30, 10**400, 1e308, 0.5, float("nan"), float("inf"), -float("inf"), None, True, False),
    *(
        "",
        "a",
        "../../../../etc/passwd",
        "/etc/passwd",
        "rows/../../x",
        "a\0b",
        "\x1b[2J\x1b]0;x\7",
    ),
    *("x" * 100_000, "NaN", "\ud800", "<script>", "extract", ".", "c/0", "é\u202e", "1" * 5000),
    *([], {}, [[]], [0] * 10_000, {"a": 1}, {"": {"": []}}, ["../x"], [None], [2**62, -1]),
    *(list(range(5)), "features/made/tokens/00000000-000000000000", "resid_post.1"),
]


def deep(n: int) -> Any:
    value: Any = []
    for _ in range(n):
        value = [value]
    return value


NASTY += [deep(100), deep(900)]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a record; of a long list its first and last."""
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for i in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from places(value[i], (*at, i))


def changed(record: Any, at: tuple[Any, ...], how: str, value: Any) -> Any:
    record = copy.deepcopy(record)
    inside = record
    for step in at[:-1]:
        inside = inside[step]
    if how == "set":
        inside[at[-1]] = value
    elif how == "remove":
        del inside[at[-1]]
    elif isinstance(inside, list):
        inside.append(copy.deepcopy(inside[at[-1]]))
    else:
        inside["unknown"] = value
    return record


def keys_of(store: Path) -> list[str]:
    found = [*store.glob("ledger/receipts/*/*.json"), *store.glob("ledger/features/*.json")]
    names = sorted(str(path.relative_to(store)) for path in found)
    firsts = {name.rpartition("/")[0]: name for name in reversed(names)}
    return ["ledger/plan.json", *sorted(firsts.values())]


def test_the_good_store_is_read_whole(made: Made) -> None:
    """The control: without this, a fuzz that only meets refusals would prove nothing."""
    refused = {name for name in made.base["refused"] if name != "pooled"}
    assert not made.base["wrong"] and not made.base["outside"] and not refused, made.base
    assert {"text 0", f"rows {HOOKPOINT}", "codes"} <= set(made.base["digest"])


def test_any_field_of_any_record(made: Made, tmp_path: Path) -> None:
    keys = keys_of(made.path)
    records = {key: record_of(made.path / key) for key in keys}
    seen = {"refused": 0, "read": 0}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=SEED == 0,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(keys))
        record = records[key]
        for _ in range(data.draw(st.sampled_from([1, 1, 1, 2]))):
            at = data.draw(st.sampled_from(list(places(record))))
            how = data.draw(st.sampled_from(["set"] * 6 + ["remove", "add"]))
            record = changed(record, at, how, data.draw(st.sampled_from(NASTY)))
        store = copied(made.path, tmp_path / "changed.zarr")
        change_record(store, key, record)
        found = made.person.use(store)
        seen["refused" if found["refused"] else "read"] += 1
        hold(found, made.base, (key, record), same=key != "ledger/plan.json")

    check()
    assert min(seen.values()) > 0, seen  # some changes are refused, some have no weight


def sized(plan: dict[str, Any], key: str, n: int) -> None:
    plan["plan"][key] = n


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tokens": lambda p: sized(p, "n_tokens", 2**47),
    "documents": lambda p: sized(p, "n_documents", 2**40),
    "text": lambda p: sized(p, "n_text_bytes", 2**55),
    "tokens, a shard a row": lambda p: p["plan"].update(n_tokens=2**40, shard_rows=1),
    "large shards": lambda p: p["plan"].update(n_tokens=2**22, shard_rows=2**24),
    "tokens within an object": lambda p: sized(p, "n_tokens", 2**22),
    "documents within an object": lambda p: sized(p, "n_documents", 2**20 - 1),
    "wide rows": lambda p: p["plan"]["hookpoints"][0].update(width=2**20),
    "wide beyond all": lambda p: p["plan"]["hookpoints"][0].update(width=2**60),
    "many hookpoints": lambda p: p["plan"].update(
        hookpoints=[{**p["plan"]["hookpoints"][0], "name": f"h{i}"} for i in range(5000)]
    ),
    "many objects": lambda p: (
        sized(p, "n_tokens", 2**22 * 3000),
        p["objects"].update(
            {
                f"documents/{name}/c/{i}": ["0" * 64, 1]
                for name in ("token_id", "char_start", "role")
                for i in range(3000)
            }
        ),
    ),
    "pools": lambda p: p["plan"].update(pools=["last", "mean", "sum"]),
    "pools alone": lambda p: p["plan"].update(pools=["last"], dense=False),
    "raw": lambda p: p["plan"].update(compression="none"),
    "wider numbers": lambda p: p["plan"].update(dtype="float32"),
    "special tokens": lambda p: p["plan"].update(keep_special=True),
    "losses": lambda p: p["plan"].update(with_loss=True),
    "another order": lambda p: p["plan"].update(order="corpus", seed=1),
    "columns": lambda p: p["plan"].update(token_columns=["role", "other"]),
    "no objects": lambda p: p.update(objects={}),
    "a picture": lambda p: p["plan"].update(
        processor={"id": "x", "sha256": "0", "config": {}, "grid": [1, 1]}, n_image_bytes=2**50
    ),
    "a deep request": lambda p: p["plan"].update(request={"a": deep(300)}),
    "no whole numbers": lambda p: p["plan"].update(request={"a": float("nan")}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_plan_that_lies(made: Made, tmp_path: Path, lie: str) -> None:
    store = copied(made.path, tmp_path / "lie.zarr")
    plan = record_of(store / "ledger/plan.json")
    LIES[lie](plan)
    change_record(store, "ledger/plan.json", plan)
    found = made.person.use(store)
    hold(found, made.base, lie)
    assert found["rss"] < made.base["rss"] + LIMIT_BYTES


def rewrite(store: Path, key: str, change: Callable[[Any], Any], path: str | None = None) -> None:
    """Write an array of documents, or a flat one of derived data, with other numbers."""
    opened = actlas.open(store)
    if key.startswith("documents/"):
        spec = opened.documents.columns[key.removeprefix("documents/")].spec
    else:
        shape = json.loads((store / key / "zarr.json").read_bytes())
        spec = flat(key, shape["shape"][0], shape["data_type"], "x")
    values = LazyArray(opened.objects, spec)[:]
    values = np.ascontiguousarray(change(values.copy()), spec.numpy_dtype)
    put(store / spec.key(0), b"".join(bytes(p) for p in ShardWriter(spec, values).parts()))


def at(i: Any, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[i] = value
        return values

    return change


@pytest.mark.parametrize("value", [-1, 2**31 - 1, -(2**31), 7])
@pytest.mark.parametrize("where", [0, 3, -1, slice(None)])
@pytest.mark.parametrize(
    "name",
    ["start", "text_start", "char_start", "char_stop", "label", "source", "record", "role", "text"]
    if LONG
    else ["start", "text_start", "char_start", "label"],
)
def test_documents_that_lie(made: Made, tmp_path: Path, name: str, where: Any, value: int) -> None:
    if not LONG and where != 3 and (name, value) != ("start", -1):
        pytest.skip("in the long form")
    store = copied(made.path, tmp_path / "lie.zarr")
    if name == "text":
        value = value % 256
    if name in ("start", "text_start"):
        value *= 2**30  # these are wide
    rewrite(store, f"documents/{name}", at(where, value))
    hold(made.person.use(store), made.base, (name, where, value))


DERIVED = ["encoded", "tokens", "index", "indexed"]


@pytest.mark.parametrize("value", [-1, 2**31 - 1, 0])
def test_codes_that_lie(made: Made, tmp_path: Path, value: int) -> None:
    arrays = sorted(made.path.glob("features/made/**/c/0"))
    assert {path.parent.parent.name for path in arrays} >= {"nnz_start", "indptr", "count", "data"}
    chosen = arrays if LONG else arrays[:: max(1, len(arrays) // 6)]
    for array in chosen:
        key = str(array.parent.parent.relative_to(made.path))
        for where in (0, -1, slice(None)) if LONG else (slice(None),):
            store = copied(made.path, tmp_path / "lie.zarr")
            shape = json.loads((store / key / "zarr.json").read_bytes())
            unsigned = shape["data_type"].startswith("u")
            rewrite(store, key, at(where, abs(value) % 2**16 if unsigned else value))
            hold(made.person.use(store), made.base, (key, where, value))


def groups(receipt: Any, names: Any) -> Any:
    return {**receipt, "run": {**receipt["run"], "groups": names}}


def keyed(receipt: Any, key: str) -> Any:
    return {**receipt, "objects": [{**o, "key": key} for o in receipt["objects"]]}


CLAIMS: dict[str, Callable[[Any], Any]] = {
    "no groups": lambda r: {**r, "run": {}},
    "groups outside": lambda r: groups(r, ["../../../../../../etc"]),
    "an absolute group": lambda r: groups(r, ["/etc"] * 3),
    "groups that are none": lambda r: groups(r, [3, None]),
    "groups of rows": lambda r: groups(r, ["rows/token_id"] * 5),
    "too many groups": lambda r: groups(r, ["features/made/tokens/0-0123456789ab"] * 50_000),
    "an end of 2**40": lambda r: {**r, "run": {"k": 2**40}},
    "an end of words": lambda r: {**r, "run": {"k": "many"}},
    "keys outside": lambda r: keyed(r, "../../../../../../../../etc/passwd"),
    "absolute keys": lambda r: keyed(r, "/etc/passwd"),
    "a key with nothing": lambda r: keyed(r, "a\0b"),
    "long keys": lambda r: keyed(r, "/".join(["x" * 300] * 3)),
    "a folder's key": lambda r: keyed(r, "rows/token_id"),
    "the plan's key": lambda r: keyed(r, "ledger/plan.json"),
    "no objects": lambda r: {**r, "objects": []},
    "everything twice": lambda r: {**r, "objects": r["objects"] * 2},
    "huge objects": lambda r: {
        **r,
        "objects": [{**o, "n_bytes": 2**62, "chunk_crc32c": [1]} for o in r["objects"]],
    },
    "another range": lambda r: {**r, "start": 0, "stop": 2**62},
    "inputs outside": lambda r: {**r, "inputs": {"ledger/receipts/../../../x": "0", "/etc": "0"}},
    "wild times": lambda r: {**r, "created_unix_s": 1e300, "n_nonfinite": {"a": 2**62}},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_receipt_that_claims(made: Made, tmp_path: Path, claim: str) -> None:
    keys = [key for key in keys_of(made.path) if "receipts" in key]
    chosen = (
        keys if LONG else [k for k in keys if "encoded" in k or "extremes" in k or "/extract/" in k]
    )
    store = copied(made.path, tmp_path / "claim.zarr")
    for key in chosen:  # all of them lie, each read by its own readers
        change_record(store, key, CLAIMS[claim](record_of(made.path / key)))
    hold(made.person.use(store), made.base, claim)


def overlap(index: Any) -> Any:
    index[:] = index[0]
    return index


INDEXES: dict[str, Callable[[Any], Any]] = {
    "overlap": overlap,
    "outside": at(0, [2**40, 100]),
    "wrap": at(0, [2**64 - 10, 20]),
    "huge": at(0, [0, 2**63]),
    "none": at(slice(None), 2**64 - 1),
    "empty": at(0, [0, 0]),
    "short": at(0, [0, 3]),
    "past the end": lambda index: index + np.array([50, 0], "<u8"),
}


@pytest.mark.parametrize("lie", INDEXES)
@pytest.mark.parametrize("key", ["documents/start/c/0", f"activations/{HOOKPOINT}/c/0/0"])
def test_an_index_that_lies(made: Made, raw: Path, tmp_path: Path, key: str, lie: str) -> None:
    for good in (made.path, raw) if LONG or "activations" in key else (made.path,):
        store = copied(good, tmp_path / "index.zarr")
        arrays = actlas.open(good).arrays
        spec = next(s for s in arrays.all().values() if s.key(0) == key)
        n = 16 * spec.chunks_per_shard
        data = (store / key).read_bytes()
        index = np.frombuffer(data[-n - 4 : -4], "<u8").reshape(-1, 2).copy()
        lied = np.ascontiguousarray(INDEXES[lie](index)).tobytes()
        put(store / key, data[: -n - 4] + lied + struct.pack("<I", crc32c(lied)))
        found = made.person.use(store)
        hold(found, made.base, (key, lie))
        assert found["refused"] or lied == index.tobytes(), (key, lie)


def test_few_bytes_stand_for_few_rows(tmp_path: Path) -> None:
    """An index whose entries are all of one chunk, or of none, before memory is taken."""
    n = 40 * FLAT_CHUNK
    spec = flat("a", n, "int64", "x")
    whole = b"".join(bytes(p) for p in ShardWriter(spec, np.arange(n)).parts())
    chunks, index = whole[: -16 * 40 - 4], np.frombuffer(whole[-16 * 40 - 4 : -4], "<u8")
    for lied, words in (
        (np.tile(index.reshape(-1, 2)[index[1::2].argmax()], 40), "overlap"),
        (np.full(80, 2**64 - 1, "<u8"), "points outside"),
        (index + np.tile(np.array([0, 1], "<u8"), 40), "overlap"),
    ):
        body = np.ascontiguousarray(lied).tobytes()
        store = tmp_path / words
        (store / "a/c").mkdir(parents=True, exist_ok=True)
        for n_times in (1, 100):  # a hundred times as many rows are promised
            promised = flat("a", n * n_times, "int64", "x")
            entries = body * n_times
            put(store / "a/c/0", chunks + entries + struct.pack("<I", crc32c(entries)))
            tracemalloc.start()
            with pytest.raises(CorruptDataError, match=words):
                LazyArray(LocalObjects(store), promised).read(0, n * n_times)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert most < LARGE_BYTES
    put(store / "a/c/0", whole)  # the control
    assert (LazyArray(LocalObjects(store), spec).read(0, n) == np.arange(n)).all()


def test_chunks_that_lie(made: Made, tmp_path: Path) -> None:
    """Every byte of a Blosc header, and some behind it, with a checksum that is right."""
    rng = np.random.default_rng(SEED)
    keys = [f"activations/{HOOKPOINT}/c/0/0", "documents/text/c/0", "documents/start/c/0"]
    n_each = 60 if LONG else 3
    for key in keys:
        spec = next(s for s in actlas.open(made.path).arrays.all().values() if s.key(0) == key)
        whole = (made.path / key).read_bytes()
        n = 16 * spec.chunks_per_shard + 4
        offset, length = struct.unpack("<QQ", whole[-n:][:16])
        for i in range(n_each * (4 if LONG else 2)):
            body = bytearray(whole[offset : offset + length - 4])
            for _ in range(1 + i % 3):
                place = int(rng.integers(0, 16 if i % 2 else min(len(body), 64)))
                body[place] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
            chunk = bytes(body) + struct.pack("<I", crc32c(body))
            store = copied(made.path, tmp_path / "chunk.zarr")
            put(store / key, whole[:offset] + chunk + whole[offset + length :])
            hold(made.person.use(store), made.base, (key, bytes(body[:64])))


ATTRIBUTES: list[Any] = [
    None, [], {}, "x", 3, ["\x1b[2J\x1b]0;pwned\7", "<script>alert(1)</script>"], [1, 2],
    ["S", "S"], ["x"] * 100_000, ["S"], deep(100), {"names": "S"},
]  # fmt: skip


@pytest.mark.parametrize("key", ["documents/label", "documents/source", "documents/role"])
def test_names_that_lie(made: Made, tmp_path: Path, key: str) -> None:
    for names in ATTRIBUTES if LONG else ATTRIBUTES[4:8]:
        for change in (
            lambda m, v=names: m["attributes"].update(names=v),
            lambda m, v=names: m.update(attributes=v),
        ):
            store = copied(made.path, tmp_path / "names.zarr")
            change_attributes(store, f"{key}/zarr.json", change)
            hold(made.person.use(store), made.base, (key, names))


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"x"', b"{}", b"", b"{" * 100_000,
    b'{"attributes":3}', b'{"attributes":{"actlas":[]}}', b"\xff", b"[" * 900 + b"]" * 900,
    b'{"attributes":{"actlas":{"format_version":{}}}}'])  # fmt: skip
def test_a_root_that_is_none(made: Made, tmp_path: Path, body: bytes) -> None:
    store = copied(made.path, tmp_path / "root.zarr")
    put(store / "zarr.json", body)
    with pytest.raises(ActlasError):
        actlas.open(store)


# Links, pipes, folders


@pytest.mark.parametrize(
    "key", ["zarr.json", "ledger/plan.json", "documents/text/c/0", "rows/token_id/c/0",
            f"ledger/receipts/extract/{0:08d}.json", f"activations/{HOOKPOINT}/c/0/0"],
)  # fmt: skip
def test_links_and_pipes_in_the_place_of_files(made: Made, tmp_path: Path, key: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((made.path / key).read_bytes())  # even where it would be the right bytes
    for kind in ("link", "pipe", "folder", "zero", "loop"):
        store = copied(made.path, tmp_path / "odd.zarr")
        (store / key).unlink()
        if kind == "pipe":
            os.mkfifo(store / key)
        elif kind == "folder":
            (store / key).mkdir()
        else:
            target = {"link": secret, "zero": Path("/dev/zero"), "loop": store / key}[kind]
            (store / key).symlink_to(target)
        found = made.person.use(store)
        hold(found, made.base, (key, kind), same=True)
        assert found["refused"], (key, kind)


@pytest.mark.parametrize("folder", ["documents", "activations", "ledger/receipts", "features/made"])
def test_a_folder_that_leads_out_is_not_read(made: Made, tmp_path: Path, folder: str) -> None:
    store = copied(made.path, tmp_path / "odd.zarr")
    shutil.move(store / folder, tmp_path / "elsewhere")
    (store / folder).symlink_to(tmp_path / "elsewhere")
    found = made.person.use(store)
    hold(found, made.base, folder)
    assert any("leads out of the store" in why for why in found["refused"].values()), found


def test_a_run_in_a_strangers_store_touches_nothing_elsewhere(made: Made, tmp_path: Path) -> None:
    """A link in the place of the staging folder would have a run empty whatever it leads to."""
    victim = tmp_path / "victim"
    for folder in ("ledger/staging", "ledger/lease", "rows", "ledger/receipts", "ledger"):
        victim.mkdir()
        (victim / "thesis.tex").write_text("years of work")
        store = copied(made.path, tmp_path / "store.zarr")
        shutil.rmtree(store / folder, ignore_errors=True)
        (store / folder).parent.mkdir(exist_ok=True)
        (store / folder).symlink_to(victim)
        objects = LocalObjects(store)
        for act in (
            objects.sweep,
            lambda o=objects, f=folder: o.create(f"{f}/c/0", [b"x"]),
            lambda o=objects, f=folder: o.replace(f"{f}/a.json", b"x"),
            lambda o=objects, f=folder: o.delete(f"{f}/thesis.tex"),
            lambda o=objects, f=folder: o.prune(f),
            lambda o=objects, f=folder: list(o.names(f)),
        ):
            try:
                act()
            except CorruptDataError as error:
                assert "leads out of the store" in str(error)
        assert [p.name for p in victim.rglob("*")] == ["thesis.tex"], folder
        assert f"{folder}" in list(objects.walk()), "verify would name it"
        shutil.rmtree(victim)


def test_a_store_may_itself_be_a_link_and_hold_links_within(made: Made, tmp_path: Path) -> None:
    store = copied(made.path, tmp_path / "store.zarr")
    (tmp_path / "name.zarr").symlink_to(store)
    shutil.move(store / "documents", store / "moved")
    (store / "documents").symlink_to("moved")
    assert actlas.open(tmp_path / "name.zarr").documents.text(0)


@pytest.mark.parametrize("key", ["/etc/passwd", "../x", "a/../../x", "a\0b", "x" * 2000])
def test_keys_that_are_none(tmp_path: Path, key: str) -> None:
    with pytest.raises(FormatError, match="stays inside"):
        LocalObjects(tmp_path).read(key)


def test_a_record_of_no_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "zarr.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="no record"):
        actlas.open(tmp_path)


def test_what_is_shown_steers_no_terminal_and_no_page(made: Made, tmp_path: Path) -> None:
    pass

    evil = "\x1b[2J\x9b31m<script>alert(1)</script>"
    store = copied(made.path, tmp_path / "shown.zarr")
    for key in ("label", "source", "role"):
        change_attributes(
            store,
            f"documents/{key}/zarr.json",
            lambda m: m["attributes"].update(names=[evil, evil + "2"]),
        )
    opened = actlas.open(store)
    document, features = opened.document(0), opened.features("made")
    texts = [repr(opened), repr(opened.documents), repr(document), repr(features)]
    texts.append(CliRunner().invoke(cli, ["show", store, "--doc", "0"]).output)
    texts.append(repr(features.contexts(3, 2)))
    assert any("\\x1b" in text for text in texts)
    assert not any("\x1b" in text or "\x9b" in text for text in texts)
    pages = [document._repr_html_(), opened.documents._repr_html_(), opened._repr_html_()]
    pages.append(features.contexts(len(features) - 1, 3).to_html())
    assert "<script>" not in "".join(pages) and "&lt;script&gt;" in "".join(pages)
    plan = record_of(made.path / "ledger/plan.json")
    for where in (("model", "id"), ("corpus", "uri"), ("tokenizer", "id")):
        lied = copy.deepcopy(plan)
        lied["plan"][where[0]][where[1]] = evil
        change_record(store, "ledger/plan.json", lied)
        with pytest.raises(FormatError, match="pattern"):
            actlas.open(store)


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\tx", "a\n=1", "../x"])
def test_a_hookpoints_name_is_no_formula_of_a_table(made: Made, tmp_path: Path, name: str) -> None:
    """``units.csv`` holds these names, and a spreadsheet would compute what begins so."""
    store = copied(made.path, tmp_path / "named.zarr")
    plan = record_of(store / "ledger/plan.json")
    plan["plan"]["hookpoints"][0]["name"] = name
    change_record(store, "ledger/plan.json", plan)
    with pytest.raises(FormatError, match="hookpoints"):
        actlas.open(store)
