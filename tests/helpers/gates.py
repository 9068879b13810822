"""Hold a job at a known point: a server withholds its answer for one file until the test has done its part."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Gate:
    """Lets requests pass, except those for files that it is shut for, which wait until it opens."""

    def __init__(self) -> None:
        self._shut: dict[str, threading.Event] = {}
        self._waiting: set[str] = set()
        self._once: Callable[[], bool] = lambda: True

    def shut(self, *names: str, once: Callable[[], bool] = lambda: True) -> None:
        """Withhold answers for files whose URL ends in one of these names, and answers for no others.

        Args:
            names: the ends.
            once: requests pass as long as this does not hold.
        """
        self.open()
        self._waiting.clear()
        self._once = once
        self._shut = {name: threading.Event() for name in names}

    def open(self) -> None:
        """Answer everything, also what waits."""
        shut, self._shut = self._shut, {}
        for event in shut.values():
            event.set()

    def holds(self, *names: str) -> bool:
        """Whether answers for each of these files (of any, where none is named) were withheld since it was shut."""
        return self._waiting >= set(names) and bool(self._waiting)

    def __call__(self, method: str, path: str) -> str:
        """Wait, if the gate is shut for a file; for use as `FaultyS3(url, gate)` too, whose answers then are sound."""
        for name, event in list(self._shut.items()):
            if method == "GET" and path.partition("?")[0].endswith(name) and self._once():
                self._waiting.add(name)
                event.wait()
        return ""


@contextmanager
def serve(folder: Path, gate: Gate) -> Iterator[str]:
    """A web server of the files in a folder, behind a gate; its URL."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            gate("GET", self.path)
            with suppress(OSError):  # whoever asked was killed meanwhile
                super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        gate.open()
        server.shutdown()
        server.server_close()
