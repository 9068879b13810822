"""The modules of cluster/ can be imported, as its scripts import them; an AWS account that moto plays."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import create_loader

sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

REGION, BUCKET = "us-west-2", "evilm-test"


_loader = functools.cache(create_loader)
"""botocore's parsed descriptions of EC2 and others, megabytes of JSON that each new session parses again."""


@pytest.fixture(scope="session")
def image() -> str:
    """A machine image of moto's accounts; it takes a second to list them."""
    import boto3
    from moto import mock_aws

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=REGION, **keys)
        return ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]


@pytest.fixture
def empty_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An account in which nothing was set up. Ray's cached clients are forgotten."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import utils

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(tmp_path),  # Ray puts the key pair there
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr("botocore.session.create_loader", _loader)
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()
    with mock_aws():
        yield
    boto3.DEFAULT_SESSION = None
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()


@pytest.fixture
def account(image: str, empty_account: None, tmp_path: Path) -> Path:
    """An account in which aws_setup.py has run; the file that it wrote."""
    import aws_setup

    written = tmp_path / "my-aws.yaml"
    given = ["--bucket", BUCKET, "--ssh-from", "203.0.113.7/32", "--image", image, "--write", str(written)]
    assert aws_setup.main(given) == 0
    return written


_known_types: list[Any] = []


@pytest.fixture
def cached_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ray ask for EC2's instance types once for all tests: moto takes seconds to list them."""
    from ray.autoscaler._private.aws import node_provider

    listed = node_provider.list_ec2_instances

    def list_once(*arguments: Any) -> Any:
        if not _known_types:
            _known_types.append(listed(*arguments))
        return _known_types[0]

    monkeypatch.setattr(node_provider, "list_ec2_instances", list_once)
