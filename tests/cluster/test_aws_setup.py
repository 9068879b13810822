"""aws_setup.py in an account that moto plays: what it creates, keeps, rejects and removes."""

import json
import sys
from pathlib import Path
from typing import Any

import aws_quotas
import aws_setup
import boto3
import pytest
import yaml
from aws_account import Cluster, read_policy, ssh_networks

BUCKET, REGION = "evilm-test", "us-west-2"
FROM = ["--ssh-from", "203.0.113.7/32", "--image", "ami-12345678"]


def _state(names: list[str], bucket: str) -> dict[str, Any]:
    """All that an account holds under these names of roles and groups, and of a bucket."""
    iam, ec2, s3 = boto3.client("iam"), boto3.client("ec2"), boto3.client("s3")
    found: dict[str, Any] = {}
    for role in [name for name in names if not name.endswith("-ray")]:
        found[role] = {
            "role": iam.get_role(RoleName=role)["Role"],
            "tags": iam.list_role_tags(RoleName=role)["Tags"],
            "policies": {
                policy: iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
                for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
            },
            "profile": iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"],
        }
    groups = [{"Name": "group-name", "Values": [name for name in names if name.endswith("-ray")]}]
    found["groups"] = ec2.describe_security_groups(Filters=groups)["SecurityGroups"]
    found["bucket"] = _bucket(s3, bucket)
    for kept in found.values():
        if isinstance(kept, dict):
            kept.pop("ResponseMetadata", None)
    return found


def _bucket(s3: Any, bucket: str) -> dict[str, Any]:
    """Settings of a bucket, as errors where it has none."""
    settings = {}
    for name in ("tagging", "lifecycle_configuration", "encryption", "policy"):
        try:
            settings[name] = getattr(s3, f"get_bucket_{name}")(Bucket=bucket)
        except s3.exceptions.ClientError as error:
            settings[name] = error.response["Error"]["Code"]
    try:
        settings["public"] = s3.get_public_access_block(Bucket=bucket)
    except s3.exceptions.ClientError as error:
        settings["public"] = error.response["Error"]["Code"]
    for answer in settings.values():
        if isinstance(answer, dict):
            answer.pop("ResponseMetadata")
    return settings


def _names(cluster: str) -> list[str]:
    return [f"{cluster}-head", f"{cluster}-worker", f"{cluster}-ray"]


def test_setup_creates_what_the_file_names_and_can_be_repeated(account: Path) -> None:
    assert aws_setup.main(["--bucket", BUCKET, "--ssh-from", "198.51.100.0/24", "--image", "ami-12345678"]) == 0
    types = yaml.safe_load(account.read_text())["available_node_types"]
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    ids = types["head"]["node_config"]["SecurityGroupIds"]
    (group,) = ec2.describe_security_groups(GroupIds=ids)["SecurityGroups"]
    opened = [entry["CidrIp"] for rule in group["IpPermissions"] for entry in rule["IpRanges"]]
    assert opened == ["198.51.100.0/24"]  # the second run's, and nothing for the whole world
    for settings in types.values():
        profile = settings["node_config"]["IamInstanceProfile"]["Name"]
        (role,) = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        assert role["RoleName"] == profile
    (gateway,) = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    assert gateway["ServiceName"] == f"com.amazonaws.{REGION}.s3"


def test_a_second_cluster_leaves_the_first_as_it_is(account: Path, tmp_path: Path) -> None:
    before = _state(_names("evilm"), BUCKET)
    written = tmp_path / "second.yaml"
    second = ["--cluster-name", "second", "--ssh-from", "198.51.100.0/24", "--image", "ami-12345678"]
    assert aws_setup.main([*second, "--bucket", "evilm-second", "--write", str(written)]) == 0
    assert _state(_names("evilm"), BUCKET) == before
    assert aws_setup.main([*second, "--bucket", BUCKET, "--change-bucket"]) == 0  # both on one bucket
    assert _state(_names("evilm"), BUCKET) == before
    types = yaml.safe_load(written.read_text())["available_node_types"]
    profiles = {settings["node_config"]["IamInstanceProfile"]["Name"] for settings in types.values()}
    assert profiles == {"second-head", "second-worker"}
    policy = json.dumps(boto3.client("iam").get_role_policy(RoleName="second-head", PolicyName="evilm"), default=str)
    assert "role/second-worker" in policy
    assert '"aws:ResourceTag/ray-cluster-name": "second"' in policy
    assert "evilm-worker" not in policy


