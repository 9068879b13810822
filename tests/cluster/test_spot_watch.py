"""Preemption notices of the clouds are parsed, and bad answers survived; test_autoscaling.py drains a node."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import spot_watch
import yaml
from local import HEAD_ID, LocalCluster, free_port, node_types

from helpers.paths import ROOT
from helpers.spot_metadata import AWS_NOTICE, aws_notice, broken_service, metadata_service

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


def _http(status: str, body: bytes, length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


_NOTICE = b'{"action": "terminate", "time": "2026-01-01T00:00:00Z"}'
BAD = {
    "not found": [_http("404 Not Found", b"<html>nothing here</html>")],
    "server error": [_http("500 Internal Server Error", _NOTICE)],
    "empty": [_http("200 OK", b"")],
    "half of the JSON": [_http("200 OK", _NOTICE[:30])],
    "cut off": [_http("200 OK", _NOTICE[:30], length=len(_NOTICE))],
    "a page of a proxy": [_http("200 OK", b"<html>log in first</html>")],
    "another JSON": [_http("200 OK", b"[1, 2]")],
    "a number": [_http("200 OK", b"7")],
    "no action": [_http("200 OK", b"{}")],
    "another action": [_http("200 OK", b'{"action": "launch", "time": "2026-01-01T00:00:00Z"}')],
    "events of another type": [_http("200 OK", b'{"Events": [7], "action": null}')],
    "not text": [_http("200 OK", bytes(range(128, 256)))],
    "a header with line breaks": [_http("200 OK", b"a\r\nb: c")],
    "not HTTP": [b"\x00\x01 garbage \xff\r\n\r\n"],
    "closed at once": [],
    "too large": [_http("200 OK", b"x" * (1 << 20))],
    "a redirect to nowhere": [b"HTTP/1.1 302 Found\r\nLocation: gopher://a\r\nContent-Length: 0\r\n\r\n"],
}


@pytest.mark.parametrize("answer", BAD)
@pytest.mark.parametrize("cloud", spot_watch.CLOUDS)
def test_bad_answer_is_no_notice(cloud: str, answer: str) -> None:
    with broken_service(BAD[answer]) as base:
        assert spot_watch.notice(cloud, base) is None


@pytest.mark.parametrize("cloud", spot_watch.CLOUDS)
@pytest.mark.parametrize("parts", [[], [_http("200 OK", b"", length=1000), *[b"x"] * 100]], ids=["hangs", "drips"])
def test_slow_answer_ends_in_seconds(cloud: str, parts: list[bytes]) -> None:
    began = time.monotonic()
    with broken_service(parts, pause_s=0.3, wait_s=30) as base:
        assert spot_watch.notice(cloud, base) is None
    assert time.monotonic() - began < 15


def test_notice_with_a_bad_time_is_still_a_notice() -> None:
    for text in ('{"action": "terminate"}', '{"action": "stop", "time": "soon"}', '{"action": "hibernate", "time": 7}'):
        with metadata_service({AWS_NOTICE: text}) as base:
            assert spot_watch.notice("aws", base) == 120


def test_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with broken_service([_http("200 OK", b"TRUE")]) as proxy, metadata_service({_GCP: "FALSE"}) as base:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("no_proxy", "")
        assert spot_watch.notice("gcp", base) is None
    with broken_service([]) as proxy, metadata_service({_GCP: "TRUE"}) as base:
        monkeypatch.setenv("http_proxy", proxy)
        assert spot_watch.notice("gcp", base) == 30


def test_failed_drain_is_tried_again_until_the_node_ends(caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def find() -> tuple[str, str]:
        asked.append(time.monotonic())
        raise ConnectionError("Ray does not answer")

    assert not spot_watch.drain_in_time(0.5, find, pause_s=0.1)
    assert len(asked) > 3
    assert asked[-1] - asked[0] >= 0.4
    assert not spot_watch.drain_in_time(-10.0, find)  # a late notice too is tried once
    assert "Ray does not answer; trying again" in caplog.text


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_watcher_is_started_again_after_it_was_killed(cloud: str, tmp_path: Path) -> None:
    commands = yaml.safe_load((ROOT / "cluster" / f"{cloud}.yaml").read_text())["worker_start_ray_commands"]
    (line,) = [command for command in commands if "spot_watch.py" in command]
    python = f"{sys.executable} {ROOT}/cluster/spot_watch.py --metadata http://127.0.0.1:1"
    for word, ours in {
        "python /home/ray/evilm/cluster/spot_watch.py": python,
        "/tmp/spot_watch": str(tmp_path / "watch"),
        "sleep 5": "sleep 0.1",
    }.items():
        assert word in line
        line = line.replace(word, ours)
    shell = subprocess.Popen(["bash", "-c", f"{line.removesuffix('&')}"], start_new_session=True)
    try:
        first = _watcher(shell.pid, 0)
        os.kill(first, signal.SIGKILL)
        assert _watcher(shell.pid, first) != first
        again = subprocess.run(["bash", "-c", line.removesuffix("&")], timeout=20)
        assert again.returncode == 1  # a second `ray up` starts no second one
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


@pytest.mark.long
def test_node_is_drained_as_soon_as_ray_answers() -> None:
    port = free_port()
    with metadata_service({AWS_NOTICE: aws_notice(seconds=300)}) as base:
        command = [sys.executable, f"{ROOT}/cluster/spot_watch.py", "--cloud", "aws", "--metadata", base]
        command += ["--address", f"127.0.0.1:{port}", "--node-id", HEAD_ID]
        watcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        cluster = None
        try:
            assert watcher.stderr is not None
            assert any("trying again" in line for line in watcher.stderr)  # nothing listens there yet
            cluster = LocalCluster(node_types(cpu_nodes=1, gpu_nodes=0), port)
            _, said = watcher.communicate(timeout=240)
        finally:
            watcher.kill()
            if cluster:
                cluster.stop()
    assert watcher.returncode == 0, said
    assert said.splitlines()[-1].endswith("drained")


def _watcher(parent: int, old: int) -> int:
    """The process of the watcher below a shell, once it is not the old one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in psutil.Process(parent).children(recursive=True):
            try:
                if process.pid != old and process.cmdline()[1:2] == [f"{ROOT}/cluster/spot_watch.py"]:
                    return process.pid
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        time.sleep(0.1)
    raise AssertionError("no watcher was started")
