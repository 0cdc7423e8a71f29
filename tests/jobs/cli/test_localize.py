"""``actlas localize``: what it prints and writes, and one clear line for each bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.jobs import PATHS, ROOT
from support.localizer import labelled, stored
from support.reports import parsed
from support.stores import create, fill, plan_for

from actlas.analysis.localizer.masks import Mask
from actlas.jobs.cli.app import cli
from actlas.store.display.pace import Pace
from actlas.store.store import Store

pytest.importorskip("scipy", reason="scipy is not installed")
pytest.importorskip("dask", reason="dask is not installed")

FILES = [
    "brain_map.png",
    "layers.png",
    "mask.json",
    "summary.json",
    "t_histogram.png",
    "units.csv",
]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    columns = labelled([5, 0, 40, 3, 9, 12, 1, 100], [0, 1, 1, 0, 1, 0, 2, 1])
    values = np.random.default_rng(0).standard_normal((columns.n_tokens, 24)).astype(np.float32)
    document = np.repeat(np.arange(8), np.diff(columns.start))
    values[:, 7] += np.where(np.isin(document, [0, 3, 5]), 500, 0)
    folder = tmp_path_factory.mktemp("localize")
    return stored(folder / "my run.zarr", columns, {"resid_post.0": values}, shard_rows=64)[0]


@pytest.mark.slow
def test_it_prints_and_writes(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "new/lang"
    done = call("localize", store.path, "--contrast", "S:N", "--top", "1", "--out", out)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert [path.name for path in out.parent.iterdir()] == ["lang"]
    mask = Mask.load(out)
    assert mask.units == {"resid_post.0": (7,)}
    lines = done.stdout.splitlines()
    assert lines[0] == "contrast    S (3 documents) against N (3)"
    assert lines[1].endswith("1 of their documents without tokens, 1 document of neither label")
    assert re.match(
        r"selected    1 of 64 units \(top 1\), t >= [0-9.]+, median Cohen's d [0-9.]+$", lines[3]
    )
    assert "Cohen's d" in lines[4]
    assert re.search(r"^resid_post\.0 +24 +1 +\d+$", done.stdout, re.MULTILINE)
    assert lines[-1] == f"-> next: actlas ablate made-up --mask {out}/mask.json --corpus CORPUS"
    for picture in ("brain_map", "layers", "t_histogram"):
        assert (out / f"{picture}.png").stat().st_size > 5000


def test_json(store: Store, tmp_path: Path) -> None:
    options = ("--pool", "mean", "--signed", "--top", "10%", "--hookpoints", "mlp.*", "--json")
    done = call("localize", store.path, "--contrast", "N:S", *options, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    said = parsed("localize", done.stdout)
    assert (said["k"], said["n_selected"], said["n_units"]) == (4, 4, 40)
    assert said["key"]["pool"] == "mean" and said["key"]["signed"] is True
    assert said["hookpoints"][0]["hookpoint"] == "mlp.1"
    assert json.loads((tmp_path / "o/summary.json").read_text()).items() <= said.items()


def test_noise_is_called_noise(store: Store, tmp_path: Path) -> None:
    """No unit of mlp.1 differs: no ablation is recommended, but the mask is written."""
    options = ("--hookpoints", "mlp.1", "--top", "5", "--out", tmp_path / "o")
    done = call("localize", store.path, "--contrast", "S:N", *options)
    assert done.exit_code == 0, done.output
    assert "note        nothing here: none of 40 units has q < 0.05" in done.stdout
    assert "the mask holds the 5 largest t of noise" in done.stdout
    assert "0 units (0 %), 0 of the selected" in done.stdout
    assert "next" not in done.stdout and "ablate" not in done.stdout
    said = json.loads((tmp_path / "o/summary.json").read_text())
    assert said["n_selected_significant"] == 0 and "nothing here" in said["notes"][0]
    # Unit 7 of resid_post.0 prefers S: from the other side there is nothing either.
    swapped = call("localize", store.path, "--contrast", "N:S", "--out", tmp_path / "swapped")
    assert "nothing here prefers N (1 of 64 units with q < 0.05 prefer S)" in swapped.stdout
    assert "ablate" not in swapped.stdout


def test_a_mean_without_special_rows_differs_from_the_published_one(
    store: Store, tmp_path: Path
) -> None:
    """The tokenizer of this store's plan adds BOS, whose row is not kept."""
    for pool, said in (("mean", True), ("last", False)):
        out = tmp_path / pool
        done = call("localize", store.path, "--contrast", "S:N", "--pool", pool, "--out", out)
        assert ("the published localizer counts the special tokens" in done.stdout) is said


