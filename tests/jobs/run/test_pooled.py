"""Pooled rows from the command line: made, resumed, proved, and localized on."""

from __future__ import annotations

import csv
import itertools
import random
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.jobs import options
from support.models import build, documents, expected, plan_store, save, worst
from support.reports import parsed

import actlas
from actlas.analysis.localizer.masks import Mask
from actlas.jobs.cli.app import cli
from actlas.jobs.run.run import run_extraction
from actlas.store.errors import EXIT_DAMAGE, NotExtractedError
from actlas.store.ledger.finished import forget_finished
from actlas.store.ledger.receipts import POOLED
from actlas.store.store import Store
from actlas.store.verify.verify import verify

pytestmark = pytest.mark.slow

LENGTHS = [0, 1, 5, 200, 17, 33, 16, 15, 64, 2, 90, 31] * 3
NAMES = ["resid_post.0", "resid_post.2"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def planned(folder: Path, **changes: Any) -> Store:
    model = folder / "model"
    if not model.exists():
        save("llama", model)
    changes = {"pools": ("last", "mean"), "dense": False, **changes}
    return plan_store(folder / "run.zarr", model, documents(LENGTHS), NAMES, **changes)


def check(store: Store) -> None:
    truth = expected(store, build("llama"), NAMES)
    start = store.documents.start
    there = np.diff(start) > 0
    for name in NAMES:
        rows = [truth[name][a:b] for a, b in itertools.pairwise(start) if b > a]
        last = np.array([own[-1] for own in rows])
        mean = np.array([own.mean(axis=0) for own in rows])
        assert worst(store.pooled[name]["last"][there], last) < 1e-5
        assert worst(store.pooled[name]["mean"][there], mean) < 1e-5
        assert np.isnan(store.pooled[name]["mean"][~there]).all()


def files_of(store: Store) -> dict[str, bytes]:
    found = (p for p in Path(store.path).rglob("*") if p.is_file() and "ledger" not in p.parts)
    return {str(path.relative_to(store.path)): path.read_bytes() for path in found}


def test_both_kinds_of_rows_by_one_command(tmp_path: Path) -> None:
    store = planned(tmp_path, dense=True)
    done = call("extract", store.path, "--threads", "1")
    assert done.exit_code == 0, done.output
    made = done.stdout.splitlines()
    assert made[0].startswith("done: ") and " rows x 2 hookpoints, " in made[0]
    assert "36 documents x 2 hookpoints x last, mean, " in made[1]
    assert made[1].endswith(f"-> next: actlas verify {store.path}")
    assert store.missing() == [] and store.missing(POOLED) == [] and len(store.done(POOLED)) > 3
    check(store)
    assert call("verify", store.path, "--full").exit_code == 0
    said = parsed("status", call("status", store.path, "--json").stdout)
    assert said["complete"] and said["of"] == "rows" and said["pooled"]["of"] == "documents"
    assert said["rows"]["done"] == sum(LENGTHS) and said["pooled"]["rows"]["done"] == 36
    again = call("extract", store.path).stdout
    assert again.count("were stored already") == 2


def test_pooled_rows_alone(tmp_path: Path) -> None:
    store = planned(tmp_path)
    begun = call("status", store.path).stdout
    assert "0 of 36 documents" in begun and f"next: actlas extract {store.path}" in begun
    with pytest.raises(NotExtractedError, match=r"documents \[0, \d+\) .* are not pooled yet"):
        store.pooled["resid_post.0"]["last"][0]
    assert call("extract", store.path, "--threads", "1").exit_code == 0
    check(store)
    assert sorted(p.name for p in Path(store.path).iterdir()) == [
        "documents",
        "ledger",
        "pooled",
        "zarr.json",
    ]
    whole = call("verify", store.path, "--full")
    assert whole.exit_code == 0 and whole.stdout.startswith("whole: every byte")
    for verb in (("info",), ("show", "--doc", "3"), ("status",)):
        told = call(verb[0], store.path, *verb[1:])
        assert told.exit_code == 0, told.output
        assert "pooled" in told.stdout
    n_bytes = sum(len(data) for key, data in files_of(store).items() if "/c/" in key)
    info = parsed("info", call("info", store.path, "--json").stdout)
    documents_bytes = sum(len(d) for k, d in files_of(store).items() if k.startswith("documents/"))
    assert info["n_stored_bytes"] <= n_bytes <= info["n_stored_bytes"] + documents_bytes
    with pytest.raises(NotExtractedError, match="is pooled by last, mean, not by 'sum'"):
        store.pooled["resid_post.0"]["sum"]


def test_what_needs_the_rows_of_tokens_says_so(tmp_path: Path) -> None:
    store = planned(tmp_path)
    assert call("extract", store.path, "--threads", "1").exit_code == 0
    with pytest.raises(NotExtractedError, match="pooled_only=True"):
        store.rows  # noqa: B018
    with pytest.raises(NotExtractedError, match="pooled_only=True"):
        store.statistics("resid_post.0")
    for arguments in (
        ("contexts", store.path, "--hookpoint", "resid_post.0", "--unit", "1"),
        ("sae", "train", store.path, "--hookpoint", "resid_post.0", "--out", tmp_path / "sae"),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 1 and refused.stderr.startswith("error: "), refused.output
        assert "was planned with --pooled-only" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_ray_gives_what_inline_gives(ray_started: None, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    inline, ray = planned(tmp_path / "a", dense=True), planned(tmp_path / "b", dense=True)
    assert run_extraction(inline, options(threads=1)).exit_code == 0
    assert run_extraction(ray, options("ray", workers=2, tokens_per_batch=64)).exit_code == 0
    check(inline)
    check(ray)
    assert verify(ray, full=True).ok and ray.receipt(0, POOLED).run["executor"] == "ray"


@pytest.mark.chaos
def test_a_killed_run_is_resumed(tmp_path: Path, drive: Callable[..., Popen[str]]) -> None:
    store = planned(tmp_path, shard_rows=16)
    after = ("SIGKILL", "2", "/receipts/pooled/")
    process = drive(*after, "extract", store.path, "--threads", "1", module="support.signalled")
    assert process.wait() == -signal.SIGKILL
    before = {shard: store.receipt(shard, POOLED).attempt for shard in store.done(POOLED)}
    assert len(before) == 2
    report = verify(actlas.open(store.path))
    assert report.ok and set(report.missing_pooled).isdisjoint(before)
    again = call("extract", store.path, "--threads", "1")
    assert again.exit_code == 0, again.output
    now = {shard: store.receipt(shard, POOLED).attempt for shard in store.done(POOLED)}
    assert before.items() <= now.items() and len(now) == store.n_shards(POOLED)
    check(store)
    assert verify(store, full=True).ok


def test_what_a_killed_worker_left_is_adopted_only_if_it_is_alike(tmp_path: Path) -> None:
    store = planned(tmp_path)
    assert call("extract", store.path, "--threads", "1").exit_code == 0
    folder = Path(store.path)
    receipt = folder / "ledger/receipts/pooled/00000001.json"
    written = files_of(store)
    receipt.unlink()
    forget_finished(store.objects, POOLED)  # the job was not finished
    report = verify(actlas.open(store.path), full=True)
    assert report.ok and report.missing_pooled == (1,) and len(report.unclaimed) == 4
    assert call("extract", store.path, "--threads", "1").exit_code == 0
    assert files_of(store) == written
    attempts = {r.attempt for r in actlas.open(store.path).receipt(1, POOLED).objects}
    assert all(attempt.startswith("before ") for attempt in attempts)
    # Another shard's documents under this one's name: written whole, and not what the model gives.
    receipt.unlink()
    forget_finished(store.objects, POOLED)
    mean = folder / "pooled/resid_post.0/mean/c"
    (mean / "1/0").write_bytes((mean / "0/0").read_bytes())
    refused = call("extract", store.path, "--threads", "1", "--max-task-faults", "1")
    assert refused.exit_code == 3
    assert not receipt.exists() and "quarantine  shard 1\n" in call("status", store.path).stdout


@pytest.mark.parametrize("compression", ["none", "fast"])
def test_damage_is_found_and_named_with_its_documents(compression: str, tmp_path: Path) -> None:
    store = planned(tmp_path, compression=compression)
    assert call("extract", store.path, "--threads", "1").exit_code == 0
    start, stop = store.covered(1, POOLED)
    path = Path(store.path) / "pooled/resid_post.2/mean/c/1/0"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert verify(actlas.open(store.path)).ok, "sizes are the same"
    found = call("verify", store.path, "--full")
    assert found.exit_code == EXIT_DAMAGE
    assert f"damaged: pooled/resid_post.2/mean/c/1/0, documents [{start}, {stop})" in found.stdout
    path.write_bytes(good[:-1])
    assert call("verify", store.path).exit_code == EXIT_DAMAGE
    path.write_bytes(good)
    stray = Path(store.path) / "pooled/resid_post.2/median/c/0/0"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"x")
    found = call("verify", store.path)
    assert "pooled/resid_post.2/median/c/0/0: an orphan" in found.stdout


def stimuli(folder: Path) -> Path:
    """Documents of two conditions, one of them empty."""
    rng = random.Random(0)
    words = ["cat", "dog", "sun", "once upon", "tree", "xqz", "vvp", "wlk", "jjr"]
    with (folder / "stimuli.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "condition"])
        for i in range(60):
            pool = words[:5] if i % 2 else words[5:]
            text = " ".join(rng.choice(pool) for _ in range(rng.randrange(1, 30)))
            table.writerow(["" if i == 7 else text, "S" if i % 2 else "N"])
    return folder / "stimuli.csv"


class Labelled(NamedTuple):
    """Stores of the same labelled texts, and the truth of their rows by token."""

    dense: Path
    alone: Path
    """Of pooled rows alone."""
    truth: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def labelled(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    folder, model = tmp_path_factory.mktemp("labelled"), shared / "models/stories260K"
    request = ["--model", model, "--corpus", stimuli(folder), "--threads", "1"]
    request += ["--label-field", "condition", "--model-dtype", "float32", "--dtype", "float32"]
    dense, alone = folder / "dense.zarr", folder / "alone.zarr"
    for path, extra in ((dense, ()), (alone, ("--pool", "last,mean", "--pooled-only"))):
        done = call("extract", path, *request, *extra)
        assert done.exit_code == 0, done.output
    return Labelled(dense, alone, _hidden_states(actlas.open(alone), model))


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("signed", [False, True])
def test_localize_on_pooled_rows_alone(
    pool: str, signed: bool, labelled: Labelled, tmp_path: Path
) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    pytest.importorskip("dask", reason="dask is not installed")
    dense, alone, truth = labelled
    how = ["--contrast", "S:N", "--pool", pool, *(["--signed"] if signed else [])]
    for path in (dense, alone):
        done = call("localize", path, *how, "--out", tmp_path / path.stem)
        assert done.exit_code == 0, done.output
    masks = [Mask.load(tmp_path / path.stem) for path in (dense, alone)]
    assert masks[0].units == masks[1].units and masks[1].key.store_dtype == "float32"

    # The truth: transformers' own activations, pooled by numpy, tested by scipy.
    store = actlas.open(alone)
    start, codes = store.documents.start, store.documents.label_codes
    names = store.documents.label_names
    assert codes is not None and (np.diff(start) == 0).sum() == 1
    found = actlas.localize(alone, "S:N", pool=pool, signed=signed).table
    for name, rows in truth.items():
        sides: dict[str, list[Any]] = {"S": [], "N": []}
        for doc, code in enumerate(codes):
            own = rows[start[doc] : start[doc + 1]].astype(np.float64)
            if len(own):
                sample = own[-1] if pool == "last" else own.mean(axis=0)
                sides[names[code]].append(sample if signed else np.abs(sample))
        t = stats.ttest_ind(sides["S"], sides["N"], equal_var=False).statistic
        ours = found[found.hookpoint == name].t.to_numpy()
        assert np.max(np.abs(ours - t) / np.maximum(np.abs(t), 1)) < 1e-4


def _hidden_states(store: Store, folder: Path) -> dict[str, np.ndarray]:
    """Every block's output by token, one document at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    last: list[Any] = []
    blocks = model.model.layers
    blocks[-1].register_forward_hook(lambda _m, _a, output: last.append(output))
    names = [f"resid_post.{i}" for i in range(len(blocks))]
    assert store.plan.tokenizer is not None
    prefix = list(store.plan.tokenizer.prefix_ids)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for doc in range(len(store.documents)):
        start, stop = (int(t) for t in store.documents.starts(doc, doc + 1))
        if start == stop:
            continue
        ids = prefix + store.documents.token_ids(start, stop).tolist()
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        output = last.pop()
        output = output[0] if isinstance(output, tuple) else output
        for name, state in zip(names, [*hidden[1 : len(blocks)], output], strict=True):
            found[name].append(state[0, len(prefix) :].numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}
