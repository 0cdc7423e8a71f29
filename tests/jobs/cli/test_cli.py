"""The command line: its help, its output, and one clear line and exit code for each bad input."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from support.jobs import ROOT, options, plant
from support.reports import parsed
from support.stores import create, fill, plan_for, words_columns
from support.workers import fake_store, make_fake

import actlas.jobs.cli.status
import actlas.jobs.run.run
from actlas.jobs.cli import sae
from actlas.jobs.cli.app import VERBS, cli
from actlas.jobs.run.run import run_extraction
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.store.display.pace import Pace
from actlas.store.errors import (
    EXIT_DAMAGE,
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_QUARANTINE,
    EXIT_RESUME,
    EXIT_USAGE,
)
from actlas.store.ledger import lease
from actlas.store.store import Store


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def full(tmp_path: Path) -> Store:
    store = fake_store(tmp_path)
    fill(store)
    return store


def test_help_is_fast() -> None:
    command = [sys.executable, "-m", "actlas.jobs.cli", "--help"]
    seconds = []  # of processor, since the machine may have other things to do
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, *(f"sae {verb}" for verb in sae.VERBS)])
def test_help_states_every_default(verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert result.exit_code == EXIT_DONE
    command: click.Command | None = cli
    for word in verb.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.required:
            assert parameter.help is not None
            assert "[default: " in parameter.help, parameter.name
    if verb == "extract":
        for model in (PlanOptions, RunOptions):
            assert all(f"--{n.replace('_', '-')}" in result.stdout for n in model.model_fields)
    for text in (
        "[default: 2,048 on a CPU, else 8,192]",
        "[default: ray where --workers is not 1 or --address is given, else inline]",
        "[default: resid_post.*]",
    ):
        assert verb != "extract" or text in " ".join(result.stdout.split())


def test_version() -> None:
    assert run("--version").stdout.startswith("actlas ")


LOADED = """
import atexit, sys
class Stop:
    def find_spec(self, name, *_):
        if name == "torch": raise SystemExit("torch")
sys.meta_path.insert(0, Stop())
atexit.register(lambda: print("loaded:", *sys.modules, file=sys.stderr))
from actlas.jobs.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "left_out", "said"),
    [
        (["--help"], {"numpy", "pydantic", "rich", "yaml", "torch"}, "Commands:"),
        (["info"], {"rich", "transformers", "scipy", "obstore", "torch"}, "not extracted yet"),
        (["status"], {"rich", "transformers", "scipy", "obstore", "torch"}, "shards"),
        (["extract", "new"], {"rich", "transformers", "ray", "torch"}, "reading builtin:m: conf"),
    ],
)
def test_what_a_start_does_not_load(
    tmp_path: Path, arguments: list[str], left_out: set[str], said: str
) -> None:
    """These libraries are most of a start; what `extract` says first is said before torch."""
    columns = words_columns(0, 20, 9)
    path = create(tmp_path / "s.zarr", plan_for(columns), columns).path
    more = [path] if arguments in (["info"], ["status"]) else []
    if arguments[0] == "extract":
        more = ["--model=builtin:m", "--corpus=builtin:python-docs"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments, *more],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    loaded = set(done.stderr.rpartition("loaded:")[2].split())
    assert "actlas.jobs.cli.app" in loaded
    assert said in done.stdout + done.stderr
    assert not left_out & loaded