def test_what_is_there_is_left_unless_told(store: Store, tmp_path: Path) -> None:
    arguments = ("localize", store.path, "--contrast", "S:N", "--out", tmp_path / "o")
    (tmp_path / "o").mkdir()
    (tmp_path / "o/mine.txt").write_text("mine")
    refused = call(*arguments)
    assert refused.exit_code == 2 and "left as it is" in refused.stderr
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["mine.txt"]
    assert call(*arguments, "--overwrite").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == FILES


@pytest.mark.slow
def test_the_same_command_writes_the_same_mask(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = call("localize", store.path, "--contrast", "S:N", "--out", tmp_path / name)
        assert done.exit_code == 0
    for name in ("mask.json", "units.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--contrast", "S:Q"], "no label 'Q'. This store's labels are: S, N, other."),
        (["--contrast", "S"], "POSITIVE:NEGATIVE"),
        (["--contrast", "S:other"], "condition 'other' has 1 document with tokens"),
        (["--contrast", "S:N", "--top", "0"], "expected a share such as 1%"),
        (["--contrast", "S:N", "--top", "65"], "1 to the 64 units"),
        (["--contrast", "S:N", "--hookpoints", "x"], "this store has resid_post.0, mlp.1"),
    ],
)
def test_bad_input_is_one_line(
    store: Store, tmp_path: Path, options: list[str], words: str
) -> None:
    done = call("localize", store.path, *options, "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert words in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"


def test_an_unfinished_store_and_no_labels(tmp_path: Path) -> None:
    columns = labelled([400, 400, 400, 400], [0, 1, 0, 1])
    unfinished = create(tmp_path / "u.zarr", plan_for(columns), columns)
    fill(unfinished, shards=range(1))
    done = call("localize", unfinished.path, "--contrast", "S:N", "--out", tmp_path / "o")
    assert done.exit_code == 1 and "6 of 7 shards are missing" in done.stderr
    columns.label, columns.label_names = None, ()
    bare, _ = stored(tmp_path / "b.zarr", columns)
    done = call("localize", bare.path, "--contrast", "S:N", "--out", tmp_path / "o")
    assert done.exit_code == 2 and "--label-field" in done.stderr


def test_not_a_number(tmp_path: Path) -> None:
    columns = labelled([3, 4, 5, 6], [0, 1, 0, 1])
    values = np.random.default_rng(0).standard_normal((18, 24)).astype(np.float32)
    values[2, 5] = np.inf
    broken, _ = stored(tmp_path / "s.zarr", columns, {"resid_post.0": values})
    arguments = ("localize", broken.path, "--contrast", "S:N", "--out", tmp_path / "o")
    refused = call(*arguments)
    assert refused.exit_code == 1
    assert "resid_post.0 (1 of 24 units)" in refused.stderr
    assert "--on-nonfinite omit" in refused.stderr
    done = call(*arguments, "--on-nonfinite", "omit")
    assert done.exit_code == 0, done.output
    assert "untested    1 unit " in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from actlas.jobs.cli.app import cli; "
        "r = CliRunner().invoke(cli, ['localize', '--help']); assert r.exit_code == 0, r.output; "
        "assert '--contrast POSITIVE:NEGATIVE' in r.output; "
        "heavy = {'scipy', 'dask', 'torch', 'matplotlib', 'pandas', 'ray'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_progress_on_a_terminal(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar counts the tasks that read, and nothing of it is left in what is printed."""
    from rich.progress import Progress

    import actlas.jobs.cli.localize as verb

    seen: dict[str, float] = {}
    update = Progress.update

    def updated(self: Progress, task: int, **more: float) -> None:
        seen.update(more)
        update(self, task, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Progress, "update", updated)
    monkeypatch.setattr(verb, "is_terminal", lambda err: True)
    done = call("localize", store.path, "--contrast", "S:N", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert seen["total"] == seen["completed"] == 2 * store.plan.n_shards


def test_progress_in_plain_lines(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "due", lambda self: True)
    done = call("localize", store.path, "--contrast", "S:N", "--out", tmp_path / "o")
    n = 2 * store.plan.n_shards
    assert done.stderr.splitlines() == [f"pooled {i:,} of {n:,} shards" for i in range(1, n + 1)]


@pytest.mark.slow
def test_what_a_killed_run_left_is_swept_by_the_next(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "lang"
    asked = ["localize", store.path, "--contrast", "S:N", "--top", "1", "--out", str(out)]
    command = [sys.executable, "-m", "support.signalled", "SIGKILL", "1", "/mask.json", *asked]
    killed = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".lang.") and (left / "mask.json").exists()
    assert call(*asked).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lang"]
    assert sorted(path.name for path in out.iterdir()) == FILES
