"""Tell Ray about a preemption notice for this node, so that a training writes a checkpoint in time.

    python cluster/spot_watch.py --cloud aws

It runs on every worker node beside Ray, which does not check for such notices itself; on Kubernetes an eviction has the
same effect. It polls the machine's metadata service every few seconds; an answer that it does not understand is logged
and is no notice. At a notice it drains the node: Ray schedules nothing new on it, and trainings write a checkpoint and
continue elsewhere. A drain that fails is tried again until the node ends. It exits with 0 after passing on the notice;
the cluster files start it again after any other end.
"""

import argparse
import calendar
import http.client
import json
import logging
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("spot_watch")

_METADATA = "http://169.254.169.254"
_SHORT_S = {"aws": 120, "gcp": 30, "azure": 30}
"""Seconds between notice and end, if the notice has no valid time."""
_ANSWER_S = 2.0
_ANSWER_BYTES = 1 << 16
_DRAIN_S = 30.0
"""Seconds that one attempt to drain may take."""
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
"""Errors of an answer that is not what the cloud documents."""

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for another machine


def ask(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> str:
    """Query the metadata service; '' if there is nothing or no complete answer in time."""
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    deadline = time.monotonic() + _ANSWER_S
    body = b""
    try:
        with _direct.open(request, timeout=_ANSWER_S) as answer:
            while part := answer.read1(4096):  # part by part: the timeout holds for each, not for all of them
                body += part
                if len(body) > _ANSWER_BYTES or time.monotonic() > deadline:
                    return ""
        return body.decode()
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: neither text nor a valid reply
        return ""


def aws(base: str) -> float | None:
    """Return the seconds until this instance is preempted; None without a notice."""
    token = ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    if not (token.isascii() and token.isprintable()):  # not a value of a header
        return None
    text = ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if not text:
        return None
    notice = json.loads(text)
    if notice["action"] not in ("terminate", "stop", "hibernate"):
        raise ValueError(f"action {notice['action']!r} is unknown")
    try:
        return calendar.timegm(time.strptime(notice["time"], "%Y-%m-%dT%H:%M:%SZ")) - time.time()
    except _UNREADABLE:
        return _SHORT_S["aws"]


def gcp(base: str) -> float | None:
    """Return the seconds until this instance is preempted; None without a notice."""
    text = ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return _SHORT_S["gcp"] if text.strip() == "TRUE" else None


def azure(base: str) -> float | None:
    """Return the seconds until this machine is preempted; None without a notice."""
    text = ask(f"{base}/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
    name = ask(f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text", {"Metadata": "true"})
    events = json.loads(text)["Events"] if text and name else []
    ours = [event for event in events if event["EventType"] == "Preempt" and name in event["Resources"]]
    return _SHORT_S["azure"] if ours else None


CLOUDS: dict[str, Callable[[str], float | None]] = {"aws": aws, "gcp": gcp, "azure": azure}


def notice(cloud: str, base: str) -> float | None:
    """Return the seconds until this node is preempted; None without a notice, or if the answer can't be read."""
    try:
        return CLOUDS[cloud](base)
    except _UNREADABLE as error:
        logger.warning("cannot read the metadata service's answer: %s %s", type(error).__name__, error)
        return None


def this_node() -> tuple[str, str]:
    """Return the address of the cluster and this node's id."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False)  # only at a notice: a driver on every node would be costly
        context = ray.get_runtime_context()
        return context.gcs_address, context.get_node_id()
    finally:
        ray.shutdown()


def drain(address: str, node_id: str, seconds: float) -> None:
    """Report to Ray the number of seconds until a node ends."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes this node away"]
    command += ["--deadline-remaining-seconds", str(max(1, int(seconds)))]
    subprocess.run(command, check=True, timeout=_DRAIN_S)


def drain_in_time(seconds: float, find: Callable[[], tuple[str, str]], pause_s: float = 1.0) -> bool:
    """Drain a node; try again after a failure, at least once and until the node ends.

    Args:
        seconds: seconds until the node ends.
        find: returns the address of the cluster and the id of the node.
        pause_s: seconds between two attempts.

    Returns:
        True if Ray accepted the drain.
    """
    ends = time.monotonic() + seconds
    while True:
        try:
            drain(*find(), ends - time.monotonic())
            return True
        except Exception as error:  # Ray raises many types while a cluster does not answer
            logger.warning("cannot drain this node: %s; trying again", error)
        if time.monotonic() > ends:
            return False
        time.sleep(pause_s)


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
    while (seconds := notice(given.cloud, given.metadata)) is None:
        time.sleep(given.every_s)
    logger.info("this node will be preempted in %.0f s", seconds)
    known = (given.address, given.node_id)
    if not drain_in_time(seconds, (lambda: known) if given.node_id else this_node):
        return 1
    logger.info("drained")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
