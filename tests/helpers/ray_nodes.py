"""A Ray cluster of several nodes on this machine, for tests that lose one of them.

    PYTHONPATH=tests python -m helpers.ray_nodes 2

Starts a head without CPUs and so many nodes of one CPU each, prints its address and its nodes' process ids as a JSON
line, adds a node for each line of its input, and ends with its input.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any

import psutil

os.environ.setdefault("RAY_AUTH_MODE", "disabled")


@contextmanager
def ray_nodes(num_nodes: int) -> Iterator[dict[str, Any]]:
    """Start a cluster in processes of its own; gives its `address`, its nodes' `pids`, and `add`, which adds a node."""
    command = [sys.executable, "-m", "helpers.ray_nodes", str(num_nodes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    family: list[psutil.Process] = []
    try:
        cluster = json.loads(process.stdout.readline()) | {"add": partial(_write_line, process.stdin)}
        family = psutil.Process(process.pid).children(recursive=True)
        yield cluster
    finally:
        family += psutil.Process(process.pid).children(recursive=True)
        process.communicate(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=10)
        for child in alive:
            child.kill()


def _write_line(stream: IO[bytes]) -> None:
    stream.write(b"\n")
    stream.flush()


def main(num_nodes: int) -> None:
    """Serve the cluster."""
    from ray.cluster_utils import Cluster

    from evilm.cluster import NO_DASHBOARD

    os.environ["RAY_API_SERVER_ADDRESS"] = NO_DASHBOARD
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
