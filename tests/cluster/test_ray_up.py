"""`ray up cluster/aws.yaml` and the autoscaler it starts, against an EC2 that moto plays and machines that only log."""

import contextlib
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aws_setup
import boto3
import pytest
import yaml
from local import LocalCluster, free_port
from ray.autoscaler._private.aws import utils

RAY = Path(sys.executable).with_name("ray")
# Says of every container that it runs once it was started, and writes down what was asked of it. Set-up commands fail
# if the file {broken} exists.
STUB = """#!/bin/sh
for last; do :; done
echo "$(basename "$0") $*" >> {log}
case "$last" in
  *"import evilm"*) test ! -e {broken} || exit 1 ;;
  *"docker inspect"*State.Running*) grep -q "docker run" {log} && echo true || echo false ;;
  *"docker inspect"*) echo "{{}}" ;;
  *"command -v docker"*) echo docker ;;
  *uptime*) echo up ;;
esac
exit 0
"""


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """An account made ready by aws_setup.py, and ssh, scp and rsync that only write down what they are told."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    stubs, log = tmp_path / "bin", tmp_path / "commands.log"
    stubs.mkdir()
    log.touch()
    for name in ("ssh", "scp", "rsync"):
        stub = stubs / name
        stub.write_text(STUB.format(log=log, broken=tmp_path / "broken"))
        stub.chmod(stub.stat().st_mode | stat.S_IEXEC)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-west-2",
        "HOME": str(tmp_path),
        "PATH": f"{stubs}:{RAY.parent}:{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for cached in (utils.resource_cache, utils.client_cache):  # of another endpoint
        cached.cache_clear()
    image = boto3.client("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    path = tmp_path / "my-aws.yaml"
    given = ["--bucket", "evilm-up", "--ssh-from", "203.0.113.7/32", "--image", image, "--write", str(path)]
    assert aws_setup.main(given) == 0
    yield {"path": path, "log": log, "broken": tmp_path / "broken", "ec2": boto3.client("ec2")}
    server.stop()


def _ray(*arguments: str) -> str:
    done = subprocess.run([RAY, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def _machines(ec2: Any) -> list[dict[str, Any]]:
    """Machines that run, with type, market and Ray's tags."""
    running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    found = ec2.describe_instances(Filters=running)["Reservations"]
    return [
        {tag["Key"]: tag["Value"] for tag in node["Tags"]}
        | {"id": node["InstanceId"], "size": node["InstanceType"], "market": node.get("InstanceLifecycle", "on-demand")}
        for entry in found
        for node in entry["Instances"]
    ]


@pytest.mark.long
def test_ray_up_starts_a_protected_head_and_ray_down_stops_it(cloud: dict[str, Any]) -> None:
    _ray("up", "-y", "--no-config-cache", str(cloud["path"]))
    (head,) = _machines(cloud["ec2"])
    assert (head["size"], head["market"], head["ray-node-status"]) == ("m5.2xlarge", "on-demand", "up-to-date")
    told = cloud["log"].read_text()
    (run,) = [line for line in told.splitlines() if "docker run" in line]
    assert "evilm:0.1.0" in run
    assert "NVIDIA_VISIBLE_DEVICES=all" in run
    assert "RAY_AUTH_MODE=token" in run
    assert "--ulimit nofile=65536:65536" in run
    (start,) = [line for line in told.splitlines() if "ray start --head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert ".ray/auth_token" in told
    assert any("import evilm, ray" in line for line in told.splitlines())
    _ray("exec", "--no-config-cache", str(cloud["path"]), "ray status")
    assert "ray status" in cloud["log"].read_text()
    _ray("down", "-y", str(cloud["path"]))
    assert _machines(cloud["ec2"]) == []


# On a busy machine a head that answers may not know its own node yet.
DRIVER = """
import ray, time
while not ray.is_initialized():
    try:
        ray.init(log_to_driver=False)
    except (RuntimeError, ConnectionError):
        time.sleep(1)
f = ray.remote(lambda: 0)
ray.get({work})
"""


@contextlib.contextmanager
def _autoscaled(cloud: dict[str, Any], work: str) -> Iterator[LocalCluster]:
    """A head on this machine whose autoscaler starts machines of the simulated EC2, and a driver that asks for them."""
    from ray.autoscaler._private.util import prepare_config

    from evilm.cloud import SpotFirst

    config = prepare_config(yaml.safe_load(cloud["path"].read_text()) | {"file_mounts": {}})
    config = SpotFirst.bootstrap_config(SpotFirst.fillout_available_node_types_resources(config))
    provider = SpotFirst(config["provider"], "evilm")
    tags = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-node-name": "ray-evilm-head"}
    tags |= {"ray-node-status": "up-to-date", "ray-launch-config": "x"}
    (head,) = provider.create_node(config["available_node_types"]["head"]["node_config"], tags, 1)
    environment = {"RAY_CLOUD_INSTANCE_ID": head, "RAY_NODE_TYPE_NAME": "head", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": ""}
    cluster = LocalCluster({}, port=free_port(), environment=environment, config=config)
    driver = None
    try:
        cluster.wait()
        # In a process of its own: the session's cluster may live in this one.
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(work=work)], env={**os.environ, "RAY_ADDRESS": cluster.address}
        )
        yield cluster
    finally:
        if driver:
            driver.kill()
            driver.wait()
        cluster.stop()


@pytest.mark.long
def test_autoscaler_starts_the_machines_the_work_needs(cloud: dict[str, Any]) -> None:
    import ray

    work = "[f.options(num_cpus=1, num_gpus=1).remote(), *[f.options(num_cpus=4).remote() for _ in range(8)]]"
    with _autoscaled(cloud, work) as cluster:
        deadline = time.monotonic() + 240
        while len(_machines(cloud["ec2"])) < 4 and time.monotonic() < deadline:
            time.sleep(1)
        time.sleep(3)  # it must be these, and no more
        made = sorted((m["ray-user-node-type"], m["size"], m["market"]) for m in _machines(cloud["ec2"]))
        assert made == [
            ("cpu", "c6i.4xlarge", "on-demand"),
            ("cpu", "c6i.4xlarge", "on-demand"),
            ("gpu", "g5.2xlarge", "spot"),
            ("head", "m5.2xlarge", "on-demand"),
        ], cluster.log("monitor*")[-3000:]
        assert ray.__version__ in cluster.log("monitor.log")


@pytest.mark.long
def test_machines_whose_set_up_fails_are_ended_and_not_replaced_for_ever(cloud: dict[str, Any]) -> None:
    cloud["broken"].touch()
    refused = re.compile(r"the set-up of \d nodes of type cpu failed; fix it and run `ray up` again")
    with _autoscaled(cloud, "[f.options(num_cpus=16).remote() for _ in range(3)]") as cluster:
        deadline = time.monotonic() + 900
        while not refused.search(cluster.log("monitor*")) and time.monotonic() < deadline:
            time.sleep(1)
        assert refused.search(cluster.log("monitor*")), cluster.log("monitor*")[-3000:]
        while len(_machines(cloud["ec2"])) > 1 and time.monotonic() < deadline:
            time.sleep(1)  # machines are ended after they are marked as failed, one by one
        assert [machine["ray-user-node-type"] for machine in _machines(cloud["ec2"])] == ["head"]
        every = [node for entry in cloud["ec2"].describe_instances()["Reservations"] for node in entry["Instances"]]
        assert 4 <= len(every) <= 6  # the head, three attempts, and those begun before the third had failed
