"""The modules of cluster/ can be imported, as its scripts import them; an AWS account that moto plays."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

REGION, BUCKET = "us-west-2", "evilm-test"


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
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()
    with mock_aws():
        yield
    boto3.DEFAULT_SESSION = None
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()


@pytest.fixture
def account(empty_account: None, tmp_path: Path) -> Path:
    """An account in which aws_setup.py has run; the file that it wrote."""
    import aws_setup
    import boto3

    image = boto3.client("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    written = tmp_path / "my-aws.yaml"
    given = ["--bucket", BUCKET, "--ssh-from", "203.0.113.7/32", "--image", image, "--write", str(written)]
    assert aws_setup.main(given) == 0
    return written