def test_removing_the_second_cluster_leaves_the_first(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _state(_names("evilm"), BUCKET)
    assert aws_setup.main(["--cluster-name", "second", "--bucket", BUCKET, *FROM]) == 0
    assert aws_setup.main(["--cluster-name", "second", "--remove"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["removed"][:2] == ["second-head", "second-worker"]
    assert _state(_names("evilm"), BUCKET) == before
    iam = boto3.client("iam")
    assert not [role for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("second")]
    assert not [p for p in iam.list_instance_profiles()["InstanceProfiles"] if "second" in p["InstanceProfileName"]]
    assert aws_setup.main(["--cluster-name", "second", "--remove"]) == 0  # nothing is left to remove
    assert aws_setup.main(["--cluster-name", "second", "--bucket", BUCKET, *FROM]) == 0  # it can be made again


def test_file_of_a_second_cluster_can_be_made_from_that_of_the_first(account: Path, tmp_path: Path) -> None:
    written = tmp_path / "second.yaml"
    given = ["--config", str(account), "--cluster-name", "second", "--bucket", "evilm-second", "--write", str(written)]
    assert aws_setup.main([*given, "--ssh-from", "203.0.113.7/32", "--image", "ami-87654321"]) == 0
    first, second = account.read_text(), written.read_text()
    assert f"--root s3://{BUCKET}/run" in first
    assert "--root s3://evilm-second/run" in second
    assert BUCKET not in second
    assert len(second.splitlines()) == len(first.splitlines())  # with its comments
    wanted = [{"Name": "group-name", "Values": ["second-ray"]}]
    (group,) = boto3.client("ec2").describe_security_groups(Filters=wanted)["SecurityGroups"]
    config = yaml.safe_load(second)
    assert config["cluster_name"] == "second"
    for name, settings in config["available_node_types"].items():
        node = settings["node_config"]
        assert (node["SecurityGroupIds"], node["ImageId"]) == ([group["GroupId"]], "ami-87654321")
        assert node["IamInstanceProfile"]["Name"] == ("second-head" if name == "head" else "second-worker")


def test_nodes_that_are_shutting_down_are_still_there(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from moto.ec2 import ec2_backends

    before = _state(_names("evilm"), BUCKET)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": "evilm"}]}]
    started = boto3.client("ec2").run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1, TagSpecifications=tags)
    name = started["Instances"][0]["InstanceId"]
    account_id = boto3.client("sts").get_caller_identity()["Account"]
    state = ec2_backends[account_id][REGION].get_instance(name)._state
    state.name, state.code = "shutting-down", 32  # moto's nodes are terminated at once
    assert aws_setup.main(["--config", str(account), "--remove"]) == 1
    said = capsys.readouterr().err
    assert f"({name} shutting-down): run `ray down` first, and wait a minute" in said
    assert _state(_names("evilm"), BUCKET) == before
    state.name, state.code = "terminated", 48
    assert aws_setup.main(["--config", str(account), "--remove"]) == 0


def test_missing_boto3_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert aws_setup.main(["--bucket", BUCKET, *FROM]) == 1
    assert capsys.readouterr().err == "error: boto3 is not installed: pip install boto3\n"


def test_cluster_with_nodes_is_not_removed(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _state(_names("evilm"), BUCKET)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": "evilm"}]}]
    boto3.client("ec2").run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1, TagSpecifications=tags)
    assert aws_setup.main(["--config", str(account), "--remove"]) == 1
    assert "run `ray down` first" in capsys.readouterr().err
    assert _state(_names("evilm"), BUCKET) == before


def test_resources_of_others_are_neither_changed_nor_removed(
    empty_account: None, capsys: pytest.CaptureFixture[str]
) -> None:
    iam, ec2 = boto3.client("iam"), boto3.client("ec2")
    iam.create_role(RoleName="evilm-worker", AssumeRolePolicyDocument=read_policy("trust", {}))
    for flags in (["--bucket", BUCKET, *FROM], ["--remove"]):
        assert aws_setup.main(flags) == 1
        assert "role evilm-worker exists, but without the tag evilm-cluster=us-west-2/evilm" in capsys.readouterr().err
    assert [role["RoleName"] for role in iam.list_roles()["Roles"]] == ["evilm-worker"]
    assert boto3.client("s3").list_buckets()["Buckets"] == []
    iam.delete_role(RoleName="evilm-worker")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    ec2.create_security_group(GroupName="evilm-ray", Description="of others", VpcId=vpc)
    assert aws_setup.main(["--bucket", BUCKET, *FROM]) == 1
    assert "security group evilm-ray exists" in capsys.readouterr().err
    assert iam.list_roles()["Roles"] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--bucket", "evilm-other"], f"cluster evilm exists and uses bucket {BUCKET}: use another --cluster-name"),
        (["--bucket", BUCKET, "--region", "eu-west-1"], "without the tag evilm-cluster=eu-west-1/evilm"),
    ],
    ids=["another bucket", "another region"],
)
def test_second_user_of_the_same_name_changes_nothing(
    account: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _state(_names("evilm"), BUCKET)
    assert aws_setup.main([*flags, *FROM]) == 1
    assert said in capsys.readouterr().err
    assert _state(_names("evilm"), BUCKET) == before


def test_cluster_can_be_given_another_bucket(account: Path) -> None:
    for _ in range(2):  # the second time, it is the cluster's own
        assert aws_setup.main(["--bucket", "evilm-other", *FROM, "--change-bucket"]) == 0
    assert aws_setup.main(["--bucket", "evilm-other", *FROM]) == 0
    policy = boto3.client("iam").get_role_policy(RoleName="evilm-worker", PolicyName="evilm")["PolicyDocument"]
    assert "arn:aws:s3:::evilm-other" in json.dumps(policy)


def test_networks_of_two_users_may_both_use_ssh(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["--ssh-from", "203.0.113.7/32", "198.51.100.9/32"]
    assert aws_setup.main(["--bucket", BUCKET, *FROM, *both]) == 0
    groups = [{"Name": "group-name", "Values": ["evilm-ray"]}]
    (group,) = boto3.client("ec2").describe_security_groups(Filters=groups)["SecurityGroups"]
    assert ssh_networks(group) == {"203.0.113.7/32", "198.51.100.9/32"}
    assert "ends" not in capsys.readouterr().err
    assert aws_setup.main(["--bucket", BUCKET, *FROM]) == 0
    assert "SSH access from 198.51.100.9/32 ends" in capsys.readouterr().err


def test_existing_bucket_stays_as_it_is_unless_asked(empty_account: None, capsys: pytest.CaptureFixture[str]) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_tagging(Bucket=BUCKET, Tagging={"TagSet": [{"Key": "owner", "Value": "me"}]})
    own = {"ID": "mine", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 1}}
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [own]})
    before = _bucket(s3, BUCKET)
    assert aws_setup.main(["--bucket", BUCKET, *FROM]) == 0
    assert _bucket(s3, BUCKET) == before
    assert f"bucket {BUCKET} exists and stays as it is" in capsys.readouterr().err
    assert aws_setup.main(["--bucket", BUCKET, *FROM, "--update-bucket"]) == 0
    after = _bucket(s3, BUCKET)
    assert after["tagging"] == before["tagging"]
    assert {rule["ID"] for rule in after["lifecycle_configuration"]["Rules"]} == {"mine", "evilm-stale-uploads"}
    assert all(after["public"]["PublicAccessBlockConfiguration"].values())
    assert aws_setup.main(["--bucket", BUCKET, *FROM, "--update-bucket"]) == 0
    assert _bucket(s3, BUCKET) == after


