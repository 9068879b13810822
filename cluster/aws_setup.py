"""Create what cluster/aws.yaml needs in an AWS account: roles, firewall, bucket, private access to S3.

    python cluster/aws_setup.py --bucket my-bucket --ssh-from 203.0.113.7/32 --write my-aws.yaml
    python cluster/aws_setup.py --bucket my-bucket --ssh-from 203.0.113.7/32 --dry-run
    python cluster/aws_setup.py --config my-aws.yaml --remove

It needs boto3, and permissions to create roles and networks; to run `ray up` afterwards, iam/launcher.json is enough.
Names of roles and firewall contain the cluster's name, so clusters of one account do not share them. Run it again after
changing the policies or the file's machine types: the cluster's own resources are kept or updated. An existing bucket
stays as it is, unless --update-bucket. --write saves a copy of the file with bucket, security group, machine image,
account and names filled in. Push the nodes' image to the account's ECR repository evilm, created with
`aws ecr create-repository --repository-name evilm`.
"""

import argparse
import ipaddress
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from aws_account import (
    BUCKET_TAG,
    Cluster,
    SetupError,
    bucket_exists,
    find_group,
    find_role,
    make_bucket,
    make_firewall,
    make_gateway,
    make_roles,
    read_policy,
    remove,
    ssh_networks,
)
from aws_quotas import check, describe, machine_types

HERE = Path(__file__).parent
_ACCOUNT, _IMAGE = "123456789012", "ami-0123456789abcdef0"  # placeholders of aws.yaml
# Ubuntu with Docker and the NVIDIA runtime, maintained by AWS.
IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"


def fill_in(text: str, values: dict[str, str], cluster: Cluster, bucket: str) -> str:
    """Replace what cluster/aws.yaml, or a file made from it, says of another cluster, and keep the comments.

    Args:
        text: content of the file.
        values: by the file's own value; '' keeps it.
        cluster: name for the file. The policies allow nothing to other clusters.
        bucket: name for the examples in the comments.
    """
    for own, value in values.items():
        text = text.replace(own, value or own)
    text = re.sub(r"(?m)^#.*", lambda line: re.sub(r"(s3://|--bucket )[a-z0-9.-]+", rf"\g<1>{bucket}", line[0]), text)
    old = Cluster(yaml.safe_load(text)["cluster_name"], cluster.region)
    for policy, role in old.roles.items():
        text = re.sub(rf"\bName: {re.escape(role)}\b", f"Name: {cluster.roles[policy]}", text)
    return re.sub(r"(?m)^cluster_name: .*$", f"cluster_name: {cluster.name}", text)


def _group_and_image(config: dict[str, Any]) -> tuple[str, str]:
    """Return security group and machine image of the head in a cluster file, which all its node types share."""
    node = config["available_node_types"][config["head_node_type"]]["node_config"]
    return node["SecurityGroupIds"][0], node["ImageId"]


def _default_vpc(ec2: Any) -> str:
    found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not found:
        raise SetupError("this region has no default network; name one with --vpc")
    return str(found[0]["VpcId"])


def _newest_image(ssm: Any) -> str:
    from botocore.exceptions import ClientError

    try:
        return str(ssm.get_parameter(Name=IMAGE)["Parameter"]["Value"])
    except ClientError as error:
        print(f"failed to look up {IMAGE} ({error}); set ImageId in the file, or use --image", file=sys.stderr)
        return ""


def network(text: str) -> str:
    """Parse an IPv4 network in CIDR form; reject the whole internet."""
    try:
        parsed = ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; use your address, as in 203.0.113.7/32") from None
    if parsed.version != 4:
        raise argparse.ArgumentTypeError(f"{text} is IPv6, but the nodes have IPv4 addresses; use your IPv4 address")
    if parsed.prefixlen == 0:
        raise argparse.ArgumentTypeError("that is the whole internet; use your address, as in 203.0.113.7/32")
    return str(parsed)


