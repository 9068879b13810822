"""What the clouds say before they take a machine away, understood; the draining itself is in test_autoscaling.py."""

import json

import pytest
import spot_watch

from helpers.spot_metadata import AWS_NOTICE, aws_notice, metadata_service

_GCP = "/computeMetadata/v1/instance/preempted"
_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


def _events(kind: str, machine: str) -> str:
    return json.dumps({"DocumentIncarnation": 2, "Events": [{"EventType": kind, "Resources": [machine]}]})


@pytest.mark.parametrize(
    ("cloud", "answers", "goes"),
    [
        ("aws", {}, False),
        ("aws", {AWS_NOTICE: "in 100 s"}, True),
        ("gcp", {_GCP: "FALSE"}, False),
        ("gcp", {_GCP: "TRUE"}, True),
        ("azure", {_EVENTS: '{"Events": []}', _NAME: "vm1"}, False),
        ("azure", {_EVENTS: _events("Reboot", "vm1"), _NAME: "vm1"}, False),
        ("azure", {_EVENTS: _events("Preempt", "vm2"), _NAME: "vm1"}, False),
        ("azure", {_EVENTS: _events("Preempt", "vm1"), _NAME: "vm1"}, True),
    ],
)
def test_notices_of_each_cloud_are_parsed(cloud: str, answers: dict[str, str], goes: bool) -> None:
    if answers.get(AWS_NOTICE):  # written now, not when the tests were collected
        answers = {AWS_NOTICE: aws_notice(seconds=100)}
    with metadata_service(answers) as base:
        seconds = spot_watch.CLOUDS[cloud](base)
    assert (seconds is not None) == goes
    if cloud == "aws" and seconds is not None:
        assert 0 < seconds <= 100


@pytest.mark.parametrize("cloud", spot_watch.CLOUDS)
def test_unreachable_metadata_service_is_no_notice(cloud: str) -> None:
    with metadata_service({}) as base:
        pass
    assert spot_watch.CLOUDS[cloud](base) is None
