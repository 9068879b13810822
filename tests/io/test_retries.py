"""The one retry policy."""

import time
from collections.abc import Callable

import pytest

from evilm.errors import StorageError
from evilm.io import retries
from evilm.io.retries import TransientError, retry


def failing(times: int, wait_s: float = 0.0) -> tuple[list[int], Callable[[], str]]:
    """An operation that fails so often before it succeeds, and the attempts that were made."""
    attempts: list[int] = []

    def operation() -> str:
        attempts.append(len(attempts))
        if len(attempts) <= times:
            raise TransientError(lambda number: OSError(f"failed {number} times"), wait_s)
        return "done"

    return attempts, operation


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_PAUSE_S", 0.001)


def test_transient_failure_is_retried() -> None:
    attempts, operation = failing(2)
    assert retry(operation, 3, 60) == "done"
    assert len(attempts) == 3


def test_last_attempt_raises_the_final_error() -> None:
    _, operation = failing(9)
    with pytest.raises(OSError, match="failed 3 times"):
        retry(operation, 3, 60)


def test_pause_beyond_the_deadline_is_not_started() -> None:
    attempts, operation = failing(9, wait_s=50)
    began = time.monotonic()
    with pytest.raises(OSError, match="failed 1 times"):
        retry(operation, 9, 5)
    assert (len(attempts), time.monotonic() - began < 5) == (1, True)


@pytest.mark.parametrize("has_answered", [False, True])
def test_storage_that_refuses_from_the_start_is_given_up_at_once(
    has_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_contact", {})
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise ConnectionRefusedError("nobody listens")

    retries.check_first_contact()
    if has_answered:
        retries.with_retries("s3://b/x", lambda: None)
    with pytest.raises(StorageError, match="cannot use s3://b/x"):
        retries.with_retries("s3://b/x", refuse)
    assert len(calls) == (7 if has_answered else 1)
