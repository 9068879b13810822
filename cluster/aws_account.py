"""The resources of one cluster in an AWS account: created, updated and removed by `aws_setup.py`.

Every name contains the cluster's, and everything is tagged with it. A resource of that name without the tag belongs to
somebody else and is left alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TAG, BUCKET_TAG = "evilm-cluster", "evilm-bucket"
POLICY = "evilm"
"""Name of the inline policy of each role."""
_ROLES = ("head", "worker")
_STALE_DAYS = 7
_LIFECYCLE = "evilm-stale-uploads"


class SetupError(Exception):
    """A reason why the account is left as it is, in one line."""


@dataclass(frozen=True)
class Cluster:
    """A cluster in a region; roles have no region, so another region's cluster of this name has other owners' roles."""

    name: str
    region: str

    @property
    def roles(self) -> dict[str, str]:
        """Names of the roles and instance profiles by policy."""
        return {policy: f"{self.name}-{policy}" for policy in _ROLES}

    @property
    def group(self) -> str:
        """Name of the security group."""
        return f"{self.name}-ray"

    @property
    def tag(self) -> dict[str, str]:
        """Tag of all resources."""
        return {"Key": TAG, "Value": f"{self.region}/{self.name}"}

    def check_owner(self, kind: str, name: str, tags: list[dict[str, str]]) -> None:
        """Raise `SetupError` if a resource does not have the cluster's tag."""
        if self.tag not in tags:
            raise SetupError(
                f"{kind} {name} exists, but without the tag {TAG}={self.tag['Value']}: use another --cluster-name, "
                "or add the tag if it is yours"
            )


def read_policy(name: str, names: dict[str, Any]) -> str:
    """Read a policy of iam/ and fill in account, region, bucket, cluster and machine types.

    Args:
        name: head, worker, launcher or trust.
        names: values by placeholder; a list replaces the placeholder with its quotes.
    """
    text = (HERE / "iam" / f"{name}.json").read_text()
    for placeholder, value in names.items():
        text = (
            text.replace(f'"{placeholder}"', json.dumps(value))
            if isinstance(value, list)
            else text.replace(placeholder, value)
        )
    return json.dumps(json.loads(text))


def find_role(iam: Any, role: str, cluster: Cluster) -> dict[str, str] | None:
    """Return the tags of the cluster's role; None if it does not exist.

    Raises:
        SetupError: the role belongs to somebody else.
    """
    try:
        iam.get_role(RoleName=role)
    except iam.exceptions.NoSuchEntityException:
        return None
    tags = iam.list_role_tags(RoleName=role)["Tags"]
    cluster.check_owner("role", role, tags)
    return {tag["Key"]: tag["Value"] for tag in tags}


def _profile_roles(iam: Any, profile: str) -> list[str] | None:
    """Return the roles in an instance profile; None if it does not exist."""
    try:
        found = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]
    except iam.exceptions.NoSuchEntityException:
        return None
    return [role["RoleName"] for role in found["Roles"]]


def make_roles(iam: Any, cluster: Cluster, names: dict[str, Any]) -> None:
    """Create or update the roles of head and workers, each with its policy and an instance profile of the same name."""
    tags = [cluster.tag, {"Key": BUCKET_TAG, "Value": names["BUCKET"]}]
    for policy, role in cluster.roles.items():
        if find_role(iam, role, cluster) is None:
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=read_policy("trust", {}), Tags=tags)
        iam.put_role_policy(RoleName=role, PolicyName=POLICY, PolicyDocument=read_policy(policy, names))
        iam.tag_role(RoleName=role, Tags=tags)
        held = _profile_roles(iam, role)
        if held is None:
            iam.create_instance_profile(InstanceProfileName=role, Tags=[cluster.tag])
        if role not in (held or []):
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    if not iam.list_roles(PathPrefix="/aws-service-role/spot.amazonaws.com/")["Roles"]:
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")


def find_group(ec2: Any, vpc: str, cluster: Cluster) -> dict[str, Any] | None:
    """Return the cluster's security group in a network.

    Raises:
        SetupError: the group of this name belongs to somebody else.
    """
    wanted = [{"Name": "group-name", "Values": [cluster.group]}, {"Name": "vpc-id", "Values": [vpc]}]
    found = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    if found:
        cluster.check_owner("security group", cluster.group, found[0].get("Tags", []))
    return dict(found[0]) if found else None


def ssh_networks(group: dict[str, Any] | None) -> set[str]:
    """Return the networks from which a security group allows SSH."""
    rules = group["IpPermissions"] if group else []
    return {entry["CidrIp"] for rule in rules if rule.get("FromPort") == 22 for entry in rule["IpRanges"]}


