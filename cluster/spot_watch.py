"""Tell Ray about a preemption notice for this node, so that a training writes a checkpoint in time.

    python cluster/spot_watch.py --cloud aws

It runs on every worker node beside Ray, which does not check for such notices itself; on Kubernetes an eviction has the
same effect. It polls the machine's metadata service every few seconds. At a notice it drains the node: Ray schedules
nothing new on it, and trainings write a checkpoint and continue elsewhere. It exits after passing on the notice.
"""

import argparse
import calendar
import json
import logging
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("spot_watch")

_METADATA = "http://169.254.169.254"
_SHORT_S = {"aws": 120, "gcp": 30, "azure": 30}
"""Seconds between notice and end, if the notice has no time."""


def ask(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> str:
    """Query the metadata service; '' if there is nothing or no answer."""
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return ""


def aws(base: str) -> float | None:
    """Return the seconds until this instance is preempted; None without a notice."""
    token = ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    text = ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if not text:
        return None
    ends = calendar.timegm(time.strptime(json.loads(text)["time"], "%Y-%m-%dT%H:%M:%SZ"))
    return ends - time.time()


def gcp(base: str) -> float | None:
    """Return the seconds until this instance is preempted; None without a notice."""
    text = ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return _SHORT_S["gcp"] if text.strip() == "TRUE" else None


def azure(base: str) -> float | None:
    """Return the seconds until this machine is preempted; None without a notice."""
    text = ask(f"{base}/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
    name = ask(f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text", {"Metadata": "true"})
    events = json.loads(text)["Events"] if text else []
    ours = [event for event in events if event["EventType"] == "Preempt" and name in event["Resources"]]
    return _SHORT_S["azure"] if ours else None


CLOUDS: dict[str, Callable[[str], float | None]] = {"aws": aws, "gcp": gcp, "azure": azure}


def this_node() -> tuple[str, str]:
    """Return the address of the cluster and this node's id."""
    import ray

    ray.init(address="auto", log_to_driver=False)  # only at a notice: a driver on every node would be costly
    context = ray.get_runtime_context()
    return context.gcs_address, context.get_node_id()


def drain(address: str, node_id: str, seconds: float) -> None:
    """Report to Ray the number of seconds until a node ends."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes this node away"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(max(1, int(seconds)))], check=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cloud", choices=CLOUDS, required=True)
    parser.add_argument("--metadata", default=_METADATA, help="address of the metadata service")
    parser.add_argument("--every-s", type=float, default=5.0, help="seconds between two queries")
    parser.add_argument("--address", default="", help="address of the cluster, with --node-id; default: this machine's")
    parser.add_argument("--node-id", default="", help="id of the node that ends; default: this one")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    while (seconds := CLOUDS[given.cloud](given.metadata)) is None:
        time.sleep(given.every_s)
    logger.info("this node will be preempted in %.0f s", seconds)
    address, node_id = (given.address, given.node_id) if given.node_id else this_node()
    drain(address, node_id, seconds)
    logger.info("drained")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