def test_new_bucket_is_private_encrypted_and_drops_stale_uploads(account: Path) -> None:
    settings = _bucket(boto3.client("s3"), BUCKET)
    assert all(settings["public"]["PublicAccessBlockConfiguration"].values())
    (rule,) = settings["lifecycle_configuration"]["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert rule["Status"] == "Enabled"
    assert "Expiration" not in rule
    (encryption,) = settings["encryption"]["ServerSideEncryptionConfiguration"]["Rules"]
    assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert settings["tagging"]["TagSet"] == [{"Key": "evilm-cluster", "Value": "us-west-2/evilm"}]


def test_cluster_name_and_region_reach_file_and_policies(account: Path) -> None:
    written = account.with_name("mine.yaml")
    given = ["--bucket", BUCKET, *FROM, "--write", str(written), "--cluster-name", "mine"]
    assert aws_setup.main(given) == 0
    config = yaml.safe_load(written.read_text())
    assert config["cluster_name"] == "mine"
    number = boto3.client("sts").get_caller_identity()["Account"]
    assert config["docker"]["image"] == f"{number}.dkr.ecr.{REGION}.amazonaws.com/evilm:0.1.0"
    assert f"{number}.dkr.ecr.{REGION}." in config["initialization_commands"][0]
    text = (aws_setup.HERE / "aws.yaml").read_text()
    elsewhere = yaml.safe_load(aws_setup.fill_in(text, {REGION: "eu-west-1"}, Cluster("mine", "eu-west-1"), "b1"))
    assert elsewhere["provider"]["availability_zone"].startswith("eu-west-1a,")
    policy = boto3.client("iam").get_role_policy(RoleName="mine-head", PolicyName="evilm")["PolicyDocument"]
    named = {s["Condition"]["StringEquals"].get("aws:RequestTag/ray-cluster-name") for s in policy["Statement"][:1]}
    assert named == {"mine"}


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--ssh-from", "0.0.0.0/0", "the whole internet"),
        ("--ssh-from", "2001:db8::/32", "is IPv6"),
        ("--ssh-from", "::/0", "is IPv6"),
        ("--ssh-from", "203.0.113.7/24", "has host bits set"),
        ("--ssh-from", "home", "does not appear to be an IPv4"),
        ("--cluster-name", "My_Cluster", "is not a name"),
        ("--cluster-name", "a" * 41, "is not a name"),
        ("--cluster-name", "sg-1", "is not a name"),
        ("--cluster-name", "x", "is not a name"),
        ("--bucket", "My-Bucket", "is not a bucket"),
        ("--bucket", "ab", "is not a bucket"),
        ("--bucket", "a..b", "is not a bucket"),
        ("--bucket", "192.168.1.1", "is not a bucket"),
        ("--bucket", "bucket-", "is not a bucket"),
        ("--bucket", "s3://my-bucket", "is not a bucket"),
        ("--region", "us-west-2a", "is not a region"),
        ("--config", "nowhere.yaml", "is not a cluster file"),
        ("--write", "nowhere/my-aws.yaml", "can't be written: name a file in an existing folder"),
    ],
)
def test_wrong_flag_is_rejected_before_amazon_is_asked(
    flag: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # a request would end with 1, not with 2
    with pytest.raises(SystemExit) as stop:
        aws_setup.main(["--bucket", BUCKET, *FROM, flag, value])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert flag in line
    assert said in line


def test_policies_allow_the_machine_types_of_the_file(empty_account: None, tmp_path: Path) -> None:
    text = (aws_setup.HERE / "aws.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("c6i.4xlarge", "m7i.4xlarge").replace("m5.2xlarge", "m6i.xlarge"))
    assert aws_setup.main(["--config", str(other), "--bucket", BUCKET, *FROM]) == 0
    policy = boto3.client("iam").get_role_policy(RoleName="evilm-head", PolicyName="evilm")["PolicyDocument"]
    # Without gpu8, of which the file starts none.
    allowed = policy["Statement"][0]["Condition"]["StringEquals"]["ec2:InstanceType"]
    assert allowed == ["g5.2xlarge", "m7i.4xlarge"]


def test_quotas_are_compared_with_what_the_file_can_start(
    empty_account: None, capsys: pytest.CaptureFixture[str]
) -> None:
    granted = {"L-1216C47A": 256.0, "L-DB2E81BA": 8.0, "L-3819A6DF": 32.0}

    def answer(params: dict[str, Any], **_: Any) -> Any:
        class Response:
            status_code = 200

        code = json.loads(params["body"])["QuotaCode"]
        return Response(), {"Quota": {"QuotaCode": code, "Value": granted[code]}, "ResponseMetadata": {}}

    boto3.setup_default_session()
    config = yaml.safe_load((aws_setup.HERE / "aws.yaml").read_text())
    quotas = boto3.client("service-quotas")
    quotas.meta.events.register("before-call.service-quotas.GetServiceQuota", answer)
    lines = aws_quotas.check(boto3.client("ec2"), quotas, config)
    # 8 of the head and 8 x 16; 4 x 8 as spot, and as on-demand without spot.
    assert {line["code"]: (line["needed"], line["enough"]) for line in lines} == {
        "L-1216C47A": (136, True),
        "L-DB2E81BA": (32, False),
        "L-3819A6DF": (32, True),
    }
    said = [aws_quotas.describe(line) for line in lines]
    assert sum("TOO LITTLE: request L-DB2E81BA" in line for line in said) == 1
    assert aws_setup.main(["--bucket", BUCKET, *FROM]) == 0  # moto knows no quotas of EC2: they are unknown
    assert "quota G and VT spot: 32 vCPUs are needed; cannot read what is granted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "spot", "code"),
    [
        ("p4d.24xlarge", False, "L-417A185B"),
        ("p4d.24xlarge", True, "L-7212CCBC"),
        ("p5.48xlarge", True, "L-C4BD4855"),
        ("g6.48xlarge", True, "L-3819A6DF"),
        ("c6i.4xlarge", True, "L-34B43A08"),
    ],
)
def test_each_machine_family_counts_to_its_quota(size: str, spot: bool, code: str) -> None:
    node = {"InstanceType": size} | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})
    types = {"head": {"node_config": {"InstanceType": "t3.large"}}, "one": {"max_workers": 5, "node_config": node}}
    config = {"head_node_type": "head", "max_workers": 2, "available_node_types": types}
    needed = {
        aws_quotas._QUOTAS[key][0]: vcpus for key, vcpus in aws_quotas.needed(config, {size: 10, "t3.large": 2}).items()
    }
    assert needed[code] == 20 + (2 if code == "L-1216C47A" else 0)  # two nodes, the cluster's limit
