"""The metrics file of a training: one JSON line per point, each step once, also through kills and repeated steps."""

import json
import logging
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends points; a replayed step is not written twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        for point in read_points(path):
            self._note(point)
        self._file = path.open("a", buffering=1)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append a point, unless these metrics were already logged at this or a later step."""
        fresh = {name: float(value) for name, value in metrics.items() if self._last.get(name, -1) < step}
        if fresh:
            point = {"time_ms": int(time.time() * 1000), "step": step, "metrics": fresh}
            self._file.write(json.dumps(point) + "\n")
            self._note(point)

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def _note(self, point: dict[str, Any]) -> None:
        for name in point["metrics"]:
            self._last[name] = max(self._last.get(name, -1), point["step"])


def _drop_torn_line(path: Path) -> None:
    """Cut off what a kill left of a line, so that the next point begins a new one."""
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def read_points(path: Path) -> list[dict[str, Any]]:
    """Read the points of a metrics file; a last line cut short by a kill is left out."""
    return read_from(path, 0)[0]


def read_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Read the points after a byte offset; also return the offset behind the last whole line."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    return parse_points(data), offset + data.rfind(b"\n") + 1


def parse_points(data: bytes) -> list[dict[str, Any]]:
    """Return the points of a metrics file's bytes; a last line without its end is left out."""
    points = []
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            points.append(json.loads(line))
        except ValueError:
            logger.warning("left out a line of metrics that was cut short")
    return points
