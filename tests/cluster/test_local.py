"""The simulated cluster: a token that only its owner can read, and a start that fails in one line."""

import socket
import subprocess
import sys
from pathlib import Path

import local
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


@pytest.mark.long
def test_head_on_a_used_port_ends_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, str(ROOT / "cluster" / "local.py"), "--port", port, "--dashboard-port", "0"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert shown.returncode == 1
    assert shown.stdout.startswith(f"starting a head at 127.0.0.1:{port}, with its log in /tmp/")
    (line,) = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert f"error: the head at 127.0.0.1:{port} ended: " in line
    assert "Traceback" not in shown.stderr
