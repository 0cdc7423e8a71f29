"""Stores written by the old code: today's code opens, verifies, resumes and repairs them.

``build_fixture`` has written them and the oracle; it says what state each one is in.
"""

from __future__ import annotations

import json
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from safetensors.numpy import load_file

import actlas
from compatibility import commands, plain_reader
from compatibility.build_fixture import FIXTURE, STORES, WHOLE
from compatibility.checkout import HERE
from compatibility.comparison import check_alike, check_close, decoded
from compatibility.session import command, flip

pytestmark = pytest.mark.skipif(
    not Path(HERE).exists(), reason=f"the stores name their model {HERE}/model, which needs Linux"
)
ORACLE = json.loads((FIXTURE / "oracle.json").read_text())
RUN = commands.RUN
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: a new folder with the inputs of the stores."""
    for path in FIXTURE.iterdir():
        if path.name not in ("stores", "oracle.json", "rows.npz"):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    handlers = {each: signal.getsignal(each) for each in SIGNALS}  # the command line sets its own
    yield tmp_path
    for each, handler in handlers.items():
        signal.signal(each, handler)


def unpacked(name: str) -> Path:
    """Unpack a store, or a folder of results, and return its path."""
    with tarfile.open(FIXTURE / "stores" / f"{name}.tar.xz") as tar:
        tar.extractall(".", filter="data")
    return Path(name)


def call(*arguments: object, code: int = 0, of: str = "stdout") -> str:
    """Run ``actlas``, which must exit with ``code``, and return its output."""
    made = command([str(argument) for argument in arguments])
    assert made["code"] == code, made
    output: str = made[of]
    return output


def answer(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Return what a command prints with ``--json``, in the form that the oracle has."""
    values = json.loads(call(*arguments, code=code).replace(str(Path.cwd()), HERE))
    return {key: value for key, value in values.items() if key != "seconds"}


def recorded(verb: str, name: str) -> dict[str, Any]:
    """Return the old code's answer about a store."""
    (question,) = [key for key in ORACLE["said"] if key.startswith(f"{verb} {name} ")]
    return dict(ORACLE["said"][question])


def digests(name: str) -> dict[str, Any]:
    """Return the recorded digests of a store's arrays by key."""
    found = ORACLE["arrays"].items()
    return {key.partition("/")[2]: value for key, value in found if key.startswith(f"{name}/")}


@pytest.mark.parametrize("name", WHOLE)
def test_the_reader_returns_the_recorded_arrays(name: str) -> None:
    store = actlas.open(unpacked(name))
    plan = plain_reader.plan(Path(name))
    found: dict[str, NDArray[Any]] = {}
    for hookpoint, pools in store.pooled.items():
        found |= {f"pooled/{hookpoint}/{pool}": rows[:] for pool, rows in pools.items()}
    if plan["dense"]:
        found |= {f"rows/{key}": column[:] for key, column in store.rows.columns.items()}
        found |= {f"activations/{key}": rows[:] for key, rows in store.activations.items()}
    documents = [store.document(i) for i in range(plan["n_documents"])]
    text = "".join(document.text for document in documents)
    found["documents/text"] = np.frombuffer(text.encode(), np.uint8)
    starts = [document.start for document in documents]
    found["documents/start"] = np.array([*starts, plan["n_tokens"]], np.int64)
    for key in ("token_id", "char_start"):
        parts = [getattr(document, key) for document in documents]
        found[f"documents/{key}"] = np.concatenate(parts)
    records = [document.source.record for document in documents]
    found["documents/record"] = np.array(records, np.int64)
    if (Path(name) / "features").exists():
        found |= _derived(store)
    truth = digests(name)
    for key, values in found.items():
        assert plain_reader.digest(values) == truth[key], key
    left = {key for key in truth.keys() - found.keys() if key != "features/codes/sum"}
    assert {key.split("/")[0] for key in left} <= {"documents", "statistics"}
    _check_labels(documents, name)
    _check_truth(found, name)


