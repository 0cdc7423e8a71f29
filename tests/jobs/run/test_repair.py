"""``actlas repair`` as a user runs it: a real model, its features, damage, and back again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import state_machine as machine
from support.workers import fake_store

import actlas
from actlas.jobs.cli.app import cli
from actlas.jobs.cli.repair import read_findings
from actlas.jobs.run.repair import Repaired, repair_at
from actlas.pipeline.options import RunOptions
from actlas.store.errors import (
    EXIT_DAMAGE,
    EXIT_DONE,
    EXIT_QUARANTINE,
    EXIT_RESUME,
    EXIT_USAGE,
    ConfigError,
)
from actlas.store.format.schema import Receipt
from actlas.store.format.sealing import seal
from actlas.store.format.zarr_json import metadata_bytes, root_metadata
from actlas.store.ledger.finished import forget_finished
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.store import open_store
from actlas.store.verify.damage import Damage
from actlas.store.verify.verify import verify

pytestmark = pytest.mark.slow

MODEL = "builtin:actlas-6m"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


def contents(folder: Path) -> dict[str, bytes]:
    skipped = {"lease", "logs", "staging"}
    files = (p for p in folder.rglob("*") if p.is_file() and not skipped & {*p.parts})
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with rows, pooled rows, codes, an index and extremes."""
    folder = tmp_path_factory.mktemp("original")
    corpus = folder / "corpus.jsonl"
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "one",
        "small",
        "dog",
        "run",
        "by",
        "in",
        "time",
    ]
    rng = np.random.default_rng(0)
    with corpus.open("w") as file:
        for i in range(90):
            text = " ".join(rng.choice(words, 30))
            print(json.dumps({"text": text, "kind": "ab"[i % 2]}), file=file)
    store = folder / "run.zarr"
    made = call(
        *("extract", store, "--model", MODEL, "--corpus", corpus, "--label-field", "kind"),
        *("--hookpoints", "resid_post.1,resid_post.2", "--pool", "mean", "--shard-rows", 1024),
    )
    assert made.exit_code == EXIT_DONE, made.output
    trained = call(
        *("sae", "train", store, "--hookpoint", "resid_post.2", "--out", folder / "sae"),
        *("--width", 64, "--k", 4, "--steps", 20, "--batch-size", 256),
    )
    assert trained.exit_code == EXIT_DONE, trained.output
    assert call("sae", "encode", store, "--sae", folder / "sae").exit_code == EXIT_DONE
    assert call("sae", "index", store, "--sae", "sae").exit_code == EXIT_DONE
    looked = call("contexts", store, "--hookpoint", "resid_post.1", "--unit", 3)
    assert looked.exit_code == EXIT_DONE, looked.output
    assert verify(open_store(str(store)), full=True).ok
    return store


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "run.zarr"
    shutil.copytree(original, copied)
    return copied


def one_of_each(store: Path) -> list[Path]:
    """A file of every kind that can be made again."""
    opened = open_store(str(store))
    arrays = opened.arrays
    return [
        store / "ledger/plan.json",
        store / "ledger/receipts/extract/00000001.json",
        store / arrays.rows["doc_idx"].key(0),
        store / arrays.activations["resid_post.1"].key(0),
        store / arrays.statistics["resid_post.2"].key(1),
        store / arrays.pooled[("resid_post.1", "mean")].key(0),
        store / "documents/text/c/0",
        store / "documents/label/zarr.json",
        next((store / "features/sae/tokens").glob("00000000-*/data/c/0")),
        next((store / "features/sae/index").rglob("c/0")),
        store / "ledger/features/sae.json",
        next(p for p in (store / "extremes").rglob("0") if p.is_file()),
    ]


def test_damage_of_every_kind_at_once(store: Path, original: Path) -> None:
    before = contents(original)
    for path in one_of_each(store):
        flip(path)
    (store / "a-stray").write_text("not ours")
    refused = call("verify", store, "--full")
    assert refused.exit_code == EXIT_DAMAGE and "damaged" in refused.output

    leases = len(list((store / "ledger/lease").glob("*.json")))
    made = call("repair", store)
    assert made.exit_code == EXIT_DAMAGE, made.output  # the stray is named, and left
    assert "left: a-stray" in made.output
    assert len(list((store / "ledger/lease").glob("*.json"))) == leases + 1  # one drive in all
    made = call("repair", store, "--remove-orphans")
    assert made.exit_code == EXIT_DONE, made.output
    assert call("verify", store, "--full").exit_code == EXIT_DONE
    after = contents(store)
    exact = [k for k in before if k.startswith(("rows/", "documents/", "zarr", "ledger/plan"))]
    assert all(after[k] == before[k] for k in exact)
    new, old = open_store(str(store)), open_store(str(original))
    for name in old.activations:  # kernels round by the place of their operands in memory
        rows, was = (s.activations[name][:].astype(np.float32) for s in (new, old))
        np.testing.assert_allclose(rows, was, atol=1e-2 * np.abs(was).max())
    looked = call("contexts", store, "--sae", "sae", "--feature", 1, "--json")
    first = call("contexts", original, "--sae", "sae", "--feature", 1, "--json")
    assert looked.exit_code == EXIT_DONE, looked.output
    was, now = json.loads(first.output), json.loads(looked.output)
    assert now.keys() == was.keys() and now["contexts"]


