"""Every benchmark runs to its end and prints figures. How fast it was is no matter here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "storage": ["write.fast.actlas.gbps", "read.slices.none.tensorstore.ratio"],
    "records": ["fast.activations_whole.times", "none.token_id_whole.times"],
    "compression": ["embedded.fast.ratio", "document.none.cold.ms"],
    "extraction": ["embedded_all.ratio", "embedded_all.bytes_per_token"],
    "startup": ["actlas_info.s", "actlas_--help.cpu_s"],
    "peers": ["peers.embedded.actlas_fast.tokens_per_s"],
    "moments": ["64.the_pile.cpu_s_per_gb", "256.12_tokens_each.times_plain"],
    "batches": ["cold.none.actlas_float32.ratio", "mixing.long.in_order"],
    "scheduling": ["ray.2.the_driver.units_per_s", "imagined.16.driver_us_per_unit"],
    "welch": ["stimuli.warm.mean.actlas_localize.gbps"],
    "scale": ["planning.bytes_per_document", "open.first_row_of_a_store.s"],
    "lookup": ["top.actlas_top_20.warm.ms", "build.index_by_feature.bytes_per_code"],
}
LIBRARIES = {
    "storage": ("tensorstore", "zarrs"),
    "records": (),
    "compression": ("torch", "transformers"),
    "extraction": ("torch", "transformers"),
    "startup": ("torch",),
    "peers": ("torch", "transformers"),
    "moments": (),
    "batches": ("torch",),
    "scheduling": ("ray",),
    "welch": ("dask", "scipy"),
    "lookup": ("torch", "transformers"),
    "scale": ("torch", "transformers"),
}


SERVE = """
import contextlib, gc, importlib, io, json, multiprocessing, os, sys, traceback
from benchmarks import harness

PRELOADED = [
    *("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama"),
    *("transformers.models.gpt2.modeling_gpt2", "actlas.pipeline.extract.extract"),
    *("actlas.pipeline.plan.make", "benchmarks.extraction"),
]

def called(pipe, work, *arguments):
    gc.freeze()  # the harness collects often, and all that was loaded stays
    try:
        pipe.send((True, work(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))

def in_process(work, *arguments):
    ours, theirs = context.Pipe()
    process = context.Process(target=called, args=(theirs, work, *arguments))
    process.start()
    theirs.close()
    answer = ours.recv()
    process.join()
    return answer

def as_json(function, arguments):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        harness._child(function, arguments)
    return json.loads(printed.getvalue().splitlines()[-1])

def in_warm_process(function, **arguments):
    good, found = in_process(as_json, function, json.dumps(arguments))
    if not good:
        raise RuntimeError(found)
    return found

def benchmark(name, arguments):
    harness.in_fresh_process = in_warm_process
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        module = importlib.import_module(f"benchmarks.{name}")
        module.in_fresh_process = in_warm_process
        code = harness.main(f"benchmarks.{name}", module.run, arguments)
    return code, printed.getvalue()

context = multiprocessing.get_context("forkserver")
if __name__ == "__main__":
    context.set_forkserver_preload(PRELOADED)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        good, found = in_process(benchmark, name, arguments)
        answers.write(json.dumps(found if good else [found, ""]) + "\\n")
        answers.flush()
"""
"""Runs one benchmark after the other as its command does, each in a process that is forked from
one that has loaded everything; and so is what runs in a process of its own."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path_factory.mktemp("server") / "serve.py"
    script.write_text(SERVE)
    # What they write lies where the tests' files lie; Ray's sockets want shorter paths.
    where = {"TMPDIR": tempfile.gettempdir(), "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp")}
    process = subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **where},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.communicate()


def figures(server: subprocess.Popen[str], *arguments: str) -> dict[str, float]:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(arguments) + "\n")
    server.stdin.flush()
    line = server.stdout.readline()
    assert line, f"the benchmarks' process ended with {server.wait()}"
    code, printed = json.loads(line)
    assert code == 0, str(code)[-3000:]
    found: dict[str, float] = json.loads(printed)  # exactly one object
    return found


def test_a_process_of_its_own() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from benchmarks.harness import in_fresh_process as f; print(f('os:getppid'))",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 1


def test_one_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.moments", "--quick", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(EXPECTED["moments"]) <= set(json.loads(done.stdout))


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_are_finite_and_positive(
    server: subprocess.Popen[str], name: str, tmp_path: Path
) -> None:
    for library in LIBRARIES[name]:
        pytest.importorskip(library)
    table = tmp_path / "table.md"
    found = figures(server, name, "--quick", "--json", "--out", str(table))
    assert set(EXPECTED[name]) <= set(found)
    wrong = {k: v for k, v in found.items() if not (math.isfinite(v) and v > 0)}
    assert wrong == {}
    text = table.read_text()
    assert text.startswith("# ")
    assert "cores of" in text
    assert "| " in text
    assert str(tmp_path) not in text