def _derived(store: actlas.Store) -> dict[str, NDArray[Any]]:
    """Return features, index and extremes through the reader, by the oracle's keys."""
    features, n = store.features("codes"), store.plan.n_tokens
    assert features.encoded and features.indexed
    codes = features.codes(0, n)
    dense = np.zeros((n, len(features)), np.float32)
    dense[np.repeat(np.arange(n), np.diff(codes.indptr)), codes.indices] = codes.data
    falling = [features.top(i, int(features.count[i])) for i in range(len(features))]
    found: dict[str, NDArray[Any]] = {
        "codes": dense,
        "count": np.asarray(features.count),
        "max": np.asarray(features.max),
        "t": np.concatenate([peak.t for peak in falling]).astype(np.int32),
        "value": np.concatenate([peak.value for peak in falling]),
    }
    fires = features.count > 0
    sums = (features.mean * features.count)[fires]
    np.testing.assert_allclose(sums, dense.sum(axis=0, dtype=np.float64)[fires], rtol=1e-12)
    found = {f"features/codes/{key}": values for key, values in found.items()}
    units = store.units(commands.UNITS)
    for end, peaks in (("top", units.top), ("bottom", units.bottom)):
        both = [peaks(unit, units.k) for unit in range(len(units))]
        found[f"extremes/{commands.UNITS}/{end}_t"] = np.array([peak.t for peak in both])
        found[f"extremes/{commands.UNITS}/{end}_value"] = np.array([peak.value for peak in both])
    return found


def _check_labels(documents: list[Any], name: str) -> None:
    """Raise where texts, labels and columns of tokens are not those of the corpus."""
    if name == "pictures":
        assert [document.label for document in documents] == ["blue"] * 5 + ["red"] * 5
        return
    file = "chat.jsonl" if name == "chat" else "corpus.jsonl"
    records = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert sorted(document.source.record for document in documents) == list(range(len(records)))
    for document in documents:
        record = records[document.source.record]
        if name == "chat":
            roles = {message["role"] for message in record["messages"]}
            assert roles <= set(document.columns["role"]) <= {*roles, None}
            continue
        assert document.text == record["text"] and document.label == record["meta"]["kind"]
        if name == "whole" and record["parts"]:
            assert set(document.columns["parts"]) == {"subject", "place", None}


def _check_truth(found: dict[str, NDArray[Any]], name: str) -> None:
    """Raise where rows are not those of transformers' own forward passes, as recorded."""
    with np.load(FIXTURE / "rows.npz") as truth:
        for file in [key for key in truth.files if key.startswith(f"{name}/")]:
            key, rows = file.partition("/")[2], truth[file]
            if not key.startswith("pooled/"):
                start = found["documents/start"]
                rows = rows[start[found["rows/doc_idx"]] + found["rows/pos_idx"]]
            np.testing.assert_allclose(
                found[key].astype(np.float32), rows.astype(np.float32), rtol=2**-7, atol=1e-3
            )


@pytest.mark.parametrize("name", WHOLE)
def test_plain_zarr_returns_the_recorded_arrays(name: str) -> None:
    unpacked(name)
    for key, truth in digests(name).items():
        if not key.startswith(("features/", "extremes/")):
            values = np.asarray(zarr.open_array(f"{name}/{key}", mode="r")[...])
            assert plain_reader.digest(values) == truth, key


