"""The metadata service of a cloud's machine, on loopback."""

import json
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

AWS_NOTICE = "/latest/meta-data/spot/instance-action"


def aws_notice(seconds: float) -> str:
    """Return the notice that AWS gives before it takes a spot machine away."""
    return json.dumps(
        {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))}
    )


@contextmanager
def metadata_service(answers: dict[str, str]) -> Iterator[str]:
    """Serve answers by path, 404 for all others; gives the address. Headers are wanted as the clouds want them."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:  # AWS's token
            self._answer("token" if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") else None)

        def do_GET(self) -> None:
            asked = ("X-aws-ec2-metadata-token", "Metadata-Flavor", "Metadata")
            allowed = any(self.headers.get(name) for name in asked)
            self._answer(answers.get(self.path) if allowed else None)

        def _answer(self, text: str | None) -> None:
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # seconds until it sees its end
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def broken_service(parts: Sequence[bytes], pause_s: float = 0.0, wait_s: float = 0.0) -> Iterator[str]:
    """Send the same bytes to every request, whatever they are; gives the address.

    Args:
        parts: what is sent, one part after the other; nothing if it is empty.
        pause_s: seconds between two parts.
        wait_s: seconds before the connection is closed.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            try:
                for part in parts:
                    self.request.sendall(part)
                    time.sleep(pause_s)
                closing.wait(wait_s)
            except OSError:  # the client has gone
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    closing = threading.Event()
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    closing.set()
    server.shutdown()
    server.server_close()
