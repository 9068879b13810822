"""Reaching Ray: a wrong address, or a Ray that can't start, ends in one line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from evilm.cluster import connect
from evilm.errors import ClusterError
from helpers.paths import ROOT


def test_unreachable_ray_address_ends_in_one_line(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "pipelines" / "render_corpus.py"), "--out", str(tmp_path / "corpus")]
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:9"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert shown.returncode == 1
    (line,) = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert "no Ray cluster answers at RAY_ADDRESS = 127.0.0.1:9" in line
    assert "Traceback" not in shown.stderr
    assert time.monotonic() - began < 60


def test_ray_that_cannot_start_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines" / "render_corpus.py"), "--out", str(tmp_path / "corpus")]
    environment = os.environ | {"RAY_TMPDIR": "/dev/null/ray"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert shown.returncode == 1
    (line,) = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: cannot start Ray on this machine: ")
    assert "check RAY_TMPDIR" in line
    assert "Traceback" not in shown.stderr


@pytest.mark.long
def test_ray_that_does_not_start_in_time_is_started_again(tmp_path: Path) -> None:
    """Its raylet stands still, as on a machine that is far too busy."""
    out = tmp_path / "corpus"
    command = [sys.executable, str(ROOT / "pipelines" / "render_corpus.py"), "--out", str(out)]
    command += ["--corpus.train-clips", "2", "--corpus.val-clips", "0", "--corpus.test-clips", "0"]
    process = psutil.Popen(command, stderr=subprocess.PIPE, text=True)
    stopped: list[psutil.Process] = []
    while not stopped:
        stopped = [child for child in process.children(recursive=True) if child.name() == "raylet"]
        assert process.poll() is None
        time.sleep(0.01)
    stopped[0].suspend()
    _, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert "did not start in time on this busy machine; trying again" in shown
    assert not stopped[0].is_running()
    assert (out / "summary.json").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_address_of_a_dashboard_ends_in_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=r"is the address of a dashboard .* submit the command with `ray job submit"):
        connect()


_PRIVATE = """
import sys
from evilm.cluster import connect
connect()
import ray
print(ray.get(ray.remote(lambda: ray.get_runtime_context().gcs_address).remote()), flush=True)
sys.stdin.read()
"""
_OUTSIDE = "import sys; from ray._raylet import GcsClient; print(GcsClient(sys.argv[1]).get_all_node_info(timeout=20))"


@pytest.mark.slow
def test_private_ray_refuses_whoever_has_no_token_and_writes_none(tmp_path: Path) -> None:
    """Its ports listen on all interfaces, so another user of the machine or network reaches them."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    bare["HOME"] = str(tmp_path)
    command = [sys.executable, "-c", _PRIVATE]
    outside = [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32}]
    with subprocess.Popen(command, env=bare, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        for given in outside:
            ask = [sys.executable, "-c", _OUTSIDE, address]
            shown = subprocess.run(ask, env=bare | given, capture_output=True, text=True, timeout=100, check=False)
            assert shown.returncode == 1, shown.stdout
            assert "Unauthenticated" in shown.stderr or "token" in shown.stderr.lower()
        process.stdin.close()
    assert process.returncode == 0
    assert not (tmp_path / ".ray").exists()