def test_orphans_by_their_former_name(tmp_path: Path) -> None:
    store = fake_store(tmp_path)
    orphan = Path(store.path, "a-stray")
    orphan.write_text("not ours")
    [damage] = verify(store).damages
    assert damage.stray and damage.orphan
    assert actlas.repair(store.path).removed == () and orphan.exists()
    assert actlas.repair(store.path, remove_strays=True).removed == ("a-stray",)
    assert not orphan.exists()
    with pytest.raises(ConfigError, match=r"unknown option.*'worker'.*Did you mean workers"):
        actlas.repair(store.path, worker=2)


@pytest.mark.parametrize("folder", ["features", "features.copies"])
def test_descriptions_of_features_come_back_from_each_other(store: Path, folder: str) -> None:
    file = store / "ledger" / folder / "sae.json"
    before = contents(store)
    flip(file)
    assert call("verify", store).exit_code == EXIT_DAMAGE
    made = call("repair", store)
    assert made.exit_code == EXIT_DONE and "encoding" not in made.output, made.output
    assert contents(store) == before
    if folder == "features":
        file.unlink()
        assert call("verify", store).exit_code == EXIT_DAMAGE
        assert call("repair", store).exit_code == EXIT_DONE
        assert contents(store) == before


def test_only_the_damaged_shard_is_computed(store: Path) -> None:
    opened = open_store(str(store))
    flip(store / opened.arrays.activations["resid_post.2"].key(1))
    made = call("repair", store)
    assert made.exit_code == EXIT_DONE, made.output
    assert "repairing 1 of 4 shards" in made.output and "shard 1" in made.output
    assert verify(open_store(str(store)), full=True).ok
    repaired = list((store / "ledger/repairs").rglob("*.json"))
    assert len(repaired) <= 1  # none, where the bits came out the same
    again = call("repair", store)
    assert again.exit_code == EXIT_DONE and "nothing is damaged" in again.output


def test_verify_goes_on_from_the_copy_of_the_plan(store: Path) -> None:
    rows = open_store(str(store)).arrays.activations["resid_post.1"].key(2)
    for harmed in ("ledger/plan.json", "zarr.json", rows):
        flip(store / harmed)
    found = call("verify", store, "--full", "--json")
    assert found.exit_code == EXIT_DAMAGE
    assert {d["key"] for d in json.loads(found.output)["damages"]} == {
        *("ledger/plan.json", "zarr.json", rows)
    }
    assert "actlas repair" in call("verify", store).output
    assert call("repair", store).exit_code == EXIT_DONE
    assert call("verify", store, "--full").exit_code == EXIT_DONE


def test_what_is_damaged_and_has_no_receipt_is_named_and_removed(store: Path) -> None:
    """A killed worker's file that a disk then harmed: nothing adopts it, and nothing reads it."""
    opened = open_store(str(store))
    whole = opened.arrays.activations["resid_post.2"].key(1)
    harmed = opened.arrays.activations["resid_post.1"].key(1)
    (store / "ledger/receipts/extract/00000001.json").unlink()
    forget_finished(opened.objects, "extract")  # the job was not finished
    flip(store / harmed)
    looked = call("verify", store)
    assert "shard 1" in looked.output and harmed not in looked.output  # its size is right
    found = call("verify", store, "--full")
    assert found.exit_code == EXIT_DAMAGE
    assert f"damaged: {harmed}" in found.output and whole not in found.output
    assert "statistics/resid_post.1" in found.output  # they follow from rows that are of no use
    assert call("extract", store).exit_code == EXIT_QUARANTINE
    assert call("repair", store, "--remove-orphans").exit_code == EXIT_DAMAGE  # codes wait for rows
    assert not (store / harmed).exists() and (store / whole).exists()
    again = call("extract", store, "--retry-quarantined")
    assert again.exit_code == EXIT_DONE, again.output
    assert call("repair", store).exit_code == EXIT_DONE
    assert call("verify", store, "--full").exit_code == EXIT_DONE


