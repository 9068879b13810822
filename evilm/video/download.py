"""Download over http(s) from untrusted servers, with limits on size and time and with retries.

Redirects are followed here; each address is checked like the first one.
"""

import base64
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import IO
from urllib.parse import unquote_to_bytes, urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util.url import Url, parse_url

from evilm.config.data import FetchConfig
from evilm.errors import DecodeError, ShardError
from evilm.io.retries import TransientError, retry
from evilm.video.network_guard import Guard, Http, Https
from evilm.video.reasons import RejectReason

_CHUNK_BYTES = 1 << 16
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def transient(reason: RejectReason, detail: str, wait_s: float = 0.0) -> TransientError:
    """Build the error of a failure that may be temporary and is worth another attempt."""

    def final(attempts: int) -> DecodeError:
        return DecodeError(reason, detail + (f" after {attempts} attempts" if attempts > 1 else ""))

    return TransientError(final, wait_s)


class Deadline:
    """Time limit of one video over all attempts."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())


def download(url: str, file: IO[bytes], config: FetchConfig) -> int:
    """Download a URL into `file` from its beginning; return the number of bytes.

    Raises:
        DecodeError: missing_file, forbidden_address, too_large, fetch_timeout or fetch_error; the detail contains no
            secrets of the URL.
    """
    deadline = Deadline(config.deadline_s)
    return retry(lambda: _attempt(url, file, config, deadline), config.retries + 1, config.deadline_s)


def _attempt(url: str, file: IO[bytes], config: FetchConfig, deadline: Deadline) -> int:
    """Follow all redirects once and download the body."""
    file.seek(0)
    file.truncate()
    for hop in range(_MAX_REDIRECTS + 1):
        with _request(url, config, deadline, send_password=hop == 0) as response:
            place = response.headers.get("Location")
            if response.status not in _REDIRECTS or not place:
                return _receive(response, file, config, deadline)
        url = _joined(url, place)
    raise DecodeError(RejectReason.FETCH_ERROR, f"more than {_MAX_REDIRECTS} redirects")


def _joined(url: str, place: str) -> str:
    """Return the target of a redirect."""
    try:
        return urljoin(url, place)
    except ValueError:
        raise DecodeError(RejectReason.FETCH_ERROR, "a redirect to no valid URL") from None


@contextmanager
def _request(
    url: str, config: FetchConfig, deadline: Deadline, send_password: bool
) -> Iterator[urllib3.BaseHTTPResponse]:
    """Send a GET and return the response with its body unread; convert any failure to a reason."""
    parts = _parse(url)
    assert parts.host is not None
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "evilm"}
    if parts.auth and send_password:
        headers |= _credentials(parts.auth)
    timeout = max(min(config.timeout_s, deadline.left()), 0.001)
    connection = (Https if parts.scheme == "https" else Http)(parts.host, parts.port, timeout=timeout)
    connection.guard = Guard(config.allow_private, timeout)
    # A server that sends single bytes never exceeds a socket's timeout, so a timer ends the connection from outside.
    watch = threading.Timer(deadline.left(), connection.guard.hang_up)
    watch.daemon = True
    watch.start()
    try:
        connection.request(
            "GET", parts.request_uri, headers=headers, preload_content=False, enforce_content_length=False
        )
        yield connection.getresponse()
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        raise _failure(error, parts.host, deadline) from None
    finally:
        watch.cancel()
        connection.close()
        connection.guard.release()


def _credentials(auth: str) -> dict[str, str]:
    """Build the header for a URL's user and password, whose bytes are sent unchanged."""
    return {"Authorization": f"Basic {base64.b64encode(unquote_to_bytes(auth)).decode()}"}


def _parse(url: str) -> Url:
    """Parse a URL once for all later steps; two parsers could see two different hosts."""
    try:
        parts = parse_url(url)
    except (LocationParseError, ValueError):
        raise DecodeError(RejectReason.FETCH_ERROR, "no valid URL") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise DecodeError(
            RejectReason.PATH_UNSAFE, f"a {(parts.scheme or 'relative')[:20]} URL; only http and https are downloaded"
        )
    return parts


def _receive(response: urllib3.BaseHTTPResponse, file: IO[bytes], config: FetchConfig, deadline: Deadline) -> int:
    """Write the whole body of a response, if it is valid."""
    status, most = response.status, config.max_mb << 20
    if status in _GONE:
        raise DecodeError(RejectReason.MISSING_FILE, f"HTTP {status}")
    if status in _PASSING or status >= 500:
        raise transient(RejectReason.FETCH_ERROR, f"HTTP {status}", _retry_after(response.headers.get("Retry-After")))
    if status != 200:
        raise DecodeError(RejectReason.FETCH_ERROR, f"HTTP {status}")
    if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise DecodeError(RejectReason.FETCH_ERROR, "a compressed body, which was not asked for")
    length = response.headers.get("Content-Length", "")
    promised = int(length) if length.isascii() and length.isdigit() else None
    if promised is not None and promised > most:
        raise DecodeError(RejectReason.TOO_LARGE, f"{promised} bytes, more than fetch.max_mb = {config.max_mb}")
    received = 0
    while chunk := response.read1(_CHUNK_BYTES, decode_content=False):
        received += len(chunk)
        if received > most:
            raise DecodeError(RejectReason.TOO_LARGE, f"more than fetch.max_mb = {config.max_mb}")
        if not deadline.left():
            break
        _write(file, chunk)
    if not deadline.left():
        raise transient(RejectReason.FETCH_TIMEOUT, f"received {received} bytes in fetch.deadline_s")
    if promised is not None and received != promised:
        raise transient(RejectReason.FETCH_ERROR, f"received {received} of {promised} bytes")
    file.flush()
    return received


def _write(file: IO[bytes], chunk: bytes) -> None:
    """Write to the temporary file; a full disk is not an error of the video."""
    try:
        file.write(chunk)
    except OSError as error:
        raise ShardError(
            f"cannot write a download to {tempfile.gettempdir()}: {error.strerror}; free space or set TMPDIR"
        ) from None


def _failure(error: Exception, host: str, deadline: Deadline) -> DecodeError | TransientError:
    """Convert a failed connection to a reason, without the library's message, which may contain the URL."""
    kind = type(error).__name__
    if not deadline.left():
        return transient(RejectReason.FETCH_TIMEOUT, f"no end of it within fetch.deadline_s from {host}")
    if isinstance(error, ssl.SSLError | urllib3.exceptions.SSLError) and "CERTIFICATE" in str(error).upper():
        return DecodeError(RejectReason.FETCH_ERROR, f"the certificate of {host} is not valid")
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return transient(RejectReason.FETCH_TIMEOUT, f"{host} did not answer in time")
    if isinstance(error, socket.gaierror):
        return transient(RejectReason.FETCH_ERROR, f"no address of {host}")
    if isinstance(error, UnicodeError):  # an invalid host name
        return DecodeError(RejectReason.FETCH_ERROR, "no valid URL")
    return transient(RejectReason.FETCH_ERROR, f"{kind} at {host}")


def _retry_after(value: str | None) -> float:
    """Return the seconds that a server requests to wait; 0 if there is no valid value."""
    if not value:
        return 0.0
    if value.isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
