"""The whole life of a store in a bucket, by the commands that a user types."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from support import s3 as faulty
from support.jobs import options, plant
from support.processes import Driver
from support.s3 import KEY, S3, SECRET
from support.stores import create, plan_for, words_columns
from support.workers import check_whole, make_fake

import actlas
from actlas.jobs.cli.app import cli
from actlas.jobs.run.run import run_extraction
from actlas.store.errors import EXIT_DONE, EXIT_RESUME, EXIT_USAGE, ConfigError
from actlas.store.store import Store, open_store

pytest.importorskip("obstore")

pytestmark = pytest.mark.slow


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are typed, and where made-up workers look for their faults."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACTLAS_TEST_FOLDER", str(tmp_path))
    return tmp_path


def planned(url: str, n_documents: int = 20) -> Store:
    columns = words_columns(3, n_documents, 20)
    return create(url, plan_for(columns, shard_rows=64), columns)


def write_sae(folder: Path, d_in: int) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "W_enc": rng.standard_normal((d_in, 32)).astype(np.float32),
        "b_enc": np.zeros(32, np.float32),
        "W_dec": rng.standard_normal((32, d_in)).astype(np.float32),
        "b_dec": np.zeros(d_in, np.float32),
    }
    cfg: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": 32,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.2.hook_resid_post"},
        "architecture": "standard",
    }
    folder.mkdir()
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))


def test_the_whole_life_by_command(s3: S3, home: Path) -> None:
    """Each command does what it says, names the URL, and prints one that can be typed next."""
    url = s3.url("my run.zarr")
    lines = [
        {"text": f"the cat number {i} sat on the mat and looked", "label": "ab"[i % 2]}
        for i in range(12)
    ]
    (home / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_sae(home / "mine", 256)
    common = ["--model", "builtin:actlas-6m", "--corpus", "c.jsonl", "--label-field", "label"]
    said = []

    def does(*arguments: object) -> Result:
        done = call(*arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        said.append(done.output)
        return done

    does("plan", url, *common, "--hookpoints", "resid_post.2", "--shard-rows", 64)
    s3.plan = faulty.often(0.02, 5, ("500", "503", "reset", "truncate", "lose"))
    done = does("extract", url)
    following = done.stdout.splitlines()[-1].partition("-> next: ")[2]
    assert shlex.split(following) == ["actlas", "verify", url]
    assert json.loads(does("status", url, "--json").stdout)["complete"]
    does("info", url)
    assert "looked" in does("show", url, "--doc", 3).output
    does("localize", url, "--contrast", "a:b", "--out", "lang")
    does("sae", "encode", url, "--sae", "mine")
    does("sae", "index", url, "--sae", "mine")
    does("contexts", url, "--sae", "mine", "--feature", 5, "--html", "page.html")
    does("contexts", url, "--hookpoint", "resid_post.2", "--unit", 3)
    assert "whole: every byte" in does("verify", url, "--full").output
    s3.plan = lambda _: None
    found = sorted(path.name for path in home.iterdir())
    assert found == ["c.jsonl", "lang", "mine", "page.html"], "files were left in this folder"

    local = actlas.extract("local.zarr", overrides=(), **_as_options(common))
    remote = actlas.open(url)
    rows = remote.activations["resid_post.2"][:]
    np.testing.assert_array_equal(rows, local.activations["resid_post.2"][:])
    batches = actlas.batches(remote, "resid_post.2", batch_size=32, seed=1)
    for x, index in batches:
        np.testing.assert_array_equal(x.numpy(), rows[index].astype(np.float32))
    kept = [s3.body("my run.zarr", key) for key in s3.keys("my run.zarr")]
    for text in [*said, *(body.decode("latin1") for body in kept)]:
        assert KEY not in text
        assert SECRET not in text


def _as_options(common: list[str]) -> dict[str, Any]:
    names = (name.removeprefix("--").replace("-", "_") for name in common[::2])
    return {
        **dict(zip(names, common[1::2], strict=True)),
        "hookpoints": ["resid_post.2"],
        "shard_rows": 64,
    }


def test_an_outage_ends_with_75_and_the_same_command_goes_on(s3: S3, home: Path) -> None:
    store = planned(s3.url("jobs/out.zarr"))
    plant(home, slow_s=0.05)
    environment = {
        **s3.environment(),
        "ACTLAS_TEST_FOLDER": str(home),
        "ACTLAS_RETRY_S": "0.5",
    }
    s3.plan = faulty.always("503", after=60)
    driver = Driver(home, store.path, **environment)
    assert driver.wait() == EXIT_RESUME
    assert "SlowDown" in driver.said() and "the same c" in driver.said()
    assert "Traceback" not in driver.said()
    s3.plan = lambda _: None
    assert open_store(store.path).missing()
    again = Driver(home, store.path, **environment)
    assert again.wait() == EXIT_DONE, again.said()
    check_whole(open_store(store.path))


def test_a_shard_costs_this_many_requests(s3: S3) -> None:
    """The figures of docs/object-stores.md."""
    store = planned(s3.url("jobs/counted.zarr"))
    worker = make_fake(store.path, options())
    worker.extract(0, attempt="first")
    s3.counts.clear()
    worker.extract(1, attempt="counted")
    n_arrays = len(store.receipt(1).objects)
    assert s3.counts["PUT"] == n_arrays + 1
    assert s3.counts["GET"] <= n_arrays + 6
    assert s3.counts["HEAD"] <= n_arrays + 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("localize", "--contrast", "a:b", "--out"),
        ("sae", "train", "--hookpoint", "mlp.1", "--out"),
        ("contexts", "--hookpoint", "mlp.1", "--unit", "0", "--html"),
    ],
)
def test_results_are_not_written_to_a_url(s3: S3, home: Path, arguments: tuple[str, ...]) -> None:
    store = planned(s3.url(f"jobs/results-{arguments[0]}.zarr"))
    run_extraction(store, options(), make_fake)
    n = 2 if arguments[0] == "sae" else 1
    refused = call(*arguments[:n], store.path, *arguments[n:], "s3://bucket/out")
    assert refused.exit_code == EXIT_USAGE, refused.output
    assert "got a URL" in refused.stderr
    assert list(home.glob("s3:*")) == []


def test_credentials_in_a_url_are_refused_everywhere(s3: S3) -> None:
    url = "s3://someone:hunter22@bucket/run.zarr"
    for verb in ("plan", "extract", "verify", "status", "info"):
        refused = call(verb, url)
        assert refused.exit_code == EXIT_USAGE
        assert "hunter22" not in refused.output
    with pytest.raises(ConfigError, match="pathlib"):
        actlas.open(Path("s3://bucket/run.zarr"))