def test_findings_spare_reading_all_again(store: Path, tmp_path: Path) -> None:
    opened = open_store(str(store))
    for shard in (0, 1):
        flip(store / opened.arrays.activations["resid_post.2"].key(shard))
    found = call("verify", store, "--full", "--json")
    body = json.loads(found.output)
    body["damages"] = [d for d in body["damages"] if d["shard"] == 1]
    file = tmp_path / "findings.json"
    file.write_text(json.dumps(body))
    made = call("repair", store, "--findings", file)
    assert made.exit_code == EXIT_DONE, made.output
    left = verify(open_store(str(store)), full=True).damages
    assert {d.shard for d in left} == {0}


def test_features_whose_autoencoder_is_gone_are_left_and_named(store: Path, original: Path) -> None:
    sae = original.parent / "sae"
    hidden = sae.with_name("away")
    sae.rename(hidden)
    try:
        flip(next((store / "features/sae/tokens").glob("00000000-*/data/c/0")))
        made = call("repair", store)
        assert made.exit_code == EXIT_DAMAGE and "could not be recomputed" in made.output
        again = call("repair", store)  # what was dropped is not forgotten
        assert again.exit_code == EXIT_DAMAGE, again.output
    finally:
        hidden.rename(sae)
    assert call("repair", store).exit_code == EXIT_DONE
    assert call("contexts", store, "--sae", "sae", "--feature", 1).exit_code == EXIT_DONE
    assert verify(open_store(str(store)), full=True).ok


def test_a_damaged_index_needs_no_autoencoder(store: Path, original: Path) -> None:
    sae = original.parent / "sae"
    hidden = sae.with_name("away")
    sae.rename(hidden)
    try:
        flip(next((store / "features/sae/index").rglob("c/0")))
        made = call("repair", store)
    finally:
        hidden.rename(sae)
    assert made.exit_code == EXIT_DONE, made.output
    assert call("contexts", store, "--sae", "sae", "--feature", 1).exit_code == EXIT_DONE


