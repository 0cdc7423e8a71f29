"""The old code and today's: both write the same bytes, and each finishes what the other began.

The old code comes from the history of this git checkout. Both run in sessions of their own (see
``session``), with a clock that stands still and one host name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from compatibility import checkout, commands, plain_reader
from compatibility.build_fixture import FIXTURE
from compatibility.checkout import HERE, OLD, ROOT, Result, Step, cli
from compatibility.comparison import check_alike, decoded
from compatibility.session import HOST, command

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not Path(HERE).exists(), reason=f"the stores name their model {HERE}/model: needs Linux"
    ),
    pytest.mark.skipif(
        not checkout.has(OLD),
        reason=f"COMPATIBILITY NOT TESTED IN BOTH DIRECTIONS: commit {OLD[:12]} is not in this "
        "checkout's history (a shallow clone, or no git). `git fetch --unshallow` brings it.",
    ),
]
RUN = commands.RUN
SAE = ("--sae", "codes")
UNIT = ("--hookpoint", commands.UNITS, "--unit", 3)
HALF = ("half-extracted", "half-encoded", "half-indexed")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUESTIONS: tuple[tuple[object, ...], ...] = (
    ("info",),
    ("show", "--doc", 5),
    ("contexts", *SAE, "--feature", 4),
    ("contexts", *UNIT),
    ("status",),
)
"""Commands with ``--json``, about the store ``new-whole``."""


def made(prefix: str) -> list[Step]:
    """Return the steps by which either code makes its stores, and leaves some half done."""
    planned, whole, encoded = (f"{prefix}{name}" for name in ("planned", "whole", "encoded"))
    encode, *index = commands.derived(whole)
    at = "receipts/indexed.codes/00000000.json"
    return [
        cli("plan", planned, *commands.WHOLE),
        checkout.copy(planned, whole),
        cli("extract", whole, *RUN),
        *commands.half_extracted(planned, whole, f"{prefix}half-extracted"),
        *commands.half_encoded(planned, f"{prefix}half-encoded"),
        encode,
        checkout.copy(whole, encoded),
        *commands.half_indexed(encoded, f"{prefix}half-indexed", at),
        *index,
        *commands.damaged(whole, f"{prefix}damaged"),
        *commands.results(whole, prefix),
        *commands.extracted(f"{prefix}raw", commands.RAW),
        *commands.extracted(f"{prefix}chat", commands.CHAT),
        *commands.extracted(f"{prefix}pictures", commands.IMAGES),
    ]


def resumed(prefix: str) -> list[Step]:
    """Return the steps by which the other code verifies, resumes and repairs these stores."""
    extracted, encoded, indexed = (f"{prefix}{name}" for name in HALF)
    damaged = f"{prefix}damaged"
    whole = [f"{prefix}{name}" for name in ("whole", "raw", "chat", "pictures")]
    return [
        *(cli("verify", name, "--full") for name in (*whole, extracted, encoded, indexed)),
        cli("status", extracted),
        cli("extract", extracted, *RUN, code=3),
        cli("extract", extracted, "--retry-quarantined", *RUN),
        cli("extract", encoded, *RUN),
        cli("sae", "encode", encoded, *SAE, *RUN),
        cli("sae", "index", encoded, *SAE),
        cli("contexts", encoded, *UNIT),
        cli("sae", "index", indexed, *SAE),
        cli("contexts", indexed, *UNIT),
        cli("verify", damaged, "--full", code=4),
        cli("repair", damaged, *RUN),
        cli("extract", damaged, *RUN),
        cli("contexts", damaged, *UNIT),
        *(cli("verify", name, "--full") for name in (extracted, encoded, indexed, damaged)),
        # The two codes give the rows in another order, and each refuses what the other began.
        cli(*commands.training(f"{prefix}whole", f"{prefix}half-trained"), code=2),
    ]


class Both(NamedTuple):
    """The folder of all stores, and the results of the two sessions' commands."""

    folder: Path
    today: list[Result]
    old: list[Result]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Stores by today's code, which the old code has resumed and repaired; and its own."""
    folder = tmp_path_factory.mktemp("both")
    for path in FIXTURE.iterdir():
        if path.name not in ("stores", "oracle.json", "rows.npz"):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / path.name)
    today = checkout.run(ROOT / "src", folder, made("new-"))
    source = checkout.archive(OLD, tmp_path_factory.mktemp("old"))
    questions = [cli(verb, "new-whole", *more, "--json") for verb, *more in QUESTIONS]
    steps = [*questions, *resumed("new-"), *made("old-")]
    return Both(folder, today, checkout.run(source, folder, steps))


