"""The one retry policy: what may pass is tried again with growing pauses, and given up in one line."""

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from evilm.errors import StorageError

logger = logging.getLogger(__name__)
T = TypeVar("T")

_ATTEMPTS, _PATIENCE_S = 7, 300.0
"""Of an operation on storage, over the attempts that botocore makes by itself within each."""
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors that say what is there; all others say that the storage cannot be used."""
_PASSING = {errno.EREMOTEIO, errno.EBUSY, errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ENETUNREACH}
"""500, 503 and 409 as s3fs translates them, and hiccups of networks and network drives."""


_REFUSALS = ("EndpointConnectionError", "ClientConnectorError", "ConnectionRefusedError")
_contact: dict[str, bool] = {}
"""Whether storage has answered this process, by scheme; empty where refusals are waited out from the start."""


def check_first_contact() -> None:
    """Give up at once on storage that refuses connections from the start; called by commands, not by their workers.

    An outage later, or that of a worker started meanwhile, is waited out.
    """
    _contact[""] = True


class TransientError(Exception):
    """A failure that may pass.

    Args:
        final: makes the error to raise when it did not pass, from the number of attempts.
        wait_s: the least pause before the next attempt, as a server may ask for.
    """

    def __init__(self, final: Callable[[int], Exception], wait_s: float = 0.0) -> None:
        super().__init__(str(final(1)))
        self.final, self.wait_s = final, wait_s


def retry(operation: Callable[[], T], attempts: int, seconds: float) -> T:
    """Return what `operation` returns, tried again while it raises `TransientError`.

    At most `attempts` are made, and none begins later than after `seconds`.
    """
    began = time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            return operation()
        except TransientError as error:
            pause = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            pause = max(pause, error.wait_s)
            if attempt == attempts or time.monotonic() - began + pause > seconds:
                raise error.final(attempt) from error.__cause__
            logger.info("%s; trying again in %.1f s", error, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def with_retries(uri: str, operation: Callable[[], T]) -> T:
    """Return what `operation` at `uri` returns, tried again while the storage fails in passing.

    Raises:
        FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError: as `operation` says.
        StorageError: it failed for good, or for too long.
    """

    scheme = uri.partition("://")[0]

    def attempt() -> T:
        try:
            found = operation()
            _contact[scheme] = True
            return found
        except _ANSWERS:
            _contact[scheme] = True
            raise
        except Exception as error:  # s3fs lets errors of botocore and aiohttp through, which have no common base
            if not (isinstance(error, OSError) or _is_of_network(error)):
                raise
            cause = error
            is_wrong = type(error).__name__ in _REFUSALS and "" in _contact and scheme not in _contact
            if is_wrong or not _may_pass(error):
                raise _storage_error(uri, error) from error
            raise TransientError(lambda attempts: _storage_error(uri, cause, attempts)) from error

    return retry(attempt, _ATTEMPTS, _PATIENCE_S)


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what the system says of a write to `uri`, or on the way there, into an error of one line.

    Raises:
        StorageError: the write failed.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _storage_error(uri, error) from error


def _storage_error(uri: str, error: Exception, attempts: int = 1) -> StorageError:
    """Return why storage cannot be used, in one line that says what to do."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left for {uri}; free some, or choose another path (temporary files go to TMPDIR)"
        )
    if code == errno.EROFS or isinstance(error, PermissionError):
        return StorageError(f"may not use {uri} ({_message(error)}); check its rights, or the AWS credentials")
    often = f" after {attempts} attempts" if attempts > 1 else ""
    advice = "check endpoint and credentials" if "://" in uri else "check that the path exists and is accessible"
    return StorageError(f"cannot use {uri}{often}: {_message(error)}; {advice}")


def _message(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else "") or str(error).strip()
    return " ".join(text.split())[:300] or type(error).__name__


def _is_of_network(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "urllib3")


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and not _is_of_network(error):
        return error.errno in _PASSING
    return "Credentials" not in type(error).__name__ and "Validation" not in type(error).__name__
