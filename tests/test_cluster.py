"""Reaching Ray: a wrong address, or a Ray that can't start, ends in one line."""

import os
import subprocess
import sys
import time
from pathlib import Path

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


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_address_of_a_dashboard_ends_in_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=r"is the address of a dashboard .* submit the command with `ray job submit"):
        connect()
