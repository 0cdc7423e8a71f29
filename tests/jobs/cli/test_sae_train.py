"""``actlas sae train`` as a user runs it: to its end, stopped, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.features import made_store
from support.jobs import PATHS
from support.reports import parsed

from actlas.analysis.sae.saelens_format import load_sae
from actlas.analysis.sae.train.checkpoint import STATE_FILE
from actlas.jobs.cli.app import cli
from actlas.store.display.pace import Pace
from actlas.store.errors import EXIT_DONE, EXIT_RESUME, EXIT_USAGE
from actlas.store.store import Store

pytestmark = pytest.mark.slow

HOOK = "resid_post.0"
SMALL = ("--width", 48, "--k", 4, "--batch-size", 64, "--threads", 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_store(tmp_path_factory.mktemp("sae") / "s.zarr", n_documents=80)


def arguments(store: Store, out: Path, *more: Any) -> list[str]:
    words = ("sae", "train", store.path, "--hookpoint", HOOK, "--out", out, *SMALL, *more)
    return [str(word) for word in words]


def test_it_says_what_was_made_and_what_is_next(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "sae"
    result = CliRunner().invoke(cli, arguments(store, out, "--steps", 30))
    assert result.exit_code == EXIT_DONE, result.output
    last = result.stdout.splitlines()[-1]
    assert "explained variance 0." in last and "held-out tokens" in last and "rows/s" in last
    assert last.endswith(f"-> next: actlas sae encode {store.path} --sae {out}")
    assert load_sae(out).hookpoint == HOOK
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n_steps"] == 30 and metrics["n_tokens"] > 0
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len((out / "curve.csv").read_text().splitlines()) == 31
    again = CliRunner().invoke(cli, arguments(store, out, "--steps", 30))
    assert again.exit_code == EXIT_DONE
    said = again.stdout.splitlines()[-1]
    assert said == last.replace("trained", "already trained, nothing to do:", 1)
    other = CliRunner().invoke(cli, arguments(store, out, "--steps", 31))
    assert other.exit_code == EXIT_USAGE and "with steps 30, got 31" in other.stderr
    as_json = CliRunner().invoke(cli, arguments(store, out, "--steps", 30, "--json"))
    assert (
        parsed("sae-train", as_json.stdout)["explained_variance"] == metrics["explained_variance"]
    )


def test_the_held_out_curve(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out rows are measured in between, and the last point is nearly the final metric."""
    monkeypatch.setattr(Pace, "due", lambda self: True)
    out = tmp_path / "sae"
    result = CliRunner().invoke(cli, arguments(store, out, "--steps", 30))
    assert result.exit_code == EXIT_DONE, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    measured = {p["step"]: p["explained_variance"] for p in metrics["held_out_curve"]}
    assert list(measured) == [1, 11, 21, 30]
    final = metrics["explained_variance"]
    assert measured[30] == pytest.approx(final, abs=1e-5) and measured[30] > measured[1]
    lines = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 30
    assert f"(held-out {measured[11]:.3f} at step 11)" in lines[19]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--hookpoint", "resid_post.7"), "resid_post.0"),
        (("--k", "49"), "at most d_sae, 48"),
        (("--width", "0"), "d_sae: got 0"),
        (("--fraction", "1.5"), "fraction"),
    ],
)
def test_bad_options_get_one_line(
    store: Store, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(cli, arguments(store, tmp_path / "out", *more))
    assert result.exit_code == EXIT_USAGE
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr
    assert not (tmp_path / "out").exists()


def signalled(number: str, store: Store, out: Path, *more: Any) -> tuple[int, str]:
    """Train in a process that gets a signal at its first checkpoint; its code and its stderr."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "support.signalled",
            number,
            "1",
            f"/{STATE_FILE}",
            *arguments(store, out, *more),
        ],
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.chaos
def test_killed_and_stopped_it_ends_bit_for_bit_the_same(store: Store, tmp_path: Path) -> None:
    options = ("--steps", 400, "--checkpoint-every", 50)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    code, _ = signalled("SIGKILL", store, cut, *options)
    assert code == -signal.SIGKILL and (cut / STATE_FILE).exists()
    first = (cut / STATE_FILE).read_bytes()
    code, stderr = signalled("SIGTERM", store, cut, *options)
    assert code == EXIT_RESUME, stderr
    assert (cut / STATE_FILE).read_bytes() != first
    assert "stopped after step" in stderr and not (cut / "cfg.json").exists()
    assert "error" not in stderr, "a stop is no error"
    for out in (cut, whole):
        result = CliRunner().invoke(cli, arguments(store, out, *options))
        assert result.exit_code == EXIT_DONE, result.output
    for name in ("sae_weights.safetensors", "curve.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