@pytest.fixture(autouse=True)
def inside(both: Both, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory and the host of the sessions, for commands in this process."""
    monkeypatch.chdir(both.folder)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


def call(*arguments: object, code: int = 0) -> str:
    """Run today's ``actlas`` in this process, which must exit with ``code``."""
    found = command([str(argument) for argument in arguments])
    assert found["code"] == code, found
    output: str = found["stdout"]
    return output


def test_todays_commands_exit_as_expected(both: Both) -> None:
    for result in both.today:
        result.check()


def test_the_old_code_resumes_and_repairs_new_stores(both: Both) -> None:
    for result in both.old:
        result.check()
    check_finished("new-")


def test_todays_code_resumes_and_repairs_old_stores() -> None:
    before = {store: plain_reader.files(store) for store in map(Path, (f"old-{n}" for n in HALF))}
    for store in before:
        lease = max(store.glob("ledger/lease/*.json"))
        assert not lease.with_suffix(".released").exists(), "the driver was killed"
    for step in resumed("old-"):  # without waiting: the holder's process is gone from this host
        call(*step["args"], code=step["code"])
    for store, files in before.items():
        planned_or_rows = {k: v for k, v in files.items() if not k.startswith(("feat", "extr"))}
        assert planned_or_rows.items() <= plain_reader.files(store).items()
    check_finished("old-")


def check_finished(prefix: str) -> None:
    """Raise where the resumed and the repaired stores differ from the whole one."""
    whole = Path(f"{prefix}whole")
    rows, truth = decoded(whole, derived=False), decoded(whole)
    check_alike(decoded(Path(f"{prefix}half-extracted")), rows)
    for name in ("half-encoded", "half-indexed", "damaged"):
        check_alike(decoded(Path(f"{prefix}{name}")), truth)


def test_both_print_the_same_json(both: Both) -> None:
    said = {result.command: result for result in both.old}
    for verb, *more in QUESTIONS:
        words = [str(word) for word in (verb, "new-whole", *more, "--json")]
        now, before = json.loads(call(*words)), json.loads(said[" ".join(words)].stdout)
        if verb == "contexts":  # the title and the facts are text for people
            now, before = now["contexts"], before["contexts"]
        assert _timeless(now) == _timeless(before), verb


def _timeless(answer: Any) -> Any:
    """Return plain values without seconds, times, and what the old code takes for derived jobs."""
    if isinstance(answer, dict):
        jobs = answer.get("derived", [])
        answer = answer | {"derived": [j for j in jobs if not j["job"].startswith("finished.")]}
        return {k: _timeless(v) for k, v in answer.items() if not k.endswith(("_s", "seconds"))}
    return [_timeless(each) for each in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("name", ["whole", "raw", "chat", "pictures"])
def test_both_write_the_same_bytes(name: str) -> None:
    new, old = masked(Path(f"new-{name}")), masked(Path(f"old-{name}"))
    assert new.keys() - old.keys() == {*ADDED} and old.keys() <= new.keys()
    differ = [key for key in old if new[key] != old[key]]
    assert not differ, "\n".join(f"{key}:\n  {new[key]!r}\n  {old[key]!r}" for key in differ[:3])
    if _version(Path(f"new-{name}")) == _version(Path(f"old-{name}")):
        new_plan, old_plan = (Path(f"{who}-{name}/ledger/plan.json") for who in ("new", "old"))
        records = [plain_reader.record(plan) for plan in (new_plan, old_plan)]
        assert [records[0]["objects"].pop(key, None) is None for key in ADDED] == [False] * 2
        assert records[0] == records[1], "the clock stood still"


def results(name: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the files of a result by today's code and by the old one."""
    new, old = (
        {path.name: path.read_bytes() for path in sorted(Path(f"{who}-{name}").iterdir())}
        for who in ("new", "old")
    )
    assert new.keys() == old.keys()
    return new, old


def test_both_save_the_same_mask() -> None:
    new, old = results("mask")
    for key in old:
        assert _unsealed(new[key], "new-whole") == _unsealed(old[key], "old-whole"), key


def test_both_save_autoencoders_in_the_same_form() -> None:
    """Not the same ones: today's code gives the rows of a training in another order."""
    new, old = results("trained")
    for key in old:
        if key.endswith(".json"):
            now, before = json.loads(new[key]), json.loads(old[key])
            assert _form(_known(now, before)) == _form(before), key
    assert len(new["sae_weights.safetensors"]) == len(old["sae_weights.safetensors"])


def _form(value: Any) -> Any:
    """Return the names and types of plain values."""
    if isinstance(value, dict):
        return {name: _form(each) for name, each in value.items()}
    return type(value).__name__


def _known(now: Any, before: Any) -> Any:
    """Return plain values without the fields that today's code records in addition."""
    if isinstance(now, dict) and isinstance(before, dict):
        return {name: _known(now[name], value) for name, value in before.items() if name in now}
    return now


def _unsealed(data: bytes, store: str) -> bytes:
    """Return a result without seconds, without the seal of its store's plan, and its own."""
    data = re.sub(rb'"(seconds|rows_per_second)": [-0-9.e]+', rb'"\1": 0', data)
    data = data.replace(plain_reader.seal(Path(store) / "ledger/plan.json").encode(), b"PLAN")
    return re.sub(rb',"sha256":"[0-9a-f]{64}"}\n$', b"", data)


def _version(store: Path) -> str:
    """Return the version of actlas that has planned a store."""
    version: str = plain_reader.plan(store)["actlas_version"]
    return version


ADDED = ("ledger/model_files.json", "ledger/model_files.copy.json")
"""What today's code writes and the old one did not: it is listed in the plan like any object."""
MARK = rb"-[0-9a-f]{12}(?=[/\"])"
"""The end of a derived group's name, which every attempt draws anew."""
MASKS = (
    (MARK, b"-MARK"),
    (rb'"attempt":"(before )?[^"]*"', rb'"attempt":"\1ATTEMPT"'),
    (rb'"([a-z_]+_s)":[-0-9.e]+', rb'"\1":SECONDS'),
    (rb'"chunk_crc32c":(null|\[[0-9,]+\])', rb'"chunk_crc32c":CHECKSUMS'),
    (rb'"batching":"[^"]*",', b""),
    (rb'"ledger/model_files[a-z.]*":\["[0-9a-f]{64}",[0-9]+\],', b""),
)
"""What differs in the records of a store when one code writes it twice.

Today's code also records the checksums of compressed chunks, that a job was finished, how
sequences were put into batches, and the files of the model's folder.
"""


def masked(store: Path) -> dict[str, bytes]:
    """Return a store's files by key, with placeholders for what differs from run to run.

    That is in receipts the times and the names of attempts; hence the seals of receipts, wherever
    they are named, and the digests of metadata that name groups. A seal is replaced by the key of
    the record whose seal it is, so that a wrong one shows.
    """
    files = plain_reader.files(store)
    files = {k: v for k, v in files.items() if not k.startswith("ledger/receipts/finished.")}
    names = {plain_reader.seal(store / k).encode(): k for k in files if _sealed(k)}
    root = hashlib.sha256(files["zarr.json"]).hexdigest().encode()  # it holds the version
    version = re.escape(_version(store).encode())
    found = {}
    for key, data in files.items():
        if _sealed(key):
            for part in plain_reader.record(store / key).get("objects", []):
                if isinstance(part, dict) and re.search(MARK, files[part["key"]]):
                    data = data.replace(part["xxh3"].encode(), b"XXH3")
            for seal, named in names.items():
                data = data.replace(seal, f"SEAL OF {named}".encode())
            for pattern, instead in MASKS:
                data = re.sub(pattern, instead, data)
            data = data.replace(root, b"ROOT")
        if key.endswith(".json"):
            data = re.sub(MARK, b"-MARK", data)
            data = re.sub(rb'("(?:actlas_version|actlas)": ?)"%s"' % version, rb"\1VERSION", data)
        found[re.sub(MARK, b"-MARK", key.encode()).decode()] = data
    return found


def _sealed(key: str) -> bool:
    """Whether the object of a key is a sealed record."""
    return key.startswith("ledger/") and key != "ledger/zarr.json"
