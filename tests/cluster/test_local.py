"""The simulated cluster: a token that only its owner can read, and a start that fails in one line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import local
import psutil
import pytest

from helpers.paths import ROOT


def test_token_is_readable_by_its_owner_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert local.protect() == "token"
    token = tmp_path / ".ray" / "auth_token"
    secret = token.read_text()
    assert token.stat().st_mode & 0o777 == 0o600
    token.chmod(0o644)  # as `ray get-auth-token --generate` leaves it
    assert local.protect() == "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == secret


def _run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run local.py, which is to end by itself with one line."""
    command = [sys.executable, str(ROOT / "cluster" / "local.py"), *flags]
    given = os.environ | environment
    shown = subprocess.run(command, env=given, capture_output=True, text=True, timeout=240, check=False)
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    return shown


@pytest.mark.parametrize("flag", ["--port", "--dashboard-port"])
def test_used_port_ends_in_one_line_before_a_head_is_started(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = str(other.getsockname()[1])
        shown = _run("--port", str(local.free_port()), flag, used)
    assert shown.stderr == f"error: port {used} is in use, perhaps by another cluster: use another {flag}\n"
    assert shown.stdout == ""


def test_token_that_cannot_be_stored_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".ray").write_text("a file, not a folder")
    shown = _run(HOME=str(tmp_path), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH="")
    (line,) = shown.stderr.splitlines()
    assert line.startswith("error: cannot store a token: ")
    assert line.endswith("; set HOME to a folder of yours, or set RAY_AUTH_TOKEN")


@pytest.mark.long
def test_head_that_ends_while_the_cluster_runs_is_reported() -> None:
    port = str(local.free_port())
    command = [sys.executable, str(ROOT / "cluster" / "local.py"), "--port", port, "--dashboard-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        while not (line := process.stdout.readline()).startswith("ready: "):
            assert line, process.stderr.read()
        (head,) = [child for child in psutil.Process(process.pid).children() if f"--port={port}" in child.cmdline()]
        head.terminate()
        said = process.stderr.read()
    assert process.returncode == 1
    assert f"error: the head at 127.0.0.1:{port} ended: " in said