def test_what_is_no_finding_says_so(tmp_path: Path) -> None:
    file = tmp_path / "findings.json"
    for text in ("", "[]", '{"damages": [{"what": 3}]}', '{"damages": [{"key": 3, "what": ""}]}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match="verify STORE --full --json"):
            read_findings(str(file))
    assert call("repair", tmp_path, "--findings", file).exit_code == EXIT_USAGE


def test_where_no_store_is_nothing_is_made(tmp_path: Path) -> None:
    made = call("repair", tmp_path / "nope")
    assert made.exit_code == EXIT_USAGE and "no store here" in made.output
    assert not (tmp_path / "nope").exists()


def test_a_strangers_request_runs_no_code(store: Path, tmp_path: Path) -> None:
    """The plan's model has no code of its own; the options that it was asked with say it has."""
    evil, ran = tmp_path / "evil", tmp_path / "ran"
    evil.mkdir()
    auto = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    (evil / "config.json").write_text(json.dumps(auto))
    (evil / "configuration_evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PretrainedConfig\n"
        "class Evil(PretrainedConfig):\n    model_type = 'evil'\n"
    )
    opened = open_store(str(store))
    asked = {**opened.plan.request, "model": str(evil), "trust_remote_code": True}
    plan = opened.plan.model_copy(update={"request": asked})
    root = metadata_bytes(root_metadata(plan))
    objects = {**opened.plan_file.objects, "zarr.json": (sha256(root).hexdigest(), len(root))}
    (store / "zarr.json").write_bytes(root)
    forged = opened.plan_file.model_copy(update={"plan": plan, "objects": objects})
    for key in (PLAN_KEY, PLAN_COPY_KEY):
        (store / key).write_bytes(seal(forged))
    flip(store / "documents/text/c/0")
    said: list[str] = []
    findings = [Damage("documents/text/c/0", "flipped")]
    made = repair_at(str(store), RunOptions(executor="inline"), findings=findings, log=said.append)
    assert made.exit_code == EXIT_DAMAGE and not ran.exists()
    assert any("code of its own" in line for line in said)


def test_a_repair_leaves_other_shards_in_quarantine(store: Path) -> None:
    opened = open_store(str(store))
    record = {"shard": 2, "faults": {"task": 3}, "error": "poison", "traceback": "", "worker": "w"}
    poison = store / "ledger/quarantine/extract/00000002.json"
    poison.parent.mkdir(parents=True)
    poison.write_text(json.dumps({**record, "created_unix_s": 1.0}))
    key = opened.arrays.activations["resid_post.2"].key(1)
    flip(store / key)
    findings = [Damage(key, "flipped", job="extract", shard=1)]
    made = repair_at(str(store), RunOptions(executor="inline"), findings=findings)
    assert made.exit_code == EXIT_DONE and made.shards == {"extract": (1,)}
    assert poison.exists()


@pytest.mark.parametrize("lost", ["encoded.sae/00000000", "encode.sae/00000001"])
def test_a_lost_receipt_of_features_is_made_again(store: Path, original: Path, lost: str) -> None:
    """Nothing was left of it to drop."""
    (store / f"ledger/receipts/{lost}.json").unlink()
    made = call("repair", store)
    assert made.exit_code == EXIT_DONE, made.output
    assert "encoding the missing shards of sae" in made.output
    assert "indexing sae" in made.output
    report = verify(open_store(str(store)), full=True)
    assert report.ok and not report.unclaimed
    assert {key for key in contents(store) if "/receipts/" in key} == {
        key for key in contents(original) if "/receipts/" in key
    }
    repaired, features = (open_store(str(path)).features("sae") for path in (store, original))
    assert repaired.indexed and (repaired.count == features.count).all()


def test_a_repair_releases_derived_jobs_from_quarantine(store: Path) -> None:
    opened = open_store(str(store))
    contexts = ("contexts", store, "--hookpoint", "resid_post.2", "--unit", 3)
    record = {"shard": 0, "faults": {"task": 3}, "error": "Why: so", "traceback": "", "worker": "w"}
    folder = store / "ledger/quarantine/extremes.resid_post.2"
    folder.mkdir(parents=True)
    (folder / "00000000.json").write_text(json.dumps({**record, "created_unix_s": 1.0}))
    refused = call(*contexts)
    assert refused.exit_code == EXIT_QUARANTINE and "the last fault: Why: so" in refused.stderr
    flip(store / opened.arrays.activations["resid_post.2"].key(1))
    assert call(*contexts, "--retry-quarantined").exit_code == EXIT_DAMAGE
    (folder / "00000000.json").write_text(json.dumps({**record, "created_unix_s": 1.0}))
    made = call("repair", store)
    assert made.exit_code == EXIT_DONE, made.output
    assert "released from quarantine: 0 of extremes.resid_post.2" in made.stderr
    assert call(*contexts).exit_code == EXIT_DONE


def test_a_corpus_that_is_gone_leaves_the_rest_repaired(store: Path, original: Path) -> None:
    corpus = original.parent / "corpus.jsonl"
    hidden = corpus.with_suffix(".away")
    corpus.rename(hidden)
    try:
        opened = open_store(str(store))
        flip(store / "documents/text/c/0")
        flip(store / opened.arrays.activations["resid_post.1"].key(0))
        made = call("repair", store)
    finally:
        hidden.rename(corpus)
    assert made.exit_code == EXIT_DAMAGE and "left: documents/text/c/0" in made.output
    left = verify(open_store(str(store)), full=True).damages
    assert [d.key for d in left] == ["documents/text/c/0"]
    assert call("repair", store).exit_code == EXIT_DONE


def test_a_signal_in_the_last_shard_of_a_job_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.zarr"
    machine.plan_store(str(path), "first")
    machine.planned_again(monkeypatch, path)
    machine.commit_all(str(path), "first")
    machine.pool_all(str(path), "first")
    arrays = open_store(path).arrays
    flip(path / arrays.activations[machine.HOOKPOINT].key(1))
    flip(path / next(iter(arrays.pooled.values())).key(0))
    attempted: list[tuple[str, int]] = []

    class Interrupted(machine.Mender):
        def extract(self, shard: int, *, attempt: str) -> Receipt:
            os.kill(os.getpid(), signal.SIGINT)
            return super().extract(shard, attempt=attempt)

    def repaired(mender: type[machine.Mender]) -> Repaired:
        return repair_at(
            str(path),
            RunOptions(executor="inline"),
            make_repairer=lambda store, _run: mender(store, 0, attempted, "extract"),
            make_pooled_repairer=lambda store, _run: mender(store, 0, attempted, "pooled"),
        )

    stopped = repaired(Interrupted)
    assert (stopped.exit_code, stopped.shards) == (EXIT_RESUME, {"extract": (1,)})
    assert [d.job for d in stopped.left] == ["pooled"], "what is mended is not left"
    assert repaired(machine.Mender).exit_code == EXIT_DONE
    assert attempted == [("extract", 1), ("pooled", 0)]
    assert verify(open_store(path), full=True).ok
