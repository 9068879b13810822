"""Tell Ray when the cloud is about to take this node away, so that a training saves itself in time.

    python cluster/spot_watch.py --cloud aws

Runs on every worker node beside Ray, which does not look for such notices by itself; on Kubernetes an eviction does
the same. It asks the machine's metadata service every few seconds. At a notice it drains the node: Ray places nothing
new on it, and trainings write a checkpoint and go on elsewhere. Ends when the notice was passed on.
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
"""How long the clouds leave between notice and end, where the notice names no time."""


def ask(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> str:
    """The answer of the metadata service; '' where it says that there is nothing, or does not answer."""
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return ""


def aws(base: str) -> float | None:
    """Seconds until this instance is taken away; None where it is not."""
    token = ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    text = ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if not text:
        return None
    ends = calendar.timegm(time.strptime(json.loads(text)["time"], "%Y-%m-%dT%H:%M:%SZ"))
    return ends - time.time()


def gcp(base: str) -> float | None:
    """Seconds until this instance is taken away; None where it is not."""
    text = ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return _SHORT_S["gcp"] if text.strip() == "TRUE" else None


def azure(base: str) -> float | None:
    """Seconds until this machine is taken away; None where it is not."""
    text = ask(f"{base}/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
    name = ask(f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text", {"Metadata": "true"})
    events = json.loads(text)["Events"] if text else []
    ours = [event for event in events if event["EventType"] == "Preempt" and name in event["Resources"]]
    return _SHORT_S["azure"] if ours else None


CLOUDS: dict[str, Callable[[str], float | None]] = {"aws": aws, "gcp": gcp, "azure": azure}


def this_node() -> tuple[str, str]:
    """The address of the cluster, and this node's id."""
    import ray

    ray.init(address="auto", log_to_driver=False)  # only at a notice: a driver on every node would be a burden
    context = ray.get_runtime_context()
    return context.gcs_address, context.get_node_id()


def drain(address: str, node_id: str, seconds: float) -> None:
    """Tell Ray that a node goes in so many seconds."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes this node away"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(max(1, int(seconds)))], check=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cloud", choices=CLOUDS, required=True)
    parser.add_argument("--metadata", default=_METADATA, help="address of the metadata service")
    parser.add_argument("--every-s", type=float, default=5.0, help="seconds between two questions")
    parser.add_argument(
        "--address", default="", help="of the cluster, with --node-id; default: the one of this machine"
    )
    parser.add_argument("--node-id", default="", help="of the node that goes; default: this one")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    while (seconds := CLOUDS[given.cloud](given.metadata)) is None:
        time.sleep(given.every_s)
    logger.info("this node is taken away in %.0f s", seconds)
    address, node_id = (given.address, given.node_id) if given.node_id else this_node()
    drain(address, node_id, seconds)
    logger.info("drained")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