@pytest.mark.parametrize("name", ["whole", "raw"])
def test_total_statistics_are_those_of_the_rows(name: str) -> None:
    store = actlas.open(unpacked(name))
    for hookpoint, array in store.activations.items():
        rows, totals = array[:].astype(np.float64), store.statistics(hookpoint)
        assert (totals.n == len(rows)).all()
        np.testing.assert_allclose(totals.mean, rows.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(totals.variance, rows.var(axis=0, ddof=1), rtol=1e-9)
        assert totals.mean_norm == pytest.approx(np.linalg.norm(rows, axis=1).mean())


@pytest.mark.parametrize("name", STORES)
def test_verify_finds_what_the_old_code_found(name: str) -> None:
    unpacked(name)
    code = 4 if name == "damaged" else 0
    found, truth = answer("verify", name, "--full", "--json", code=code), recorded("verify", name)
    for report in (found, truth):  # the words that describe a finding may change
        report["damages"] = [{**each, "what": None} for each in report["damages"]]
    assert found == truth
    assert call("verify", name, code=code)


@pytest.mark.parametrize("question", [q for q in ORACLE["said"] if not q.startswith("verify")])
def test_json_output_equals_the_recorded(question: str) -> None:
    arguments = question.split()
    unpacked(arguments[1])
    found, truth = answer(*arguments), ORACLE["said"][question]
    if arguments[0] == "contexts":  # the title and the facts are text for people
        found, truth = found["contexts"], truth["contexts"]
    assert found == truth


def test_a_half_extracted_store_is_resumed() -> None:
    store = unpacked("half-extracted")
    before = plain_reader.files(store)
    assert "quarantine" in call("status", store)
    call("extract", store, *RUN, code=3)  # shard 1 stays in quarantine
    assert list(plain_reader.receipts(store, "extract")) == [0, 2, 3, 4]
    call("extract", store, "--retry-quarantined", *RUN)
    assert list((store / "ledger/staging").iterdir()) == []
    check_finished(store, before, decoded(unpacked("whole"), derived=False))


def test_a_half_encoded_store_is_resumed() -> None:
    store = unpacked("half-encoded")
    before = plain_reader.files(store)
    call("extract", store, *RUN)
    call("sae", "encode", store, "--sae", "codes", *RUN)  # by the name of the set of features
    call("sae", "index", store, "--sae", "codes")
    call("contexts", store, "--hookpoint", commands.UNITS, "--unit", 3)
    kept = without_orphans(before, store, "features/codes/tokens/00000002-")
    check_finished(store, kept, decoded(unpacked("whole")))


def test_a_half_indexed_store_is_resumed() -> None:
    store = unpacked("half-indexed")
    before = plain_reader.files(store)
    call("sae", "index", store, "--sae", "codes")
    call("contexts", store, "--hookpoint", commands.UNITS, "--unit", 3)
    kept = without_orphans(
        before, store, f"extremes/{commands.UNITS}-", "features/codes/index/00000010-"
    )
    check_finished(store, kept, decoded(unpacked("whole")))
    for key, values in decoded(store).items():  # no model was run, so all bits must be the same
        assert plain_reader.digest(values) == ORACLE["arrays"][f"whole/{key}"], key


def without_orphans(before: dict[str, bytes], store: Path, *prefixes: str) -> dict[str, bytes]:
    """Return a store's earlier files without the groups of killed attempts, which must be gone."""
    orphans = {key for key in before if key.startswith(prefixes)}
    assert orphans and not orphans & plain_reader.files(store).keys()
    return {key: data for key, data in before.items() if key not in orphans}


def check_finished(store: Path, kept: dict[str, bytes], truth: dict[str, NDArray[Any]]) -> None:
    """Raise where a store is incomplete or differs from ``truth``, or a kept file was changed."""
    report = answer("verify", store, "--full", "--json")
    assert report["ok"] and report["complete"] and report["unclaimed"] == []
    assert kept.items() <= plain_reader.files(store).items()
    check_alike(decoded(store), truth)


def test_a_damaged_store_is_repaired() -> None:
    store, whole = unpacked("damaged"), unpacked("whole")
    call("repair", store, *RUN)
    report = answer("verify", store, "--full", "--json")
    assert report["ok"] and report["missing_pooled"] == [1]  # a removed receipt is no damage
    call("extract", store, *RUN)
    call("contexts", store, "--hookpoint", commands.UNITS, "--unit", 3)
    report = answer("verify", store, "--full", "--json")
    assert report["ok"] and report["complete"] and report["unclaimed"] == []
    check_alike(decoded(store), decoded(whole))
    now, before = plain_reader.files(store), plain_reader.files(whole)
    planned = ("documents/", "ledger/plan", "ledger/zarr.json", "ledger/features")
    exact = [key for key in before if key.startswith(planned)]
    assert {key: now[key] for key in exact} == {key: before[key] for key in exact}
    again = call("repair", store, *RUN)
    assert plain_reader.files(store) == now, again


def test_a_store_with_a_repaired_shard_is_repaired_again() -> None:
    store = unpacked("raw")
    truth = decoded(store)
    flip(store / "activations/resid_post.1/c/2/0")
    damages = answer("verify", store, "--full", "--json", code=4)["damages"]
    assert [each["key"] for each in damages] == ["activations/resid_post.1/c/2/0"]
    call("repair", store, *RUN)
    assert answer("verify", store, "--full", "--json")["ok"]
    check_alike(decoded(store), truth)
    rows = actlas.open(store).activations["resid_post.1"][:]
    check_close(rows, truth["activations/resid_post.1"], "as the reader returns them")


def test_batches_and_localize_read_an_old_store() -> None:
    store = actlas.open(unpacked("whole"))
    rows = store.activations["resid_post.1"][:].astype(np.float32)
    special = store.rows.columns["special"][:] == 1
    stream = actlas.batches(store, "resid_post.1", batch_size=100, seed=1)
    read = np.concatenate([batch.activations.numpy() for batch in stream])
    assert sorted(map(tuple, read.tolist())) == sorted(map(tuple, rows[~special].tolist()))
    found = actlas.localize("whole", "animals:weather", pool="mean").table
    assert len(found) == sum(array.shape[1] for array in store.activations.values())


def test_a_half_trained_autoencoder_of_another_order_is_refused_and_left_alone() -> None:
    unpacked("whole")
    half = unpacked("half-trained")
    files = {path: path.read_bytes() for path in half.iterdir()}
    error = call(*commands.training("whole", "half-trained"), code=2, of="stderr")
    for part in ("half-trained", "in another order", "Finish with that actlas, or remove"):
        assert part in error
    assert {path: path.read_bytes() for path in half.iterdir()} == files


def test_a_trained_autoencoder_is_read_and_a_new_one_is_alike() -> None:
    unpacked("whole")
    trained, half = unpacked("trained"), Path("again")
    call(*commands.training("whole", "again"))
    assert {path.name for path in trained.iterdir()} == {
        path.name for path in half.iterdir() if path.suffix != ".png"
    }
    now, before = (json.loads((folder / "metrics.json").read_text()) for folder in (half, trained))
    exact = ("options", "n_steps", "n_tokens", "n_tokens_seen", "n_features", "l0")
    assert {key: now[key] for key in exact} == {key: before[key] for key in exact}
    assert now["explained_variance"] == pytest.approx(before["explained_variance"], abs=0.05)
    weights = load_file(trained / "sae_weights.safetensors")
    loaded = dict(actlas.load_sae(trained).named_parameters())
    assert loaded.keys() == weights.keys()
    assert all((loaded[key].detach().numpy() == weights[key]).all() for key in weights)
    files = {path: path.read_bytes() for path in trained.iterdir()}
    call(*commands.training("whole", "trained"))  # nothing is left to do
    assert {path: path.read_bytes() for path in trained.iterdir()} == files


def test_a_mask_is_read_and_made_again() -> None:
    unpacked("whole")
    mask = unpacked("mask")
    call(*commands.contrast("whole", "again"))
    now, before = (plain_reader.record(folder / "mask.json") for folder in (Path("again"), mask))
    for record in (now, before):
        del record["key"]["versions"]
    assert now == before
    text = ("--mask", mask, "--corpus", "corpus.jsonl", "--max-tokens", 200, "--random", 1)
    how = ("--new-tokens", 1, "--model-dtype", "float32", "--out", "ablated", *RUN)
    call("ablate", f"{HERE}/model", *text, *how)
    assert Path("ablated/ablation.csv").exists()
