"""cluster/aws.yaml and its policies through Ray's real provider, against an EC2, IAM and S3 that moto plays."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import aws_setup
import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException

from evilm.cloud import SpotFirst

BUCKET = "evilm-test"
NAMES: dict[str, Any] = {"BUCKET": BUCKET, "REGION": "us-west-2", "ACCOUNT": "123456789012", "CLUSTER": "evilm"}
NAMES |= {"HEAD_TYPE": ["m5.2xlarge"], "WORKER_TYPES": ["c6i.4xlarge", "g5.2xlarge"]}
WORKERS = ("cpu", "gpu")


def _ready_config(path: Path) -> dict[str, Any]:
    """The file as the head will have it: filled in, checked, with keys, networks and firewall found."""
    config = prepare_config(yaml.safe_load(path.read_text()) | {"file_mounts": {}})
    validate_config(config)
    return config


def _bootstrap(config: dict[str, Any]) -> dict[str, Any]:
    return SpotFirst.bootstrap_config(SpotFirst.fillout_available_node_types_resources(copy.deepcopy(config)))


def _tags(kind: str, name: str) -> dict[str, str]:
    own = {"ray-node-type": kind, "ray-user-node-type": name, "ray-node-name": f"ray-{name}"}
    return own | {"ray-node-status": "uninitialized", "ray-launch-config": "x"}


def _keys(policy: str) -> dict[str, str]:
    """Keys of somebody who may do what a policy says. moto knows no resources and conditions: actions alone count."""
    document = json.loads(aws_setup.read_policy(policy, NAMES))
    for statement in document["Statement"]:
        statement["Resource"] = "*"
        statement.pop("Condition", None)
    iam = boto3.client("iam")
    iam.create_user(UserName=policy)
    iam.put_user_policy(UserName=policy, PolicyName="evilm", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=policy)["AccessKey"]
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


def test_policies_are_sufficient_and_minimal_for_rays_provider(account: Path) -> None:
    from moto.core import set_initial_no_auth_action_count

    launcher, head, worker = _keys("launcher"), _keys("head"), _keys("worker")

    def started(keys: dict[str, str], config: dict[str, Any], kind: str, names: tuple[str, ...]) -> SpotFirst:
        provider = SpotFirst(config["provider"] | {"aws_credentials": keys}, "evilm")
        for name in names:
            node_config = config["available_node_types"][name]["node_config"]
            provider.create_node_with_resources_and_labels(node_config, _tags(kind, name), 1, {}, {})
        return provider

    @set_initial_no_auth_action_count(0)
    def with_rights_checked() -> None:
        config = _ready_config(account)
        config["provider"]["aws_credentials"] = launcher
        config = _bootstrap(config)
        gpu = config["available_node_types"]["gpu"]["resources"]
        assert (gpu["CPU"], gpu["GPU"], gpu["accelerator_type:A10G"]) == (8, 1, 1)
        started(launcher, config, "head", ("head",))
        provider = started(head, config, "worker", WORKERS)
        nodes = {provider.node_tags(node)["ray-user-node-type"]: node for node in provider.non_terminated_nodes({})}
        assert set(nodes) == {"head", *WORKERS}
        provider.terminate_nodes([nodes[name] for name in WORKERS])
        assert provider.non_terminated_nodes({}) == [nodes["head"]]
        s3 = boto3.client("s3", **worker)
        s3.put_object(Bucket=BUCKET, Key="a", Body=b"x")
        assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["a"]
        s3.delete_object(Bucket=BUCKET, Key="a")
        for forbidden in (
            s3.list_buckets,
            boto3.client("ec2", **worker).describe_instances,
            boto3.client("iam", **head).list_roles,
            boto3.client("ec2", **launcher).describe_volumes,
        ):
            with pytest.raises(ClientError, match=r"not authorized|Access Denied"):
                forbidden()

    with_rights_checked()


SCARCE, ELSEWHERE = "InsufficientInstanceCapacity", "Unsupported"


def _refuse_spot(codes: list[str]) -> list[str]:
    """Let EC2 refuse spot with one code per zone, in the order of trying; gives the markets of all requests."""
    asked: list[str] = []
    zones: list[str] = []

    class Refused:
        status_code = 400

    def answer(params: dict[str, Any], **_: Any) -> Any:
        spot = "InstanceMarketOptions.MarketType" in params["body"]
        asked.append("spot" if spot else "on-demand")
        if not spot:
            return None  # moto answers
        zone = params["body"]["SubnetId"]
        if zone not in zones:
            zones.append(zone)
        code = codes[zones.index(zone) % len(codes)]
        return Refused(), {"Error": {"Code": code, "Message": "refused"}, "ResponseMetadata": {"HTTPStatusCode": 400}}

    utils.resource_cache.cache_clear()
    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register("before-call.ec2.RunInstances", answer)
    return asked


def _start_gpus(config: dict[str, Any]) -> set[str]:
    """Start two GPU nodes; gives their markets."""
    provider = SpotFirst(config["provider"], "evilm")
    node = config["available_node_types"]["gpu"]["node_config"]
    made = provider.create_node_with_resources_and_labels(node, _tags("worker", "gpu"), 2, {}, {})
    found = boto3.client("ec2").describe_instances(InstanceIds=list(made or {}))["Reservations"]
    return {node.get("InstanceLifecycle", "on-demand") for entry in found for node in entry["Instances"]}


@pytest.mark.long
def test_gpu_nodes_fall_back_to_on_demand_if_any_zone_lacks_spot(account: Path, cached_types: None) -> None:
    config = _bootstrap(_ready_config(account))
    assert _start_gpus(config) == {"spot"}
    one_zone = [[SCARCE if lacks == zone else ELSEWHERE for zone in range(3)] for lacks in range(3)]
    for codes in ([SCARCE] * 3, *one_zone):
        asked = _refuse_spot(codes)
        assert _start_gpus(config) == {"on-demand"}, codes
        assert asked.count("spot") >= 3, f"{codes}: every zone was to be tried for spot"
        assert asked.count("on-demand") == 1, codes


def test_other_errors_of_spot_are_not_paid_for_with_on_demand(account: Path, cached_types: None) -> None:
    config = _bootstrap(_ready_config(account))
    asked = _refuse_spot(["InvalidParameterValue", ELSEWHERE, ELSEWHERE])
    with pytest.raises(NodeLaunchException):
        _start_gpus(config)
    assert "on-demand" not in asked


def _forget_terminated_nodes() -> None:
    """Empty EC2's list of terminated nodes, as Amazon does after an hour."""
    from moto.ec2 import ec2_backends

    for backends in ec2_backends.values():
        for reservation in backends["us-west-2"].reservations.values():
            reservation.instances = [node for node in reservation.instances if node.state != "terminated"]
    listed = boto3.client("ec2").describe_instances()["Reservations"]
    assert "terminated" not in {node["State"]["Name"] for entry in listed for node in entry["Instances"]}


