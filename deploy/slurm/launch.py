"""Ray inside one Slurm job: ``launch.py STORE [OPTION OF actlas extract]...``.

Run by ``actlas.sbatch`` on the job's first node. Ray's head takes no work; each node, the first
one too, gets a worker. Extraction begins as soon as one worker is there, and goes on with those
that come. SIGTERM (Slurm's, before the time is up) drains it and requeues the job, SIGINT drains
it and leaves it at that. Whether it is done is asked of ``actlas verify``.

Environment: ACTLAS_HEAD_ALONE=1 (no worker on the first node), ACTLAS_WAIT_S (300: for head and
first worker), ACTLAS_DRAIN_S (150: then shards in flight are given up), ACTLAS_REQUEUES (10: after
faults, which ``actlas-JOBID-faults.txt`` counts; those after a signal are not counted),
ACTLAS_VERIFY (``--full`` reads every byte), ACTLAS_HEAD_IP, ACTLAS_TMP (/tmp: of each node; keep it
short, Ray's sockets lie below).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

RESUME = 75
STARTS = 5
OBJECT_STORE = "--object-store-memory=209715200"  # results are a few hundred bytes
JOINED = """
import ray, sys, time
ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)
while not any(n["Alive"] and n["Resources"].get("CPU") for n in ray.nodes()):
    time.sleep(1)
"""


class RayDownError(Exception):
    """Ray did not come up, or went down."""


@dataclass
class Node:
    """A machine of the job, and the ``srun`` that keeps a Ray worker on it."""

    name: str
    number: int
    process: subprocess.Popen[bytes] | None = None
    n_starts: int = 0
    not_before: float = 0.0


class Launcher:
    """One Ray for one Slurm job."""

    def __init__(self, store: str, arguments: list[str]) -> None:
        self.store, self.arguments = store, arguments
        self.job = os.environ["SLURM_JOB_ID"]
        shown = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        names = subprocess.run(shown, check=True, capture_output=True, text=True).stdout.split()
        alone = os.environ.get("ACTLAS_HEAD_ALONE") == "1" and len(names) > 1
        self.nodes = [Node(name, i) for i, name in enumerate(names) if not (alone and i == 0)]
        self.ip = os.environ.get("ACTLAS_HEAD_IP") or head_ip(names[1:])
        # New for each job, and made for it: other users of a node find neither port nor token.
        self.temporary = (
            f"{os.environ.get('ACTLAS_TMP', '/tmp')}/actlas-{self.job}-{secrets.token_hex(3)}"
        )
        self.logs = Path(f"actlas-{self.job}-ray").absolute()
        self.faults = Path(f"actlas-{self.job}-faults.txt").absolute()
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ.pop("RAY_ADDRESS", None)
        self.address = ""
        self.head: subprocess.Popen[bytes] | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.signalled: int | None = None
        self.drain_until = 0.0

    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self.signalled is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Drain the driver; what then happens is decided when it has ended."""
        self.signalled = number
        self.drain_until = time.monotonic() + float(os.environ.get("ACTLAS_DRAIN_S", "150"))
        if self.driver is not None and self.driver.poll() is None:
            self.driver.send_signal(signal.SIGTERM)

    def run(self) -> int:
        """Return the exit code of the extraction; where it says done, that of ``verify``."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        self.logs.mkdir(exist_ok=True)
        code = 1
        try:
            limit = time.monotonic() + float(os.environ.get("ACTLAS_WAIT_S", "300"))
            self.start_head(limit)
            code = self.attend([sys.executable, "-c", JOINED, self.address], limit)
            if code == 0:
                ray = ["--executor", "ray", "--address", self.address]
                code = self.attend(["actlas", "extract", self.store, *self.arguments, *ray])
        except RayDownError as error:
            say(f"{error}; what Ray printed is in {self.logs}")
            code = 1 if self.driver is None else RESUME
        finally:
            self.stop_ray(keep_logs=code not in (0, RESUME))
        if code < 0 or (self.driver is None and self.stopping()):
            code = RESUME  # a driver that was killed has lost no shard that was done
        if code == 0:
            self.faults.unlink(missing_ok=True)
            verify = ["actlas", "verify", self.store, *os.environ.get("ACTLAS_VERIFY", "").split()]
            return subprocess.run(verify, check=False).returncode
        return self.requeue() if code == RESUME else code

    def start_head(self, limit: float) -> None:
        """Start the head on free ports, again where somebody else was faster to take one."""
        for n in range(STARTS):
            port, other = free_port(), free_port()
            self.address = f"{self.ip}:{port}"
            command = self.ray_start(f"h{n}", f"--port={port}", f"--ray-client-server-port={other}")
            command += ["--head", f"--node-ip-address={self.ip}", "--num-cpus=0", "--num-gpus=0"]
            self.head = self.started("head", [*command, "--include-dashboard=false"])
            while self.head.poll() is None and not self.stopping():
                with suppress(OSError), socket.create_connection((self.ip, port), timeout=1):
                    return
                if time.monotonic() > limit:
                    raise RayDownError("the head of Ray does not answer")
                time.sleep(0.2)
        raise RayDownError("the head of Ray does not start")

    def ray_start(self, name: str, *more: str) -> list[str]:
        """Return the command of a Ray node: its own folder, and no fixed port but the head's."""
        folder = f"{self.temporary}-{name}"
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        ports.append("--include-log-monitor=false")  # workers' outputs stay in Ray's own folder
        start = ["ray", "start", "--block", f"--temp-dir={folder}", OBJECT_STORE, *ports, *more]
        return ["sh", "-c", 'mkdir -m 700 "$0" && exec "$@" $ACTLAS_CPUS', folder, *start]

    def started(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to a file, and which no signal to our group reaches."""
        with (self.logs / f"{name}.log").open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def tend(self, node: Node) -> None:
        """Start a node's worker, and start it again where it ended."""
        ended = None if node.process is None else node.process.poll()
        if node.process is not None and ended is None:
            return
        if node.n_starts >= STARTS or time.monotonic() < node.not_before:
            return
        if ended is not None:
            say(f"{node.name}: its Ray worker ended ({ended}): starting another")
        step = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={node.name}", "--overlap"]
        if "SLURM_CPUS_PER_TASK" in os.environ:  # steps do not inherit it
            step.append(f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}")
        name = f"{node.number}.{node.n_starts}"
        start = self.ray_start(name, f"--address={self.address}")
        start[2] = 'ACTLAS_CPUS="--num-cpus=${SLURM_CPUS_ON_NODE:-1}"; ' + start[2]
        node.process = self.started(f"worker-{node.name}", [*step, *start])
        node.n_starts += 1
        node.not_before = time.monotonic() + 5 * node.n_starts

    def attend(self, command: list[str], limit: float | None = None) -> int:
        """Run a command while Ray is looked after; return its exit code.

        Raises
        ------
        RayDownError
            The head is gone, every worker is, or no worker came in time.
        """
        if self.stopping():
            return RESUME
        process = subprocess.Popen(command, start_new_session=True)
        if limit is None:
            self.driver = process
        n_told = 0
        try:
            while process.poll() is None:
                assert self.head is not None
                if self.head.poll() is not None:
                    raise RayDownError(f"the head of Ray ended ({self.head.returncode})")
                if not self.stopping():
                    for node in self.nodes:
                        self.tend(node)
                    if all(
                        n.n_starts >= STARTS and n.process and n.process.poll() is not None
                        for n in self.nodes
                    ):
                        raise RayDownError("no worker of Ray stays up")
                elif limit is not None or time.monotonic() > self.drain_until:
                    process.send_signal(signal.SIGKILL if n_told else signal.SIGTERM)
                    n_told, self.drain_until = n_told + 1, time.monotonic() + 10
                if limit is not None and time.monotonic() > limit:
                    raise RayDownError("no worker of Ray has joined in time")
                time.sleep(0.5)
            return process.returncode
        finally:
            end([process], patience_s=20 if limit is None else 0)

    def stop_ray(self, keep_logs: bool) -> None:
        """End workers and head, and remove what they left, but for logs that explain a failure."""
        end([node.process for node in self.nodes if node.process is not None])
        end([] if self.head is None else [self.head])
        if not keep_logs:
            every = ["srun", f"--nodes={os.environ.get('SLURM_JOB_NUM_NODES', '1')}", "--overlap"]
            clean = f"rm -rf '{self.temporary}'-*"
            subprocess.run([*every, "--ntasks-per-node=1", "sh", "-c", clean], check=False)
            shutil.rmtree(self.logs, ignore_errors=True)

    def requeue(self) -> int:
        """Have Slurm run the job again, where that was meant and may help; return 75."""
        if self.signalled == signal.SIGINT:
            say(f"stopped; sbatch the same script again, or: scontrol requeue {self.job}")
            return RESUME
        if not self.stopping():
            n_faults, most = self.count_fault(), int(os.environ.get("ACTLAS_REQUEUES", "10"))
            if n_faults > most:
                with suppress(OSError):  # whoever requeues it by hand has looked: from 0 again
                    self.faults.unlink()
                say(f"stopped by a fault, {most} times requeued after one: look at what it said")
                return RESUME
        say(f"requeueing job {self.job}: it goes on where it stopped")
        subprocess.run(["scontrol", "requeue", self.job], check=False)
        return RESUME

    def count_fault(self) -> int:
        """Note a fault where the job finds it after a requeue; return how many there were.

        Slurm's own count has every requeue, those after time limits and lost nodes too. It serves
        where nothing can be noted, as on a full disk: too few requeues are better than no end.
        """
        n_requeues = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        try:
            with self.faults.open("a" if n_requeues else "w", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} stopped by a fault\n")
            return self.faults.read_text(encoding="utf-8").count("\n")
        except OSError as error:
            say(f"{self.faults}: {error.strerror}; counting every requeue instead")
            return n_requeues + 1


def head_ip(others: list[str]) -> str:
    """Return the address under which another node of the job reaches this one."""
    for name in (*others, socket.gethostname()):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((name, 9))  # sends nothing: it only picks an interface
            found = str(probe.getsockname()[0])
            if not found.startswith("127."):
                return found
    return "127.0.0.1"


def free_port() -> int:
    """Return a port that nobody listens at, as of now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def end(processes: list[subprocess.Popen[bytes]], patience_s: float = 20) -> None:
    """Ask processes to end, and kill those that do not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    limit = time.monotonic() + patience_s
    for process in processes:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def say(text: str) -> None:
    """Write a line to the job's output."""
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: launch.py STORE [option of actlas extract]...")
    sys.exit(Launcher(sys.argv[1], sys.argv[2:]).run())
