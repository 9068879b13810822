"""Serve a folder read-only by the S3 protocol on loopback, and count the requests."""

import re
import threading
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_NOTHING = b"<?xml version='1.0'?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"


@dataclass
class Count:
    """Number of answered requests, and bytes of the answers."""

    requests: int = 0
    num_bytes: int = 0


class CountingStore:
    """A server of the files below a folder as `s3://<first folder>/<path>`, without listing and writing."""

    def __init__(self, folder: Path) -> None:
        count, lock = Count(), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(True)

            def do_HEAD(self) -> None:
                self._answer(False)

            def _answer(self, whole: bool) -> None:
                file = folder / unquote(urlsplit(self.path).path).lstrip("/")
                status, data, headers = _content(file, self.headers.get("Range", ""))
                with lock:
                    count.requests += 1
                    count.num_bytes += len(data) if whole else 0
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(data))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if whole:
                    self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._count, self._lock = count, lock
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self) -> Count:
        """Return the count since the last call and reset it."""
        with self._lock:
            found = Count(self._count.requests, self._count.num_bytes)
            self._count.requests = self._count.num_bytes = 0
            return found

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _content(file: Path, wanted: str) -> tuple[int, bytes, dict[str, str]]:
    """Build status, body and headers of an answer."""
    if file.is_dir():
        return 200, _NOTHING, {"Content-Type": "application/xml"}
    if not file.is_file():
        return 404, b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"}
    size, modified = file.stat().st_size, file.stat().st_mtime
    headers = {"ETag": f'"{size}"', "Last-Modified": formatdate(modified, usegmt=True), "Accept-Ranges": "bytes"}
    start, stop = 0, size
    if found := _RANGE.fullmatch(wanted):
        first, last = found.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    with file.open("rb") as opened:
        opened.seek(start)
        return 206 if found else 200, opened.read(stop - start), headers
