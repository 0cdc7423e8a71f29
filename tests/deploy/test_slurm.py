"""The Slurm launcher, with local processes standing in for nodes: drain, requeue, resume, a loss.

``srun`` runs its command here, ``scontrol`` writes down what it is asked, ``actlas`` has made-up
workers; Ray is Ray.
"""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.jobs import ROOT, attempted, plant, wait_until
from support.workers import check_whole, fake_store, open_gate

from actlas.store.errors import EXIT_DONE, EXIT_ERROR, EXIT_RESUME
from actlas.store.store import open_store

FOLDER = ROOT / "deploy" / "slurm"
SRUN = """#!/bin/sh
echo "srun $*" >> {calls}
while true; do case "$1" in --*) shift ;; *) break ;; esac; done
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >> {calls}
if [ "$1 $2" = "show hostnames" ]; then echo "$3" | tr , '\\n'; fi
"""
ACTLAS = """#!/bin/sh
if [ "$1" = extract ]; then shift; exec {python} -m support.drive "$@"; fi
exec {python} -m actlas.jobs.cli "$@"
"""

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Launch]:
    """Start the launcher as a Slurm job of two nodes; whatever is left of it is killed."""
    tools, temporary = tmp_path / "bin", Path("/tmp") / f"a{os.getpid()}"
    tools.mkdir()
    temporary.mkdir()
    words = {"calls": tmp_path / "calls.txt", "python": sys.executable}
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "actlas": ACTLAS}.items():
        script(tools / name, text.format(**words))
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))},
        "PATH": path,
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "n1,n2",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "1",
        "ACTLAS_HEAD_IP": "127.0.0.1",
        "ACTLAS_TMP": str(temporary),
    }
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, FOLDER / "launch.py", *arguments],
            env=environment | more,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()
    for pid in those_with(str(temporary)):
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["rm", "-rf", temporary], check=True)


