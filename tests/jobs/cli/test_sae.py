"""``actlas sae encode``, ``sae index`` and ``contexts`` as a user runs them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from support.features import best, made_store, rows_by_token
from support.reports import parsed
from support.stores import fill

import actlas
from actlas.jobs.cli.app import cli
from actlas.store.errors import (
    EXIT_DONE,
    EXIT_RESUME,
    EXIT_USAGE,
    ConfigError,
    FeatureError,
    InterruptedRunError,
    SaeError,
)
from actlas.store.store import Store
from actlas.store.verify.verify import verify

pytestmark = pytest.mark.slow

HOOKPOINT = "resid_post.0"
N_FEATURES = 50


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def write_sae(folder: Path, d_in: int = 24, seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """A sparse autoencoder as SAELens saves one, written by hand."""
    rng = np.random.default_rng(seed)
    weights = {
        "W_enc": rng.standard_normal((d_in, N_FEATURES)).astype(np.float32),
        "b_enc": rng.normal(-6, 2, N_FEATURES).astype(np.float32),
        "W_dec": rng.standard_normal((N_FEATURES, d_in)).astype(np.float32),
        "b_dec": rng.standard_normal(d_in).astype(np.float32),
    }
    weights["b_enc"][0] = -1e6
    cfg = {
        "d_in": d_in,
        "d_sae": N_FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_post"},
        "architecture": "standard",
        **changes,
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return weights


def oracle(store: Store, w: dict[str, np.ndarray]) -> np.ndarray:
    """The codes by token in float64, rounded to bfloat16."""
    x = rows_by_token(store, HOOKPOINT).astype(np.float64)
    codes = np.maximum((x - w["b_dec"]) @ w["W_enc"].astype(np.float64) + w["b_enc"], 0)
    return codes.astype(ml_dtypes.bfloat16).astype(np.float32)


def dense(store: Store) -> np.ndarray:
    codes = store.features("my-sae").codes(0, store.plan.n_tokens)
    found = np.zeros((store.plan.n_tokens, N_FEATURES), np.float32)
    token = np.repeat(np.arange(store.plan.n_tokens), np.diff(codes.indptr))
    found[token, codes.indices] = codes.data
    return found


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    write_sae(tmp_path / "my-sae")
    return tmp_path / "my-sae"


def test_from_rows_to_contexts(tmp_path: Path, sae: Path) -> None:
    store = made_store(tmp_path / "run.zarr", shard_rows=128)
    result = call("sae", "encode", store.path, "--sae", sae, "--device", "cpu")
    assert result.exit_code == EXIT_DONE, result.output
    assert f"actlas sae index {store.path} --sae my-sae" in result.stdout.splitlines()[-1]
    truth = oracle(store, write_sae(tmp_path / "again"))
    found = dense(store)
    differs = found != truth  # float32 sums here, float64 there: now and then the next bfloat16
    assert differs.mean() < 1e-3
    np.testing.assert_allclose(found, truth, rtol=2**-7, atol=1e-5)
    again = call("sae", "encode", store.path, "--sae", "my-sae")
    assert again.exit_code == EXIT_DONE and "were stored already" in again.stdout
    result = call("sae", "index", store.path, "--sae", "my-sae")
    assert result.exit_code == EXIT_DONE, result.output
    assert "-> next: actlas contexts" in result.stdout
    made = parsed("sae-index", call("sae", "index", store.path, "--sae", "my-sae", "--json").stdout)
    assert made["n_codes"] == (found > 0).sum() and made["n_passes"] == 0
    features = actlas.open(store.path).features("my-sae")
    feature = int(np.argmax(features.count))
    shown = json.loads(
        call(
            "contexts", store.path, "--sae", "my-sae", "--feature", feature, "-k", 7, "--json"
        ).stdout
    )
    fired = np.flatnonzero(found[:, feature])
    expected = fired[best(found[fired, feature], 7, largest=True)]
    assert [c["t"] for c in shown["contexts"]] == expected.tolist()
    bottom = call(
        "contexts", store.path, "--sae", "my-sae", "--feature", feature, "--bottom", "--json"
    )
    values = [c["value"] for c in parsed("contexts", bottom.stdout)["contexts"]]
    assert values == np.sort(found[fired, feature])[:20].tolist()
    plain = call("contexts", store.path, "--sae", "my-sae", "--feature", feature).stdout
    assert plain.count("⟦") == 20 and "\x1b" not in plain
    page = tmp_path / "page.html"
    result = call("contexts", store.path, "--sae", "my-sae", "--feature", feature, "--html", page)
    assert str(page) in result.stdout
    assert page.read_text().startswith("<!doctype html>") and "<b>" not in page.read_text()
    some = ("contexts", store.path, "--sae", "my-sae", "--some", 3, "-k", 2)
    drawn = parsed("contexts", call(*some, "--json").stdout)
    assert len({each["title"] for each in drawn}) == 3
    assert all(len(each["contexts"]) == 2 for each in drawn)
    assert call(*some).stdout.count("\u27e6") == 6 and call(*some).stdout == call(*some).stdout
    call(*some, "--html", page)
    assert page.read_text().count("<h3>") == 3
    dead = call("contexts", store.path, "--sae", "my-sae", "--feature", 0)
    assert dead.exit_code == EXIT_DONE and "active on no token" in dead.stdout
    assert "my-sae: 50 of resid_post.0 (relu), indexed" in call("info", store.path).stdout
    assert verify(actlas.open(store.path), full=True).ok


def test_raw_units_are_gathered_once(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    asked = ("contexts", store.path, "--hookpoint", "mlp.1", "--unit", 39, "-k", 3)
    first, second = call(*asked), call(*asked)
    assert "the first time only" in first.stderr and second.stderr == ""
    assert first.stdout == second.stdout and first.stdout.count("⟦") == 3
    assert verify(store, full=True).ok


def test_ray_writes_what_inline_writes(ray_started: None, tmp_path: Path, sae: Path) -> None:
    one = made_store(tmp_path / "one.zarr", shard_rows=128)
    two = made_store(tmp_path / "two.zarr", shard_rows=128)
    actlas.encode_sae(one, sae, device="cpu", threads=1)
    features = actlas.encode_sae(two.path, sae, executor="ray", workers=2, device="cpu", threads=1)
    assert (dense(one) == dense(two)).all()
    assert features.encoded and not features.indexed
    assert (actlas.index_sae(two, "my-sae").count == (dense(one) > 0).sum(axis=0)).all()
    report = verify(two, full=True)
    assert report.ok and not report.unclaimed


@pytest.mark.chaos
def test_a_killed_encoder_goes_on(
    tmp_path: Path, sae: Path, drive: Callable[..., Popen[str]]
) -> None:
    store = made_store(tmp_path / "run.zarr", n_documents=300, shard_rows=128)
    receipts = Path(store.path) / "ledger/receipts/encode.my-sae"
    for n_receipts in (3, 27):
        after = ("SIGKILL", str(n_receipts), "/receipts/encode.my-sae/")
        process = drive(
            *after, "sae", "encode", store.path, "--sae", sae, module="support.signalled"
        )
        assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in receipts.iterdir()}
    assert len(kept) == 30 < store.plan.n_shards
    with pytest.raises(FeatureError, match="not encoded yet"):
        dense(store)
    result = call("sae", "encode", store.path, "--sae", sae, "--device", "cpu")
    assert result.exit_code == EXIT_DONE, result.output
    assert all((receipts / name).read_bytes() == data for name, data in kept.items())
    truth = oracle(store, write_sae(tmp_path / "again"))
    np.testing.assert_allclose(dense(store), truth, rtol=2**-7, atol=1e-5)
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed


def test_a_store_that_is_not_whole_yet(tmp_path: Path, sae: Path) -> None:
    from support.stores import create, plan_for, words_columns

    columns = words_columns(0, 40, 25)
    store = create(tmp_path / "run.zarr", plan_for(columns, shard_rows=128), columns)
    fill(store, range(2))
    result = call("sae", "encode", store.path, "--sae", sae, "--device", "cpu")
    assert result.exit_code == EXIT_RESUME
    line = result.stdout.splitlines()[-1]
    assert line.startswith("incomplete: 256 rows x 50 features")
    assert "7 shards are not extracted -> next: actlas extract" in line and "sae index" not in line
    again = call("sae", "encode", store.path, "--sae", "my-sae", "--device", "cpu")
    assert again.exit_code == EXIT_RESUME
    assert "256 rows x 50 features were stored already; 7 shards" in again.stdout
    with pytest.raises(InterruptedRunError, match="7 shards are not extracted"):
        actlas.encode_sae(store, sae, device="cpu")
    index = call("sae", "index", store.path, "--sae", "my-sae")
    assert index.exit_code == EXIT_USAGE and "are not encoded yet" in index.stderr
    fill(store)
    assert call("sae", "encode", store.path, "--sae", "my-sae").exit_code == EXIT_DONE
    assert call("sae", "index", store.path, "--sae", "my-sae").exit_code == EXIT_DONE


def test_bad_input_gets_one_line(tmp_path: Path, sae: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    write_sae(tmp_path / "wide", d_in=25)
    write_sae(tmp_path / "deep", metadata={"hook_name": "blocks.7.hook_resid_post"})
    write_sae(tmp_path / "nowhere", metadata={})
    write_sae(tmp_path / "x/my-sae", seed=1)
    assert call("sae", "encode", store.path, "--sae", sae).exit_code == EXIT_DONE
    assert call("sae", "index", store.path, "--sae", "my-sae").exit_code == EXIT_DONE
    path = store.path
    cases: list[tuple[tuple[object, ...], str]] = [
        (("sae", "encode", path, "--sae", tmp_path / "wide"), "reads rows of 25 units"),
        (("sae", "encode", path, "--sae", tmp_path / "deep"), "was trained on resid_post.7"),
        (("sae", "encode", path, "--sae", tmp_path / "nowhere"), "give --hookpoint, one of"),
        (("sae", "encode", path, "--sae", tmp_path / "x/my-sae"), "Give another --name"),
        (("sae", "encode", path, "--sae", tmp_path / "none"), "none"),
        (("sae", "encode", path, "--sae", sae, "--hookpoint", "mlp.1"), "got --hookpoint mlp.1"),
        (("sae", "index", path, "--sae", "other"), "it has my-sae"),
        (("sae", "encode", path, "--sae", "my-sae", "--name", "x"), "--name x is another"),
        (("contexts", path, "--sae", "my-sae/x", "--feature", 0), "it has my-sae"),
        (("contexts", path, "--sae", "m" * 300, "--feature", 0), "it has my-sae"),
        (("contexts", path, "--hookpoint", "mlp.1", "--unit", 0, "-k", 65), "request at most 64"),
        (("contexts", path, "--hookpoint", "mlp.1", "--unit", 0, "-k", 10**11), "at most 64"),
        (("contexts", path, "--sae", "my-sae", "--feature", 50), "features 0 to 49"),
        (("contexts", path, "--sae", "my-sae", "--feature", -1), "features 0 to 49"),
        (("contexts", path, "--sae", "my-sae"), "give --sae NAME and --feature F (or --some N)"),
        (("contexts", path, "--sae", "my-sae", "--unit", 1), "got --sae my-sae, --unit 1"),
        (("contexts", path), "give --sae NAME and --feature F (or --some N)"),
        (("contexts", path, "--hookpoint", "mlp.1", "--unit", 40), "units 0 to 39"),
        (("contexts", path, "--hookpoint", "mlp.7", "--unit", 0), "this store has resid_post.0"),
    ]
    for arguments, message in cases:
        result = call(*arguments)
        assert result.exit_code == EXIT_USAGE, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        errors = [line for line in result.stderr.splitlines() if "gathering" not in line]
        assert len(errors) == 1, result.stderr
    assert verify(store, full=True).ok
    with pytest.raises(SaeError):
        actlas.encode_sae(store, tmp_path / "wide")


def test_a_strangers_names_steer_no_terminal(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    write_sae(tmp_path / "odd", metadata={"hook_name": "a\x1b[31mb\nc"})
    result = call("sae", "encode", store.path, "--sae", tmp_path / "odd")
    assert result.exit_code == EXIT_USAGE and "\x1b" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_from_python_by_the_name_of_a_set(tmp_path: Path, sae: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    assert actlas.encode_sae(store, sae, name="other", device="cpu").name == "other"
    assert actlas.encode_sae(store, "other", device="cpu").name == "other"
    with pytest.raises(ConfigError, match="name= third is another"):
        actlas.encode_sae(store, "other", name="third", device="cpu")


def test_what_a_killed_finish_left_is_swept_by_the_next(tmp_path: Path, sae: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    assert call("sae", "encode", store.path, "--sae", sae).exit_code == EXIT_DONE
    for name in ("encoded-0123456789ab", "tokens/00000001-0123456789ab"):
        folder = Path(store.path) / "features/my-sae" / name / "data/c"
        folder.mkdir(parents=True)
        (folder / "0").write_bytes(b"left")
    assert len(verify(store).unclaimed) == 2
    assert call("sae", "encode", store.path, "--sae", "my-sae").exit_code == EXIT_DONE
    report = verify(store)
    assert report.ok and not report.unclaimed
