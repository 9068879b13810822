"""Pre-training on a simulated cluster of three nodes that are drained, lost and replaced; a process of its own.

    PYTHONPATH=tests python -m helpers.lost_nodes ROOT SUMMARY_JSON OUT

Two workers on two nodes; a preemption notice for one node after 3 steps; the node is gone after 5; one worker goes on;
a new node after 9; two workers finish.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

for name, value in {
    "RAY_AUTH_MODE": "disabled",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ[name] = value

import ray  # noqa: E402
from ray._raylet import GcsClient  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from helpers.faults import train  # noqa: E402

_STORE = 80 * 2**20
_PREEMPTION = 2  # DrainNodeReason of Ray's autoscaler protocol


def main(root: str, summary: str, out: str) -> None:
    """Run the scenario; what it left in `out` is for the test to judge."""
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s {what}", file=sys.stderr, flush=True)

    small = {"include_dashboard": False, "object_store_memory": _STORE}
    head = dict(num_cpus=0, **small)
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=True, configure_logging=False)
    say("cluster is up")
    result: dict[str, Any] = {}

    def work() -> None:
        settings = {"cluster.min_workers": 1, "cluster.resize_every_s": 2.0}
        faults = [(1, 3, "notice"), (0, 3, "notice"), (1, 5, "wait"), (0, 9, "wait")]
        workflow = Path(root), json.loads(Path(summary).read_text())
        result.update(train(workflow, Path(out), *faults, workers=2, **settings))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    leaving = come_to(out, 0, thread)
    say("two workers after 3 steps: one of their nodes gets a notice")
    busy = next(node for node in nodes if node.node_id == leaving)
    GcsClient(cluster.address).drain_node(busy.node_id, _PREEMPTION, "spot", int((time.time() + 600) * 1000))
    come_to(out, 2, thread)
    say("after 5 steps: the node is gone")
    cluster.remove_node(busy, allow_graceful=False)
    come_to(out, 3, thread)
    say("one worker after 9 steps: a new node")
    cluster.add_node(num_cpus=1, **small)
    thread.join()
    say("done")
    print(json.dumps(result))
    ray.shutdown()
    cluster.shutdown()


def come_to(out: str, fault: int, thread: threading.Thread) -> str:
    """Wait for a worker to come to a fault; the node that it runs on."""
    place = Path(f"{out}.faults.json.{fault}.here")
    while not (place.exists() and place.read_text()):
        if not thread.is_alive():
            raise SystemExit("the training ended early")
        time.sleep(0.1)
    return place.read_text()


if __name__ == "__main__":
    main(*sys.argv[1:])