def said_until(process: subprocess.Popen[str], words: str) -> str:
    """Return what a process has said, up to the line with some words."""
    assert process.stdout is not None
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def those_with(words: str) -> list[int]:
    """Processes with these words in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words in line:
            found.append(int(folder.name))
    return found


def test_drain_requeue_and_resume_with_a_node_lost(slurm: Launch, tmp_path: Path) -> None:
    store = fake_store(tmp_path, n_documents=80)
    # However long a node takes to start, the run is not over before it is told to stop.
    held = range(store.plan.n_shards - 8, store.plan.n_shards)
    plant(tmp_path, {shard: ["gate"] * 9 for shard in held}, slow_s=0.6)
    arguments = (store.path, "--workers", "2", "--max-node-losses", "1000")
    launcher = slurm(*arguments)
    wait_until(lambda: len(store.done()) >= 2)
    lost = [*those_with("-1.0/"), *those_with("-1.0 ")]
    assert len(lost) >= 2  # `ray start`, the raylet and its agents, a worker: the second node
    for pid in set(lost):
        with suppress(ProcessLookupError):  # some end with the first
            os.kill(pid, signal.SIGKILL)
    n_done = len(store.done())
    wait_until(lambda: len(store.done()) >= n_done + 2 and bool(those_with("-1.1/")))
    launcher.send_signal(signal.SIGTERM)
    out = said_until(launcher, "finishing the shards in flight")
    open_gate(tmp_path)
    out += launcher.communicate(timeout=250)[0]
    assert launcher.returncode == EXIT_RESUME, out
    assert "n2: its Ray worker ended (-9): starting another" in out
    assert "requeueing job 4242" in out
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert calls[-1] == "scontrol requeue 4242"
    assert 4 <= len(store.done()) < store.plan.n_shards
    assert those_with("/actlas-4242-") == []
    assert not (tmp_path / "actlas-4242-ray").exists()

    done_before = set(store.done())
    n_attempts = len(attempted(tmp_path))
    plant(tmp_path)
    launcher = slurm(*arguments, SLURM_RESTART_COUNT="1", SLURM_JOB_NODELIST="n3")
    out, _ = launcher.communicate(timeout=250)
    assert launcher.returncode == EXIT_DONE, out
    assert "whole: sizes, metadata and receipts of" in out
    assert not done_before & set(attempted(tmp_path)[n_attempts:])
    assert (tmp_path / "calls.txt").read_text().count("scontrol requeue") == 1
    assert those_with("/actlas-4242-") == []
    check_whole(open_store(store.path))


def test_a_head_that_ends_at_once_with_success_is_noticed(slurm: Launch, tmp_path: Path) -> None:
    script(tmp_path / "bin" / "ray", "#!/bin/sh\necho no space for Ray\nexit 0\n")
    launcher = slurm("nowhere.zarr")
    out, _ = launcher.communicate(timeout=250)
    assert launcher.returncode == EXIT_ERROR
    assert "the head of Ray does not start" in out
    assert "no space for Ray" in (tmp_path / "actlas-4242-ray" / "head.log").read_text()


def test_workers_that_never_join_are_noticed(slurm: Launch, tmp_path: Path) -> None:
    listen = f'case "$*" in *--head*) exec {sys.executable} - "$@"'
    code = (
        "import socket, sys, time\n"
        "port = next(a for a in sys.argv if a.startswith('--port=')).partition('=')[2]\n"
        "server = socket.create_server(('127.0.0.1', int(port))); time.sleep(60)\n"
    )
    script(tmp_path / "bin" / "ray", f"#!/bin/sh\n{listen} <<'END'\n{code}END\nesac\n")
    launcher = slurm("nowhere.zarr", ACTLAS_WAIT_S="3")
    out, _ = launcher.communicate(timeout=250)
    assert launcher.returncode == EXIT_ERROR
    assert "no worker of Ray has joined in time" in out


RAY = """#!/bin/sh
case "$*" in *--head*) exec {python} - "$@" <<'END'
import socket, sys, time
port = next(a for a in sys.argv if a.startswith("--port=")).partition("=")[2]
server = socket.create_server(("127.0.0.1", int(port))); time.sleep(60)
END
esac
exec sleep 60
"""
JOINS = "def init(**_): pass\ndef nodes(): return [{'Alive': True, 'Resources': {'CPU': 1}}]\n"
FAULTY = """#!/bin/sh
trap 'exit 75' TERM
if [ -e wait ]; then echo at work; while true; do sleep 0.1; done; fi
exit 75
"""


def test_time_limits_do_not_use_up_the_requeues_after_faults(slurm: Launch, tmp_path: Path) -> None:
    """With one allowed: a time limit, a fault, a fault. The second ends it."""
    script(tmp_path / "bin" / "ray", RAY.format(python=sys.executable))
    script(tmp_path / "bin" / "actlas", FAULTY)
    (tmp_path / "ray.py").write_text(JOINS)
    said = []
    for n_before in range(3):
        if n_before == 0:
            (tmp_path / "wait").touch()
        more = {"SLURM_RESTART_COUNT": str(n_before)} if n_before else {}
        launcher = slurm("x.zarr", ACTLAS_REQUEUES="1", PYTHONPATH=str(tmp_path), **more)
        if n_before == 0:
            assert launcher.stdout is not None
            assert "at work" in launcher.stdout.readline()
            (tmp_path / "wait").unlink()
            launcher.send_signal(signal.SIGTERM)
        said.append(launcher.communicate(timeout=250)[0])
        assert launcher.returncode == EXIT_RESUME, said
    assert ["requeueing job 4242" in out for out in said] == [True, True, False]
    assert "stopped by a fault, 1 times requeued after one" in said[2]
    assert (tmp_path / "calls.txt").read_text().count("scontrol requeue 4242\n") == 2


@pytest.fixture
def requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, int], bool]:
    """Whether a job that stopped is requeued: by which signal, after how many requeues."""
    calls = tmp_path / "calls.txt"
    script(tmp_path / "scontrol", SCONTROL.format(calls=calls))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # put back as it was, by the test's end
    monkeypatch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", ""))
    launcher_of = runpy.run_path(str(FOLDER / "launch.py"))["Launcher"]

    def asked(number: int | None, n_before: int) -> bool:
        calls.unlink(missing_ok=True)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(n_before))
        if n_before == 0:  # so Slurm has it
            monkeypatch.delenv("SLURM_RESTART_COUNT")
        launcher = launcher_of("run.zarr", [])
        launcher.signalled = number
        assert launcher.requeue() == EXIT_RESUME
        return "scontrol requeue 7" in calls.read_text()

    return asked


def test_when_a_job_is_requeued(requeue: Callable[[int | None, int], bool], tmp_path: Path) -> None:
    """After Slurm's signal always; after a person's never; after faults ten times."""
    assert requeue(signal.SIGTERM, 0)
    assert not requeue(signal.SIGINT, 0)
    for n_before in range(10, 20):  # so many time limits were before the first fault
        assert requeue(None, n_before)
        assert requeue(signal.SIGTERM, n_before + 1)
        assert not requeue(signal.SIGINT, n_before + 1)
    assert not requeue(None, 100)
    assert requeue(signal.SIGTERM, 100)
    assert requeue(None, 101)  # by hand, that is: from 0 again
    for _ in range(9):
        assert requeue(None, 102)
    assert not requeue(None, 102)
    assert requeue(None, 103)
    for _ in range(10):
        assert requeue(None, 0)  # another job, that has the same number
    assert [path.name for path in tmp_path.glob("actlas-*")] == ["actlas-7-faults.txt"]


def test_faults_that_cannot_be_counted(
    requeue: Callable[[int | None, int], bool],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Slurm's count is taken: it has them all, and there is an end."""
    (tmp_path / "actlas-7-faults.txt").mkdir()
    assert [requeue(None, n) for n in (0, 9, 10, 11)] == [True, True, False, False]
    assert requeue(signal.SIGTERM, 11)
    assert capfd.readouterr().err.count("counting every requeue instead") == 4


def test_the_batch_script(tmp_path: Path) -> None:
    """It parses; what it runs exists; Slurm is told to signal, to requeue and to bear a loss."""
    text = (FOLDER / "actlas.sbatch").read_text()
    subprocess.run(["bash", "-n", FOLDER / "actlas.sbatch"], check=True)
    settings = {
        w for line in text.splitlines() if line.startswith("#SBATCH ") for w in line.split()
    }
    assert {"--requeue", "--no-kill", "--signal=B:TERM@180", "--ntasks-per-node=1"} <= settings
    runs = text[text.index("exec ") :].replace("\\\n", " ")
    assert shlex.split(runs)[:3] == ["exec", "python3", "$SLURM_SUBMIT_DIR/launch.py"]
    fake = tmp_path / "python3"
    script(fake, '#!/bin/sh\necho "$@"\n')
    body = text.replace("$HOME/actlas/.venv/bin", str(tmp_path))
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(FOLDER), "USER": "me"}
    ran = subprocess.run(
        ["bash"], input=body, env=environment, capture_output=True, text=True, check=True
    )
    words = ran.stdout.split()
    assert words[1] == "/scratch/me/run.zarr"
    assert Path(words[0]).is_file() and Path(words[words.index("--config") + 1]).is_file()