def make_firewall(ec2: Any, vpc: str, cluster: Cluster, ssh_from: list[str]) -> str:
    """Create a security group open to SSH from some networks and to all traffic among its members; return its id."""
    found = find_group(ec2, vpc, cluster)
    if found:
        group, rules = found["GroupId"], found["IpPermissions"]
    else:
        made = ec2.create_security_group(
            GroupName=cluster.group,
            Description=f"Ray cluster {cluster.name} of evilm",
            VpcId=vpc,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": [cluster.tag]}],
        )
        group, rules = made["GroupId"], []
    ranges = [{"CidrIp": network} for network in ssh_from]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": ranges}
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    if rules:  # --ssh-from may have changed
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rules)
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, inside])
    return str(group)


def bucket_exists(s3: Any, bucket: str) -> bool:
    """Check if we own a bucket.

    Raises:
        SetupError: the name belongs to another account.
    """
    from botocore.exceptions import ClientError

    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
            return False
        raise SetupError(
            f"no access to bucket {bucket} ({error}); bucket names are global: use another --bucket"
        ) from None
    return True


def make_bucket(s3: Any, bucket: str, cluster: Cluster, update: bool) -> bool:
    """Create a private, encrypted bucket that drops stale uploads; return True if it was created.

    Args:
        s3: client.
        bucket: name of the bucket.
        cluster: region and tag of a new bucket.
        update: apply the settings to an existing bucket too. Its own tags and lifecycle rules are kept.
    """
    created = not bucket_exists(s3, bucket)
    if created:
        where = {"CreateBucketConfiguration": {"LocationConstraint": cluster.region}}
        s3.create_bucket(Bucket=bucket, **({} if cluster.region == "us-east-1" else where))
        s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [cluster.tag]})
    if created or update:
        _protect(s3, bucket)
    return created


def _protect(s3: Any, bucket: str) -> None:
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
    if not _setting(s3.get_bucket_encryption, bucket, "ServerSideEncryptionConfiguration"):
        rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
        s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    rules = _setting(s3.get_bucket_lifecycle_configuration, bucket, "Rules") or []
    stale = {
        "ID": _LIFECYCLE,
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _STALE_DAYS},
    }
    rules = [rule for rule in rules if rule.get("ID") != _LIFECYCLE] + [stale]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})


def _setting(get: Any, bucket: str, field: str) -> Any:
    """Return a setting of a bucket; None if the bucket has none."""
    from botocore.exceptions import ClientError

    try:
        return get(Bucket=bucket)[field]
    except ClientError as error:
        if error.response["Error"]["Code"].endswith("NotFoundError") or "NoSuch" in error.response["Error"]["Code"]:
            return None
        raise


def make_gateway(ec2: Any, vpc: str, region: str) -> str:
    """Create the gateway for access to S3 without the internet, one per network; return its id."""
    service = f"com.amazonaws.{region}.s3"
    wanted = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "service-name", "Values": [service]}]
    found = ec2.describe_vpc_endpoints(Filters=wanted)["VpcEndpoints"]
    if found:
        return str(found[0]["VpcEndpointId"])
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    made = ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName=service, VpcEndpointType="Gateway", RouteTableIds=[t["RouteTableId"] for t in tables]
    )
    return str(made["VpcEndpoint"]["VpcEndpointId"])


def remove(iam: Any, ec2: Any, vpc: str, cluster: Cluster) -> list[str]:
    """Delete the roles, instance profiles and security group of a cluster, never a bucket; return what was deleted.

    Raises:
        SetupError: nodes of the cluster still exist, or a resource belongs to somebody else.
    """
    states = ["pending", "running", "shutting-down", "stopping", "stopped"]
    wanted = {"tag:ray-cluster-name": [cluster.name], "instance-state-name": states}
    found = ec2.describe_instances(Filters=[{"Name": name, "Values": values} for name, values in wanted.items()])
    nodes = [f"{n['InstanceId']} {n['State']['Name']}" for each in found["Reservations"] for n in each["Instances"]]
    if nodes:
        raise SetupError(
            f"cluster {cluster.name} still has nodes ({', '.join(nodes)}): run `ray down` first, and wait a minute for "
            "those that are shutting down"
        )
    roles = [role for role in cluster.roles.values() if find_role(iam, role, cluster) is not None]
    group = find_group(ec2, vpc, cluster)
    if group:  # first, as it is the only one that something else may still use
        ec2.delete_security_group(GroupId=group["GroupId"])
    for role in roles:
        held = _profile_roles(iam, role)
        if held is not None:
            for each in held:
                iam.remove_role_from_instance_profile(InstanceProfileName=role, RoleName=each)
            iam.delete_instance_profile(InstanceProfileName=role)
        iam.delete_role_policy(RoleName=role, PolicyName=POLICY)
        iam.delete_role(RoleName=role)
    return roles + ([group["GroupId"]] if group else [])
