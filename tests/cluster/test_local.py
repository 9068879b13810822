"""The simulated cluster is protected by a token that only its owner can read."""

from pathlib import Path

import local
import pytest


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
