"""An S3 server on loopback whose answers fail as those of real ones do: 500, 503, silence, and answers cut or lost."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

FAULTS = ("500", "503", "drop", "lost", "cut", "silence")
"""An error, throttling, a connection closed unread, an answer lost after the work was done, half an answer, none."""
_SILENCE_S = 1.0
_CODES = {"403": "AccessDenied", "500": "InternalError", "503": "SlowDown"}
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


def at_random(share: float, seed: int = 0) -> Callable[[str, str], str]:
    """A seeded share of the requests fails."""
    rng, lock = random.Random(seed), threading.Lock()

    def choose(method: str, path: str) -> str:
        with lock:
            return rng.choice(FAULTS) if rng.random() < share else ""

    return choose


class FaultyS3:
    """Passes requests on to a sound S3 server, those that `choose(method, path)` spares.

    Args:
        upstream: URL of the sound server.
        choose: one of `FAULTS`, 403 for a missing right, or '' for none.
    """

    def __init__(self, upstream: str, choose: Callable[[str, str], str]) -> None:
        self.counts: Counter[str] = Counter()
        """Requests by method, and faults by kind."""
        handler = type("Handler", (_Handler,), {"upstream": urlsplit(upstream).netloc, "choose": [choose]})
        handler.counts = self.counts  # type: ignore[attr-defined]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


Through = Callable[[FaultyS3], str]
"""Puts such a server between a test and the store, and gives the bucket: the fixture `s3_through`."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: ClassVar[str]
    choose: ClassVar[list[Callable[[str, str], str]]]
    counts: ClassVar[Counter[str]]

    def _serve(self) -> None:
        body = self._body()
        fault = self.choose[0](self.command, self.path)
        self.counts.update([self.command, *filter(None, [fault])])
        if fault in _CODES:
            self._answer(int(fault), {}, _xml(_CODES[fault]))
            return
        if fault in ("drop", "silence"):
            time.sleep(_SILENCE_S if fault == "silence" else 0)
            self._hang_up()
            return
        upstream = http.client.HTTPConnection(self.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == "lost":
            self._hang_up()
        else:
            self._answer(answer.status, dict(answer.getheaders()), data, is_cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, status: int, headers: dict[str, str], data: bytes, is_cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        dropped = {*_HOP_BY_HOP, "content-length"}
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if is_cut else data)
        if is_cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at `counts`."""


def _xml(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}, please retry</Message></Error>'.encode()