def cluster_name(text: str) -> str:
    """Check the name of a cluster, which becomes part of names of roles, firewall and tags."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,38}[a-z0-9]", text) or text.startswith("sg-"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name: use 2 to 40 of a-z, 0-9 and -, beginning with a letter, but not with sg-"
        )
    return text


def bucket_name(text: str) -> str:
    """Check the name of a bucket by the rules of S3."""
    parts = text.split(".")
    good = 3 <= len(text) <= 63 and all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", part) for part in parts)
    if not good or all(part.isdigit() for part in parts) or text.startswith("xn--") or text.endswith("-s3alias"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a bucket: use 3 to 63 of a-z, 0-9, - and ., beginning and ending with a letter or digit"
        )
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bucket", type=bucket_name, help="bucket for videos and outputs; created if missing")
    parser.add_argument("--ssh-from", type=network, nargs="+", help="networks for SSH access, e.g. 203.0.113.7/32")
    parser.add_argument("--config", type=Path, default=HERE / "aws.yaml", help="cluster file with the machine types")
    parser.add_argument("--region", default="", help="'' for the file's")
    parser.add_argument("--vpc", default="", help="network of the nodes; '' for the region's default")
    parser.add_argument("--image", default="", help="machine image; '' for AWS's newest deep-learning base")
    parser.add_argument("--cluster-name", type=cluster_name, help="default: the file's")
    parser.add_argument("--change-bucket", action="store_true", help="give an existing cluster another bucket")
    parser.add_argument("--update-bucket", action="store_true", help="protect an existing bucket like a new one")
    parser.add_argument("--write", type=Path, help="save the file here with everything filled in")
    parser.add_argument("--dry-run", action="store_true", help="print the policies and exit")
    parser.add_argument("--remove", action="store_true", help="delete the cluster's roles and firewall, not the bucket")
    return parser


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the flags and the cluster file; exit with 2 and one line if one is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        config = yaml.safe_load(given.config.read_text())
        given.region = given.region or config["provider"]["region"]
        given.cluster_name = given.cluster_name or cluster_name(config["cluster_name"])
        machine_types(config)
        _group_and_image(config)
    except (OSError, yaml.YAMLError, LookupError, TypeError, argparse.ArgumentTypeError) as error:
        parser.error(f"--config {given.config} is not a cluster file: {' '.join(str(error).split())}")
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", given.region):
        parser.error(f"--region {given.region!r} is not a region such as us-west-2")
    if given.write and (given.write.is_dir() or not os.access(given.write.absolute().parent, os.W_OK)):
        parser.error(f"--write {given.write} can't be written: name a file in an existing folder of yours")
    for flag in () if given.remove else ("bucket", "ssh_from"):
        if getattr(given, flag) is None:
            parser.error(f"--{flag.replace('_', '-')} is needed")
    return given, config


def _check_owners(iam: Any, ec2: Any, s3: Any, vpc: str, cluster: Cluster, given: argparse.Namespace) -> None:
    """Find everything that belongs to others before anything is created or changed."""
    for role in cluster.roles.values():
        bucket = (find_role(iam, role, cluster) or {}).get(BUCKET_TAG, given.bucket)
        if bucket != given.bucket and not given.change_bucket:
            raise SetupError(
                f"cluster {cluster.name} exists and uses bucket {bucket}: use another --cluster-name for a second "
                f"cluster, or --change-bucket to give it {given.bucket}"
            )
    for network in sorted(ssh_networks(find_group(ec2, vpc, cluster)) - set(given.ssh_from)):
        print(f"SSH access from {network} ends; name all networks after --ssh-from to keep it", file=sys.stderr)
    bucket_exists(s3, given.bucket)


def _set_up(session: Any, given: argparse.Namespace, config: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Create or update everything; return what exists now."""
    ec2, s3, iam = session.client("ec2"), session.client("s3"), session.client("iam")
    vpc, cluster = given.vpc or _default_vpc(ec2), Cluster(given.cluster_name, given.region)
    _check_owners(iam, ec2, s3, vpc, cluster, given)
    quotas = check(ec2, session.client("service-quotas"), config)
    make_roles(iam, cluster, names)
    group = make_firewall(ec2, vpc, cluster, given.ssh_from)
    if not make_bucket(s3, given.bucket, cluster, given.update_bucket) and not given.update_bucket:
        print(f"bucket {given.bucket} exists and stays as it is; --update-bucket protects it", file=sys.stderr)
    gateway = make_gateway(ec2, vpc, given.region)
    image = given.image or _newest_image(session.client("ssm"))
    if given.write:
        old_group, old_image = _group_and_image(config)
        values = {old_group: group, old_image: image}
        values |= {config["provider"]["region"]: given.region, _ACCOUNT: names["ACCOUNT"]}
        given.write.write_text(fill_in(given.config.read_text(), values, cluster, given.bucket))
        if image and old_image not in (image, _IMAGE):
            print(f"{given.write} has image {image}, not {old_image} as {given.config}; see --image", file=sys.stderr)
    for line in quotas:
        print(describe(line), file=sys.stderr)
    made = {"roles": list(cluster.roles.values()), "security_group": group, "s3_gateway": gateway}
    return made | {"image": image, "bucket": given.bucket, "quotas": quotas}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    given, config = _parse(arguments)
    head, workers = machine_types(config)
    names: dict[str, Any] = {"BUCKET": given.bucket or "", "REGION": given.region, "CLUSTER": given.cluster_name}
    names |= {"HEAD_TYPE": [head], "WORKER_TYPES": workers}
    if given.dry_run:
        for policy in ("launcher", "head", "worker"):
            print(policy, read_policy(policy, names))
        return 0
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install boto3", file=sys.stderr)
        return 1
    try:
        session = boto3.Session(region_name=given.region)
        names["ACCOUNT"] = session.client("sts").get_caller_identity()["Account"]
        if given.remove:
            ec2 = session.client("ec2")
            cluster = Cluster(given.cluster_name, given.region)
            gone = remove(session.client("iam"), ec2, given.vpc or _default_vpc(ec2), cluster)
            print(json.dumps({"removed": gone}))
            return 0
        made = _set_up(session, given, config, names)
    except (SetupError, BotoCoreError, ClientError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(made | {"launcher_policy": json.loads(read_policy("launcher", names))}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