def test_heavy_libraries_stay_out() -> None:
    code = (
        "import sys; from actlas.jobs.cli.app import cli; import click\n"
        "from actlas.jobs.cli.sae import command as sae\n"
        "for group in (cli, sae):\n"
        "    for verb in group.list_commands(None): group.get_command(None, verb)\n"
        "heavy = {'torch', 'transformers', 'ray', 'datasets', 'pandas', 'dask', 'zarr', 'scipy'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("extrac", "x.zarr"), EXIT_USAGE, "No such command 'extrac'"),
        (("extract",), EXIT_USAGE, "Missing argument 'STORE'"),
        (("extract", "x.zarr", "--wrkers", "3"), EXIT_USAGE, "No such option"),
        (("extract", "x.zarr", "--workers", "many"), EXIT_USAGE, "expected a whole number"),
        (("extract", "x.zarr", "--workers", "many"), EXIT_USAGE, ", 2e6 or 2M, or auto"),
        (("extract", "x.zarr", "--workers", "0"), EXIT_USAGE, "greater than or equal to 1"),
        (("extract", "x.zarr", "--dtype", "float64"), EXIT_USAGE, "'float64' is not one of"),
        (("extract", "x.zarr", "run.wrkers=3"), EXIT_USAGE, "Did you mean workers"),
        (("extract", "x.zarr"), EXIT_USAGE, "a plan needs --model and --corpus"),
        (("plan", "x.zarr", "--model", "builtin:m"), EXIT_USAGE, "a plan needs --corpus"),
        (("plan", "x.zarr", "--config", "none.yaml"), EXIT_USAGE, "none.yaml: cannot be read"),
        (("status", "x.zarr"), EXIT_USAGE, "there is no store here"),
        (("verify", "x.zarr"), EXIT_USAGE, "there is no store here"),
        (("info", "x.zarr"), EXIT_USAGE, "there is no store here"),
        (("show", "x.zarr", "--doc", "0"), EXIT_USAGE, "there is no store here"),
        (("show", "x.zarr"), EXIT_USAGE, "Missing option '--doc'"),
        (
            ("show", "x.zarr", "--doc", "-1"),
            EXIT_USAGE,
            "got '-1', expected a whole number of 0 or more",
        ),
        (("status", "ftp://host/x.zarr"), EXIT_USAGE, "ftp:// URL"),
        (("plan", "x.zarr", "--max-tokens", "1e400"), EXIT_USAGE, "expected a whole number"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_bad_input_in_a_process_of_its_own(full: Store) -> None:
    command = [sys.executable, "-m", "actlas.jobs.cli", "extract", full.path, "--seed", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == EXIT_USAGE
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {full.path}: planned with seed = 7, now asked for 8 (--seed). A plan is frozen: "
        "leave seed out to resume this store, or give another path for a new one.\n"
    )


@pytest.mark.parametrize("verb", ["plan", "extract", "status"])
def test_what_the_system_refuses_is_one_line(tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("")
    request = ("--model", "builtin:actlas-6m", "--corpus", "builtin:python-docs")
    for path in (tmp_path / "file/x.zarr", tmp_path / ("x" * 300)):
        arguments = (verb, path, *(request if verb != "status" else ()))
        result = run(*arguments)
        assert result.exit_code in (EXIT_ERROR, EXIT_USAGE)
        *said, last = result.stderr.splitlines()
        assert [line.partition(" ")[0] for line in said] in (
            [],
            ["reading"],
            ["reading", "planning"],
        )
        assert last.startswith(f"error: {tmp_path}/")
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert "Traceback" in run(*arguments, "--debug").stderr


def test_a_plain_oserror_in_json(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(13, "Permission denied", "a/b")

    monkeypatch.setattr(actlas.jobs.cli.status, "open_store", refuse)
    result = run("status", store.path, "--json")
    assert result.exit_code == EXIT_ERROR
    assert parsed("error", result.stdout) == {
        "error": {"kind": "error", "message": "a/b: Permission denied"}
    }


def test_commands_to_copy_are_quoted(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "my runs")
    assert run("status", store.path).stdout.endswith(f"next: actlas extract '{store.path}'\n")
    fill(store)
    for verb, then in (("status", "verify"), ("extract", "verify"), ("plan", "extract")):
        assert f"next: actlas {then} '{store.path}'\n" in run(verb, store.path).stdout
    assert f"next: actlas verify '{store.path}' --full\n" in run("verify", store.path).stdout
    full = run("verify", store.path, "--full").stdout
    assert f"next: actlas show '{store.path}' --doc 0\n" in full


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (("--debug", "status"), ("status", "--debug")):
        assert "Traceback" in run(*arguments, tmp_path / "x.zarr").stderr


def test_errors_in_json(tmp_path: Path) -> None:
    result = run("status", tmp_path / "x.zarr", "--json")
    assert result.exit_code == EXIT_USAGE
    assert parsed("error", result.stdout)["error"]["kind"] == "store_not_found"
    assert result.stderr.startswith("error (store_not_found): ")


def test_a_store_of_another_version(full: Store) -> None:
    file = Path(full.path, "zarr.json")
    file.write_text(file.read_text().replace('"format_version":1', '"format_version":9'))
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 9'))
    for verb in ("status", "verify", "info", "extract"):
        result = run(verb, full.path)
        assert result.exit_code == EXIT_ERROR, result.output
        assert "format version 9, this actlas reads version 1" in result.stderr


def test_status(full: Store, tmp_path: Path) -> None:
    result = run("status", full.path)
    assert result.exit_code == EXIT_DONE
    assert "758 of 758 (100.0%)" in result.stdout
    assert result.stdout.endswith(f"next: actlas verify {full.path}\n")
    body = parsed("status", run("status", full.path, "--json").stdout)
    assert body["complete"] is True
    assert body["shards"] == {"all": 12, "done": 12, "missing": 0, "quarantined": []}
    assert body["rows"] == {"all": 758, "done": 758}
    assert body["rows_per_s"] > 0
    assert body["running"] is False


def test_status_of_a_part(store: Store, tmp_path: Path) -> None:
    plant(tmp_path, {3: ["raise"] * 3})
    fill(store, range(0, 3))
    body = parsed("status", run("status", store.path, "--json").stdout)
    assert body["shards"] == {"all": 12, "done": 3, "missing": 9, "quarantined": []}
    with lease.hold(store.objects):
        body = parsed("status", run("status", store.path, "--json").stdout)
        assert body["running"] is True
        assert "holds the lease" in run("status", store.path).stdout
    run_extraction(store, options(), make_fake)
    body = parsed("status", run("status", store.path, "--json").stdout)
    assert body["shards"] == {"all": 12, "done": 11, "missing": 0, "quarantined": [3]}
    assert body["quarantine"][0]["faults"] == {"task": 3}
    text = run("status", store.path).stdout
    assert "3: RuntimeError: shard 3 is poison\\nwith a second line" in text
    assert text.endswith("--retry-quarantined\n")


def test_verify(full: Store) -> None:
    result = run("verify", full.path, "--full")
    assert result.exit_code == EXIT_DONE, result.output
    assert result.stdout.startswith("whole: every byte of ")
    shard = Path(full.path, "activations/resid_post.0/c/4/0")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    result = run("verify", full.path, "--full")
    assert result.exit_code == EXIT_DAMAGE
    assert "activations/resid_post.0/c/4/0, rows [256, 320)" in result.stdout
    body = parsed("verify", run("verify", full.path, "--full", "--json").stdout)
    assert body["ok"] is False
    assert body["damages"][0]["key"] == "activations/resid_post.0/c/4/0"
    assert (body["damages"][0]["start"], body["damages"][0]["stop"]) == (256, 320)


def test_verify_says_how_far_it_is(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "due", lambda self: False)
    assert "checked" not in run("verify", full.path, "--full").stderr
    monkeypatch.setattr(Pace, "due", lambda self: True)
    result = run("verify", full.path, "--full")
    assert result.exit_code == EXIT_DONE
    lines = result.stderr.splitlines()
    assert lines
    assert all(re.fullmatch(r"\d+ of \d+ objects checked", line) for line in lines)


def test_verify_of_a_part(store: Store) -> None:
    fill(store, range(0, 3))
    result = run("verify", store.path)
    assert result.exit_code == EXIT_DONE
    assert "not extracted yet: shards 3-11" in result.stdout
    assert f"next: actlas extract {store.path}" in result.stdout


def test_info(full: Store) -> None:
    text = run("info", full.path).stdout
    assert "made-up (LlamaForCausalLM, 2 layers, d_model 24, computed in float32)" in text
    body = parsed("info", run("info", full.path, "--json").stdout)
    assert body["n_shards_done"] == 12
    summary = body["statistics"]["resid_post.0"]
    assert summary["rms_norm"] == pytest.approx(24**0.5, rel=0.05)
    assert summary["n_rows"] == 758


def test_info_before_anything_is_extracted(store: Store) -> None:
    assert "not extracted yet" in run("info", store.path).stdout
    assert parsed("info", run("info", store.path, "--json").stdout)["statistics"] == {}


def test_show(full: Store) -> None:
    document = full.document(2)
    body: dict[str, Any] = parsed("show", run("show", full.path, "--doc", "2", "--json").stdout)
    assert body["text"] == document.text
    assert body["token_id"] == document.token_id.tolist()
    assert len(body["norms"]["mlp.1"]) == len(document)
    result = run("show", full.path, "--doc", "2", "--pos", "3")
    assert result.exit_code == EXIT_DONE
    marked = [line for line in result.stdout.splitlines() if line.startswith(">")]
    assert len(marked) == 1
    assert str(document.token_id[3]) in marked[0]
    assert ">>" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--doc", "99"), "document 99: this store has documents 0 to 39"),
        (("--doc", "2", "--pos", "999"), "token 999: document 2 has"),
    ],
)
def test_show_what_is_not_there(full: Store, arguments: tuple[str, ...], message: str) -> None:
    result = run("show", full.path, *arguments)
    assert result.exit_code == EXIT_USAGE
    assert message in result.stderr


def test_show_an_empty_document(full: Store) -> None:
    result = run("show", full.path, "--doc", "5")
    assert result.exit_code == EXIT_DONE, result.output
    assert "0 tokens" in result.stdout


def test_show_what_is_not_extracted(store: Store) -> None:
    result = run("show", store.path, "--doc", "2")
    assert result.exit_code == EXIT_ERROR
    assert "are not extracted yet" in result.stderr


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actlas.jobs.run.run, "open_worker", make_fake)
    real = actlas.jobs.run.run.run_extraction
    monkeypatch.setattr(actlas.jobs.run.run, "run_extraction", lambda s, r: real(s, r, make_fake))


def test_extract_ends_with_one_line(faked: None, store: Store) -> None:
    result = run("extract", store.path, "--seed", "7", "run.tokens_per_batch=2k")
    assert result.exit_code == EXIT_DONE, result.output
    assert result.stdout.startswith("done: 758 rows x 2 hookpoints, ")
    assert "rows/s, " in result.stdout
    assert "of the bare forward pass) -> next: actlas verify " in result.stdout
    assert result.stdout.count("\n") == 1


def test_extract_with_quarantine(faked: None, store: Store, tmp_path: Path) -> None:
    plant(tmp_path, {3: ["raise"] * 3})
    result = run("extract", store.path)
    assert result.exit_code == EXIT_QUARANTINE
    assert result.stdout.startswith("done except for shards in quarantine (3): 694 rows")


def test_extract_while_another_does(faked: None, store: Store) -> None:
    with lease.hold(store.objects):
        result = run("extract", store.path)
    assert result.exit_code == EXIT_RESUME
    assert "one driver at a time may" in result.stderr
    assert "error" not in result.stderr, "it is no error"


def test_an_unexpected_error_shows_its_traceback(store: Store, tmp_path: Path) -> None:
    code = (
        "import actlas.jobs.cli.extract as e, actlas.jobs.cli.app as c\n"
        "def bad(*a, **b): raise ZeroDivisionError('a bug')\n"
        "e.extract_at = bad\n"
        f"c.main(['extract', {store.path!r}])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_ERROR
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr
