"""A Ray cluster of local processes, whose machines can be killed, frozen and added.

:class:`LocalCluster` runs it in a process of its own (``python -m support.cluster``), since Ray
reads how to authenticate once, when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Self

from support.jobs import PATHS, ROOT
from support.processes import alive

FAST_CHECKS = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 5,
    "health_check_initial_delay_ms": 0,
}
"""A machine that stands still is lost in some 5 s instead of 64; one that is merely slow is not."""
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "c" * 64}


class LocalCluster:
    """A head without CPUs, and machines of two CPUs each.

    Parameters
    ----------
    n_nodes : int
        Machines beside the head.

    Attributes
    ----------
    address : str
        For ``--address``.
    raylets : dict of int to int
        The process of each living machine, by the machine's number.
    """

    def __init__(self, n_nodes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | TOKEN | {"PYTHONPATH": PATHS, "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )
        self.address: str = self._answer()["address"]
        self.raylets: dict[int, int] = {}
        for _ in range(n_nodes):
            self.add()

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment to join."""
        return TOKEN

    def add(self) -> int:
        """Let a machine join, and return its number."""
        answer = self._ask("add")
        self.raylets[answer["node"]] = answer["raylet"]
        return int(answer["node"])

    def remove(self, node: int) -> None:
        """Clear away what is left of a machine whose raylet was killed."""
        self._ask("remove", node)
        del self.raylets[node]

    def mend(self) -> None:
        """Put a machine in the place of each that is gone."""
        for node, raylet in list(self.raylets.items()):
            if not alive(raylet):
                self.add()
                self.remove(node)

    def _ask(self, *command: str | int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith("{"):
            assert line, "the cluster ended"  # Ray may print lines of its own
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def main() -> None:
    """Do what is asked on stdin until it ends."""
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": FAST_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[int, Any] = {}
    n_nodes = 0
    try:
        _say(address=cluster.address)
        for line in sys.stdin:
            match json.loads(line):
                case ["add"]:
                    node = cluster.add_node(**NODE)
                    nodes[n_nodes] = node
                    raylet = node.all_processes["raylet"][0].process.pid
                    _say(node=n_nodes, raylet=raylet)
                    n_nodes += 1
                case ["remove", number]:
                    cluster.remove_node(nodes.pop(number), allow_graceful=False)
                    _say()
    finally:
        cluster.shutdown()


def _say(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
