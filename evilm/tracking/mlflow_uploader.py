"""Record metrics on rank 0: to a file first, and from there to MLflow, by a thread that may fail.

On object stores the file is copied to the output folder, before each checkpoint and every half minute: a step that a
checkpoint has behind it has its metrics there too, and later steps are made again.
"""

import json
import logging
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from evilm.io import storage
from evilm.io.ownership import check_owner, is_owner
from evilm.io.temporary import temporary_folder
from evilm.tracking.metrics_file import METRICS_FILE, MetricsFile, read_from
from evilm.tracking.mlflow_calls import suppress_tracking_errors
from evilm.tracking.mlflow_run import TrackedRun, ensure_run

logger = logging.getLogger(__name__)

_POINTS = 100  # a call; the server takes at most 1,000 metric values
_VALUES = 900
SHIP_S, _STORE_S = 5.0, 30.0
_LONGEST_PAUSE_S = 60.0  # while no server answers
_NOTES = "{}.jsonl"


class MlflowUploader:
    """Sends the points of a metrics file to an MLflow run from a background thread, each once.

    What was sent is noted beside the file. A call that the server has carried out but not answered is repeated; a
    point with the same step, time and value is the same point to MLflow's stores.
    """

    def __init__(self, run: TrackedRun | None, path: Path) -> None:
        self._run, self._path = run, path
        self._run_id = ""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="mlflow", daemon=True)

    def start(self) -> "MlflowUploader":
        """Begin shipping; nothing is sent where nothing is tracked."""
        if self._run:
            self._thread.start()
        return self

    def ship(self) -> None:
        """Send the points that were not sent yet. Raises whatever MLflow raises.

        Once another run has taken the output folder over, nothing is sent: it would open that run's MLflow run again.
        """
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        if self._run is None or not is_owner(self._run.out, self._run.number):
            return
        with self._lock:
            self._run_id = self._run_id or ensure_run(self._run)
            sent_file = self._path.with_name(f"{self._path.name}.{self._run_id}.sent")
            sent = _offset(sent_file)
            client = MlflowClient(tracking_uri=self._run.uri)
            points, end = read_from(self._path, sent)
            for start in range(0, len(points), _POINTS):
                some = points[start : start + _POINTS]
                metrics = [Metric(n, v, p["time_ms"], p["step"]) for p in some for n, v in p["metrics"].items()]
                for first in range(0, len(metrics), _VALUES):
                    client.log_batch(self._run_id, metrics=metrics[first : first + _VALUES])
            storage.write_bytes(str(sent_file), str(end).encode())

    def close(self) -> None:
        """Ship the rest, within the time that a dead server takes to refuse."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
            with suppress_tracking_errors("ship the last metrics; they are kept in " + self._path.name):
                self.ship()

    def _loop(self) -> None:
        warned, pause = False, SHIP_S
        while not self._stop.wait(pause):
            try:
                self.ship()
                if warned:
                    logger.info("MLflow answers again; all metrics are sent")
                warned, pause = False, SHIP_S
            except Exception as error:  # the server may be down in many ways; training must not notice
                self._run_id = ""  # somebody may have deleted the run
                if not warned and self._run:
                    reason = " ".join(str(error).split())[:200]
                    logger.warning(
                        "MLflow at %s does not answer (%s); metrics are kept and sent later", self._run.uri, reason
                    )
                warned, pause = True, min(_LONGEST_PAUSE_S, 2 * pause)


def _offset(sent_file: Path) -> int:
    """Return how much of the metrics file was sent; 0 where that can't be read, as sending again changes nothing."""
    try:
        return int(sent_file.read_text())
    except (FileNotFoundError, ValueError):
        return 0


class MetricsRecorder:
    """Metrics and notes of a training, on the worker's disk first, then in the output folder and in MLflow."""

    def __init__(self, out: str, tracked: TrackedRun | None, run: int = 0) -> None:
        """Open the files.

        `run` is the number of the run that owns `out`; once another run has taken it over, nothing more is written
        there.
        """
        self._out, self._run, self._remote = out, run, not storage.is_local(out)
        self._ends = ExitStack()
        folder = Path(self._ends.enter_context(temporary_folder()) if self._remote else storage.absolute(out))
        self._folder = folder
        if self._remote and storage.exists(kept := storage.join(out, METRICS_FILE)):
            (folder / METRICS_FILE).write_bytes(storage.read_bytes(kept))
        self._lock = threading.Lock()
        self._spool = MetricsFile(folder / METRICS_FILE)
        self._shipper = MlflowUploader(tracked, folder / METRICS_FILE).start()
        self._closed = threading.Event()
        if self._remote:
            threading.Thread(target=self._store_now_and_then, name="metrics", daemon=True).start()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record a point; costs a line in a file."""
        if self._remote or is_owner(self._out, self._run):  # for an object store, `store` checks the owner
            self._spool.log(metrics, step)

    def note(self, kind: str, report: dict[str, Any]) -> None:
        """Append a report to `<kind>.jsonl` in the output folder; for what happens now and then."""
        if not is_owner(self._out, self._run):
            return
        place = storage.join(self._out, _NOTES.format(kind))
        earlier = storage.read_bytes(place) if storage.exists(place) else b""
        storage.write_bytes(place, earlier + (json.dumps(report, ensure_ascii=False) + "\n").encode())

    def store(self) -> None:
        """Bring the metrics file to the output folder, where it is not written there anyway.

        Raises:
            OwnershipError: another run has taken the folder over, and its file must not be replaced.
        """
        if self._remote:
            with self._lock:
                check_owner(self._out, self._run)
                storage.write_bytes(storage.join(self._out, METRICS_FILE), (self._folder / METRICS_FILE).read_bytes())

    def close(self) -> None:
        """Bring everything to its place."""
        self._closed.set()
        self._spool.close()
        with suppress_tracking_errors("store the last metrics"):
            self.store()
        self._shipper.close()
        self._ends.close()

    def _store_now_and_then(self) -> None:
        while not self._closed.wait(_STORE_S):
            with suppress_tracking_errors("store the metrics"):
                self.store()
