"""A web server on loopback whose pages answer, fail or stall as a test wants, and downloads from it."""

import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from evilm.config.data import FetchConfig
from evilm.errors import DecodeError
from evilm.video.fetch import Fetcher

HERE = FetchConfig(allow_private=True, timeout_s=5, deadline_s=20, retries=2)
VIDEO = bytes(range(256)) * 1000


class Site:
    """A web server on loopback: what each path does is a function of the request handler."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[Any] = []
        self.otherwise = answer(404)
        self.busy, self.busiest = 0, 0
        self._lock = threading.Lock()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                with site._lock:
                    site.asked[path] += 1
                    site.headers.append(self.headers)
                    site.busy += 1
                    site.busiest = max(site.busiest, site.busy)
                try:
                    site.pages.get(path, site.otherwise)(self)
                except OSError:
                    pass  # the client hung up
                finally:
                    with site._lock:
                        site.busy -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return a page of this content; underscores in names of headers become hyphens, empty headers are left out."""

    def page(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return page


def in_turn(*pages: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[BaseHTTPRequestHandler], None]:
    """The first page for the first request, and so on; the last one for all others."""
    left = list(pages)
    return lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)


def void(_: object) -> None:
    """Nothing, whatever is given."""


def get(url: str, config: FetchConfig = HERE) -> bytes:
    """Download a URL, and check that the temporary file is deleted."""
    with Fetcher("", config).fetch(url) as local:
        data = Path(local.path).read_bytes()
        assert len(data) == local.num_bytes
    assert not Path(local.path).exists()
    return data


def failure(url: str, config: FetchConfig = HERE, **fields: Any) -> DecodeError:
    """Download a URL, which must fail; the error."""
    with pytest.raises(DecodeError) as caught, Fetcher("", config).fetch(url, **fields):
        pass
    return caught.value
