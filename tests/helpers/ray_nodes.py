"""A Ray cluster of several nodes on this machine, for tests that lose one of them.

    PYTHONPATH=tests python -m helpers.ray_nodes 2

Starts a head without CPUs and so many nodes of one CPU each, prints its address and its nodes' process ids as a JSON
line, adds a node for each line of its input, and ends with its input.
"""

import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress

os.environ.setdefault("RAY_AUTH_MODE", "disabled")


def main(num_nodes: int) -> None:
    """Serve the cluster."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-")
    options = {"object_store_memory": 80 * 2**20, "include_dashboard": False, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0, **options})
    try:
        nodes = [cluster.add_node(num_cpus=1, **options) for _ in range(num_nodes)]
        print(json.dumps({"address": cluster.address, "pids": [_raylet(node) for node in nodes]}), flush=True)
        for _ in sys.stdin:
            cluster.add_node(num_cpus=1, **options)
    finally:
        with suppress(Exception):  # a node that the test has killed can't be ended properly
            cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _raylet(node: object) -> int:
    return node.all_processes["raylet"][0].process.pid  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(int(sys.argv[1]))
