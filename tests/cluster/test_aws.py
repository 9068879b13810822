"""cluster/aws.yaml and its policies through Ray's real provider, against an EC2, IAM and S3 that moto plays."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aws_setup
import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.util import prepare_config, validate_config

from evilm.cloud import SpotFirst

REGION, BUCKET = "us-west-2", "evilm-test"
NAMES = {"BUCKET": BUCKET, "REGION": REGION, "ACCOUNT": "123456789012", "CLUSTER": "evilm"}
WORKERS = ("cpu", "gpu")


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An account in which aws_setup.py has run; the file that it wrote. Ray's cached clients are forgotten."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(tmp_path),  # Ray puts the key pair there
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()
    with mock_aws():
        image = boto3.client("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        written = tmp_path / "my-aws.yaml"
        given = ["--bucket", BUCKET, "--ssh-from", "203.0.113.7/32", "--image", image, "--write", str(written)]
        assert aws_setup.main(given) == 0
        yield written
    boto3.DEFAULT_SESSION = None
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()


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


def test_setup_creates_what_the_file_names_and_can_be_repeated(account: Path) -> None:
    assert aws_setup.main(["--bucket", BUCKET, "--ssh-from", "198.51.100.0/24", "--image", "ami-12345678"]) == 0
    config = _ready_config(account)
    node = config["available_node_types"]["head"]["node_config"]
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    (group,) = ec2.describe_security_groups(GroupIds=node["SecurityGroupIds"])["SecurityGroups"]
    opened = [entry["CidrIp"] for rule in group["IpPermissions"] for entry in rule["IpRanges"]]
    assert opened == ["198.51.100.0/24"]  # the second run's, and nothing for the whole world
    for settings in config["available_node_types"].values():
        profile = settings["node_config"]["IamInstanceProfile"]["Name"]
        (role,) = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        assert role["RoleName"] == profile
    (gateway,) = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    assert gateway["ServiceName"] == f"com.amazonaws.{REGION}.s3"
    assert all(boto3.client("s3").get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"].values())


def test_cluster_name_and_region_reach_file_and_policies(account: Path) -> None:
    written = account.with_name("mine.yaml")
    given = ["--bucket", BUCKET, "--ssh-from", "198.51.100.0/24", "--image", "ami-12345678", "--write", str(written)]
    assert aws_setup.main([*given, "--cluster-name", "mine"]) == 0
    config = yaml.safe_load(written.read_text())
    assert config["cluster_name"] == "mine"
    number = boto3.client("sts").get_caller_identity()["Account"]
    assert config["docker"]["image"].startswith(f"{number}.dkr.ecr.{REGION}.")
    assert f"{number}.dkr.ecr.{REGION}." in config["initialization_commands"][0]
    elsewhere = yaml.safe_load(aws_setup.fill_in("sg-1", "ami-1", "eu-west-1", "b", "mine", "999999999999"))
    image = elsewhere["available_node_types"]["gpu"]["docker"]["worker_image"]
    assert image == "999999999999.dkr.ecr.eu-west-1.amazonaws.com/evilm:0.1.0-gpu"
    policy = boto3.client("iam").get_role_policy(RoleName="evilm-head", PolicyName="evilm")["PolicyDocument"]
    named = {s["Condition"]["StringEquals"].get("aws:RequestTag/ray-cluster-name") for s in policy["Statement"][:1]}
    assert named == {"mine"}


def test_setup_rejects_ssh_from_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aws_setup.main(["--bucket", BUCKET, "--ssh-from", "0.0.0.0/0", "--dry-run"])
    assert "--ssh-from" in capsys.readouterr().err


def test_policies_allow_the_instance_types_of_the_file() -> None:
    types = yaml.safe_load((aws_setup.HERE / "aws.yaml").read_text())["available_node_types"]
    sizes = {name: settings["node_config"]["InstanceType"] for name, settings in types.items()}
    allowed = {
        policy: json.loads((aws_setup.HERE / "iam" / f"{policy}.json").read_text())["Statement"][0]["Condition"]
        for policy in ("head", "launcher")
    }
    assert set(allowed["head"]["StringEquals"]["ec2:InstanceType"]) == {sizes[name] for name in WORKERS}
    assert allowed["launcher"]["StringEquals"]["ec2:InstanceType"] == sizes["head"]


def test_policies_are_sufficient_and_minimal_for_rays_provider(account: Path) -> None:
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


def test_gpu_nodes_fall_back_from_spot_to_on_demand(account: Path) -> None:
    config = _bootstrap(_ready_config(account))
    gpu = config["available_node_types"]["gpu"]["node_config"]

    def start() -> list[str]:
        provider = SpotFirst(config["provider"], "evilm")
        made = provider.create_node_with_resources_and_labels(gpu, _tags("worker", "gpu"), 2, {}, {})
        found = boto3.client("ec2").describe_instances(InstanceIds=list(made))["Reservations"]
        return [node.get("InstanceLifecycle", "on-demand") for entry in found for node in entry["Instances"]]

    assert set(start()) == {"spot"}
    asked = []

    def refuse_spot(params: dict[str, Any], **_: Any) -> None:
        spot = "InstanceMarketOptions.MarketType" in params["body"]
        asked.append(spot)
        if spot:
            answer = {"Error": {"Code": "InsufficientInstanceCapacity", "Message": "There is no Spot capacity"}}
            raise ClientError(answer, "RunInstances")

    utils.resource_cache.cache_clear()
    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register("before-call.ec2.RunInstances", refuse_spot)
    assert set(start()) == {"on-demand"}
    assert asked.count(True) >= 3  # every zone was tried for spot
    assert asked.count(False) == 1
