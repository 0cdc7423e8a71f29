"""A cluster of local processes that loses a machine in mid-run.

Run as ``python -m support.cluster STORE``.

A process of its own, since Ray reads how to authenticate once, when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys

from actlas.store.store import open_store
from support.jobs import wait_until

FAST_CHECKS = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
}
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


def main() -> int:
    """Run a driver on two nodes, kill one when three shards are done, and add another."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "c" * 64}
    from ray.cluster_utils import Cluster

    store = open_store(sys.argv[1])
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": FAST_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(**NODE) for _ in range(2)]
        command = [sys.executable, "-m", "support.drive", store.path, "--executor", "ray"]
        driver = subprocess.Popen([*command, "--workers", "2", "--address", cluster.address])
        wait_until(lambda: len(store.done()) >= 3)
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(**NODE)
        return driver.wait()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
