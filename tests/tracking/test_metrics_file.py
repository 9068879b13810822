"""The file of metrics beside an output: no step twice, no torn line, the same on S3."""

import json
from pathlib import Path

from evilm.io import storage
from evilm.tracking.metrics_file import MetricsFile, read_points
from evilm.tracking.mlflow_uploader import MetricsRecorder


def test_replayed_steps_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        metrics.log({"a": step}, step)
    metrics.log({"val/b": 7}, 3)
    metrics.close()
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 4, "met')
    again = MetricsFile(tmp_path / "m.jsonl")
    for step in (2, 3, 4):
        again.log({"a": step}, step)
    again.close()
    points = [(p["step"], p["metrics"]) for p in read_points(tmp_path / "m.jsonl")]
    assert points == [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}), (3, {"val/b": 7}), (4, {"a": 4})]


def test_metrics_on_s3_outlive_the_worker(s3_bucket: str) -> None:
    out = f"{s3_bucket}/model"
    first = MetricsRecorder(out, None)
    for step in (1, 2, 3):
        first.log({"a": step}, step)
    first.store()  # as a checkpoint does
    first.log({"a": 4}, 4)  # lost with the worker's disk, and its step made again
    first.note("nonfinite", {"step": 2})
    second = MetricsRecorder(out, None)
    for step in (3, 4, 5):
        second.log({"a": step}, step)
    second.note("nonfinite", {"step": 5})
    second.close()
    lines = storage.read_bytes(storage.join(out, "metrics.jsonl")).decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert len(storage.read_bytes(storage.join(out, "nonfinite.jsonl")).splitlines()) == 2
    first.close()