def test_nodes_are_not_started_for_ever_if_their_set_up_fails(account: Path, cached_types: None) -> None:
    config = _bootstrap(_ready_config(account))
    cpu = config["available_node_types"]["cpu"]["node_config"]
    provider = SpotFirst(config["provider"], "evilm")

    def start(provider: SpotFirst, name: str = "cpu") -> list[str]:
        return list(provider.create_node_with_resources_and_labels(cpu, _tags("worker", name), 1, {}, {}) or {})

    for _ in range(3):
        (node,) = start(provider)
        assert node in provider.non_terminated_nodes({})
        provider.set_node_tags(node, {"ray-node-status": "update-failed"})  # as Ray's updater does
        provider.terminate_node(node)
    with pytest.raises(NodeLaunchException, match=r"the set-up of 3 nodes of type cpu failed; fix it and run `ray up`"):
        start(provider)
    _forget_terminated_nodes()
    with pytest.raises(NodeLaunchException, match="the set-up of 3 nodes of type cpu failed"):
        start(provider)
    assert start(provider, "gpu")  # another type may work
    time.sleep(1.1)  # EC2's times are in seconds
    assert start(SpotFirst(config["provider"], "evilm"))  # after the next `ray up`


def test_a_node_with_eight_gpus_is_started_once_it_is_allowed(
    account: Path, cached_types: None, tmp_path: Path
) -> None:
    allowed = tmp_path / "eight.yaml"
    allowed.write_text(account.read_text().replace("    max_workers: 0\n", "    max_workers: 1\n"))
    given = ["--config", str(allowed), "--bucket", BUCKET, "--ssh-from", "203.0.113.7/32", "--image", "ami-12345678"]
    assert aws_setup.main(given) == 0
    policy = boto3.client("iam").get_role_policy(RoleName="evilm-head", PolicyName="evilm")["PolicyDocument"]
    assert "g5.48xlarge" in policy["Statement"][0]["Condition"]["StringEquals"]["ec2:InstanceType"]
    config = _bootstrap(_ready_config(allowed))
    assert config["available_node_types"]["gpu8"]["resources"]["GPU"] == 8
    provider = SpotFirst(config["provider"], "evilm")
    node = config["available_node_types"]["gpu8"]["node_config"]
    (made,) = provider.create_node_with_resources_and_labels(node, _tags("worker", "gpu8"), 1, {}, {}) or {}
    (started,) = boto3.client("ec2").describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"]
    assert (started["InstanceType"], started["InstanceLifecycle"]) == ("g5.48xlarge", "spot")
