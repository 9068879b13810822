"""The metadata service of a cloud's machine, on loopback."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

AWS_NOTICE = "/latest/meta-data/spot/instance-action"


def aws_notice(seconds: float) -> str:
    """What AWS says before it takes a spot machine away."""
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
