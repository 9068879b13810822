"""Create the resources named in cluster/aws.yaml in an AWS account: roles, firewall, bucket, private access to S3.

    python cluster/aws_setup.py --bucket my-bucket --ssh-from 203.0.113.7/32 --write my-aws.yaml
    python cluster/aws_setup.py --bucket my-bucket --ssh-from 203.0.113.7/32 --dry-run

It needs boto3, and permissions to create roles and networks; to run `ray up` afterwards, iam/launcher.json is enough.
Run it again after changing the policies: existing resources are kept or updated. --write saves a copy of aws.yaml with
bucket, security group, machine image, account and cluster name filled in. Push the nodes' image to the account's ECR
repository evilm, created with `aws ecr create-repository --repository-name evilm`.
"""

import argparse
import ipaddress
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROLES = {"evilm-head": "head", "evilm-worker": "worker"}
GROUP = "evilm-ray"
_ACCOUNT = "123456789012"
# Ubuntu with Docker and the NVIDIA runtime, maintained by AWS.
IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"


def read_policy(name: str, names: dict[str, str]) -> str:
    """Read a policy of iam/ and fill in account, region, bucket and cluster."""
    text = (HERE / "iam" / f"{name}.json").read_text()
    for placeholder, value in names.items():
        text = text.replace(placeholder, value)
    return json.dumps(json.loads(text))


def make_roles(iam: Any, names: dict[str, str]) -> None:
    """Create the roles of head and workers, each with its policy and an instance profile of the same name."""
    for role, policy in ROLES.items():
        if role not in _names(iam, "list_roles", "Roles", "RoleName"):
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=read_policy("trust", {}))
        iam.put_role_policy(RoleName=role, PolicyName="evilm", PolicyDocument=read_policy(policy, names))
        if role not in _names(iam, "list_instance_profiles", "InstanceProfiles", "InstanceProfileName"):
            iam.create_instance_profile(InstanceProfileName=role)
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    if not iam.list_roles(PathPrefix="/aws-service-role/spot.amazonaws.com/")["Roles"]:
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")


def make_firewall(ec2: Any, vpc: str, ssh_from: str) -> str:
    """Create a security group open to SSH from one network and to all traffic among its members; return its id."""
    wanted = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    found = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    if found:
        group, rules = found[0]["GroupId"], found[0]["IpPermissions"]
    else:
        group = ec2.create_security_group(GroupName=GROUP, Description="Ray cluster of evilm", VpcId=vpc)["GroupId"]
        rules = []
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]}
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    if rules:  # --ssh-from may have changed
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rules)
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, inside])
    return str(group)


def make_bucket(s3: Any, ec2: Any, vpc: str, bucket: str, region: str) -> str:
    """Create a private bucket and a gateway for access to S3 without the internet; return the gateway's id."""
    if bucket not in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]:
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=bucket, **where)
    closed = dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"),
        True,
    )
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=closed)
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


def fill_in(group: str, image: str, region: str, bucket: str, cluster: str, account: str) -> str:
    """Replace the placeholders and the name in cluster/aws.yaml; the policies allow nothing to other clusters."""
    text = (HERE / "aws.yaml").read_text()
    places = {"sg-0123456789abcdef0": group, "my-bucket": bucket, "us-west-2": region, _ACCOUNT: account}
    for placeholder, value in (places | ({"ami-0123456789abcdef0": image} if image else {})).items():
        text = text.replace(placeholder, value)
    return text.replace("\ncluster_name: evilm\n", f"\ncluster_name: {cluster}\n")


def _names(client: Any, operation: str, listed: str, name: str) -> set[str]:
    return {entry[name] for page in client.get_paginator(operation).paginate() for entry in page[listed]}


def _default_vpc(ec2: Any) -> str:
    found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not found:
        raise SystemExit("error: this region has no default network; name one with --vpc")
    return str(found[0]["VpcId"])


def _newest_image(ssm: Any) -> str:
    from botocore.exceptions import ClientError

    try:
        return str(ssm.get_parameter(Name=IMAGE)["Parameter"]["Value"])
    except ClientError as error:
        print(f"failed to look up {IMAGE} ({error}); set ImageId in the file, or use --image", file=sys.stderr)
        return ""


def _network(text: str) -> str:
    """Parse a network in CIDR form; reject the whole internet."""
    network = ipaddress.ip_network(text)  # raises ValueError, which argparse shows
    if network.prefixlen == 0:
        raise ValueError("that is the whole internet")
    return str(network)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bucket", required=True, help="bucket for videos and outputs; created if missing")
    parser.add_argument("--ssh-from", required=True, type=_network, help="network for SSH access, e.g. 203.0.113.7/32")
    parser.add_argument("--region", default="us-west-2")
    parser.add_argument("--vpc", default="", help="network of the nodes; '' for the region's default")
    parser.add_argument("--image", default="", help="machine image; '' for AWS's newest deep-learning base")
    parser.add_argument("--cluster-name", default="evilm", help="name of the only cluster that the policies allow")
    parser.add_argument("--write", default="", help="save aws.yaml here with everything filled in")
    parser.add_argument("--dry-run", action="store_true", help="print the policies and exit")
    given = parser.parse_args(arguments)
    names = {"BUCKET": given.bucket, "REGION": given.region, "CLUSTER": given.cluster_name}
    if given.dry_run:
        for policy in ("launcher", *ROLES.values()):
            print(policy, read_policy(policy, names))
        return 0
    import boto3

    session = boto3.Session(region_name=given.region)
    ec2, s3 = session.client("ec2"), session.client("s3")
    names["ACCOUNT"] = session.client("sts").get_caller_identity()["Account"]
    vpc = given.vpc or _default_vpc(ec2)
    make_roles(session.client("iam"), names)
    group = make_firewall(ec2, vpc, given.ssh_from)
    gateway = make_bucket(s3, ec2, vpc, given.bucket, given.region)
    image = given.image or _newest_image(session.client("ssm"))
    if given.write:
        text = fill_in(group, image, given.region, given.bucket, given.cluster_name, names["ACCOUNT"])
        Path(given.write).write_text(text)
    made = {
        "roles": list(ROLES),
        "security_group": group,
        "s3_gateway": gateway,
        "image": image,
        "bucket": given.bucket,
    }
    print(json.dumps(made | {"launcher_policy": json.loads(read_policy("launcher", names))}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
