"""MLflow tracking that never stops or slows a run: metrics go to a file first and are shipped from there.

One run per invocation of a door. The driver opens it, rank 0 of a training appends to it by id, the driver closes it
with figures and the resolved settings. When the server is down, the file keeps everything, and the next attempt ships
from where the last one ended.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evilm import storage
from evilm.config.base import flatten
from evilm.config.runs import Door

logger = logging.getLogger(__name__)

# Set before mlflow is imported: by default one call to a dead server blocks for four minutes.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

METRICS_FILE = "metrics.jsonl"
_BATCH = 100  # points a call; the server takes at most 1,000 metric values


def tracking_uri(config: Door, out: str) -> str:
    """Where to track: the setting, MLFLOW_TRACKING_URI, or a sqlite store beside `out`; '' for nowhere."""
    if not config.tracking.enabled:
        return ""
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if given or not storage.is_local(out):
        return given
    root = Path(storage.absolute(out)).parent
    root.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{root / 'mlflow.db'}"


def _artifacts(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside a sqlite store, not in whatever folder we were started from."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns").as_uri()


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Tracking must not end a run: whatever it raises (many kinds, from many libraries) becomes a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("MLflow: could not %s (%s); the run goes on", what, " ".join(str(error).split())[:200])


class Spool:
    """The metrics file: one JSON line per point, appended; a replayed step is not written twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        for point in read_points(path):
            self._note(point)
        self._file = path.open("a", buffering=1)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append a point, unless these metrics stand there for this or a later step: a resumed run repeats steps."""
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
    """Cut off what a kill left of a line, lest the next point be glued to it."""
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a metrics file; a last line cut short by a kill is left out."""
    points = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            points.append(json.loads(line))
        except ValueError:
            logger.warning("%s: left out a line that is still being written or was cut short", path.name)
    return points


class Shipper:
    """Sends the points of a metrics file to an MLflow run from a background thread, each once."""

    def __init__(self, uri: str, run_id: str, path: Path, every_s: float = 5.0) -> None:
        self._uri, self._run_id, self._path, self._every_s = uri, run_id, path, every_s
        self._sent_path = path.with_name(f"{path.name}.{run_id}.sent")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="mlflow", daemon=True)

    def start(self) -> "Shipper":
        """Begin shipping; nothing is sent where there is no run."""
        if self._uri and self._run_id:
            self._thread.start()
        return self

    def ship(self) -> None:
        """Send what was not sent yet. Raises whatever MLflow raises."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        with self._lock:
            sent = int(self._sent_path.read_text()) if self._sent_path.exists() else 0
            points = read_points(self._path)
            client = MlflowClient(tracking_uri=self._uri)
            for start in range(sent, len(points), _BATCH):
                batch = points[start : start + _BATCH]
                metrics = [Metric(n, v, p["time_ms"], p["step"]) for p in batch for n, v in p["metrics"].items()]
                for first in range(0, len(metrics), 900):
                    client.log_batch(self._run_id, metrics=metrics[first : first + 900])
                self._sent_path.write_text(str(start + len(batch)))

    def close(self) -> None:
        """Ship the rest, within the time that a dead server takes to refuse."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
            with _harmless("ship the last metrics; they are kept in " + self._path.name):
                self.ship()

    def _loop(self) -> None:
        warned = False
        while not self._stop.wait(self._every_s):
            try:
                self.ship()
                warned = False
            except Exception as error:  # the server may be down in many ways; training must not notice
                if not warned:
                    logger.warning(
                        "MLflow at %s does not answer (%s); metrics are kept and sent later", self._uri, error
                    )
                warned = True


def open_run(config: Door, door: str, out: str, inputs: dict[str, str]) -> str:
    """The MLflow run of this output folder: the one it already has, or a new one with the settings as parameters.

    Returns:
        The run's id, '' where tracking is off or the server does not answer.
    """
    uri, kept = tracking_uri(config, out), storage.join(out, "mlflow.json")
    if not uri:
        return ""
    run_id = ""
    with _harmless("open a run"):
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunStatus, RunTag

        client = MlflowClient(tracking_uri=uri)
        if storage.exists(kept) and (known := storage.read_json(kept)).get("uri") == uri:
            client.update_run(known["run_id"], status=RunStatus.to_string(RunStatus.RUNNING))
            return str(known["run_id"])
        experiment = client.get_experiment_by_name(door)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(door, _artifacts(uri))
        name = (
            config.tracking.run_name or f"{door}-{storage.read_json(storage.join(out, 'run.json'))['fingerprint'][:6]}"
        )
        tags = {"evilm.door": door, "evilm.out": out} | {f"evilm.input.{k}": v for k, v in inputs.items()}
        run = client.create_run(experiment_id, run_name=name, tags=tags)
        run_id = run.info.run_id
        flat = flatten(config.model_dump(mode="json", exclude={"build"}))
        client.log_batch(
            run_id,
            params=[Param(k, str(v)[:500]) for k, v in flat.items()][:100],
            tags=[RunTag("mlflow.note.content", config.__doc__ or "")],
        )
        storage.write_json(kept, {"uri": uri, "run_id": run_id, "experiment": door})
    return run_id


def close_run(config: Door, out: str, run_id: str, summary: dict[str, Any], figures: dict[str, Path]) -> None:
    """Log the summary's figures, the resolved settings and pictures, and end the run."""
    uri = tracking_uri(config, out)
    if not uri or not run_id:
        return
    with _harmless("close the run"):
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(tracking_uri=uri)
        numbers = {k: v for k, v in flatten(summary).items() if isinstance(v, int | float) and not isinstance(v, bool)}
        now = int(time.time() * 1000)
        points = [Metric(f"summary/{name.replace('@', '')}", float(value), now, 0) for name, value in numbers.items()]
        client.log_batch(run_id, metrics=points[:900])
        client.log_dict(run_id, config.model_dump(mode="json"), "config.yaml")
        client.log_dict(run_id, summary, "summary.json")
        for name, path in figures.items():
            client.log_artifact(run_id, str(path), artifact_path=name)
        client.set_terminated(run_id)


def fail_run(config: Door, out: str, run_id: str) -> None:
    """Mark the run as failed."""
    if run_id:
        with _harmless("mark the run as failed"):
            from mlflow import MlflowClient

            MlflowClient(tracking_uri=tracking_uri(config, out)).set_terminated(run_id, status="FAILED")


def track(door: str, work: Callable[[Any], dict[str, Any]], config: Any) -> dict[str, Any]:
    """Run an offline door and record its settings and summary as one MLflow run; a reused result makes none."""
    summary = work(config)
    out = str(summary.get("out", config.out))
    if summary.get("reused") or not out:
        return summary
    run_id = open_run(config, door, out, dict(summary.get("inputs", {})))
    close_run(config, out, run_id, summary, {})
    return summary
