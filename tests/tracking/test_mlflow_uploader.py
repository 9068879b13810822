"""Metrics on their way to an MLflow server that is late, killed or slow: every point once."""

import json
import time
from pathlib import Path

import pytest

from evilm.config.stages import BuildVocab
from evilm.io.outputs import Output
from evilm.tracking.metrics_file import read_points
from evilm.tracking.mlflow_run import close_run, describe_run, is_closed, open_run
from evilm.tracking.mlflow_uploader import MetricsRecorder, MlflowUploader
from helpers.commands import wait_for
from helpers.mlflow_server import Server


@pytest.mark.long
@pytest.mark.faults
def test_late_and_killed_server_gets_every_point_once(
    tmp_path: Path, config: BuildVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    out, warmed = str(tmp_path / "out"), tmp_path / "out" / "mlflow.json"
    with Output(config, out, {}):
        pass
    run = open_run(config, "build_vocab", out, {"manifest": "abc"})  # nobody answers yet
    assert run
    assert not warmed.exists()
    monkeypatch.setattr("evilm.tracking.mlflow_uploader.SHIP_S", 0.2)
    recorder, longest = MetricsRecorder(out, run), 0.0

    def log(steps: range) -> None:
        nonlocal longest
        for step in steps:
            began = time.monotonic()
            recorder.log({"train/loss": 1 / step, "train/lr": step}, step)
            longest = max(longest, time.monotonic() - began)

    def seen() -> list[int]:
        (known,) = client.search_runs([client.get_experiment_by_name("evilm").experiment_id])
        return [m.step for m in client.get_metric_history(known.info.run_id, "train/loss")]

    log(range(1, 151))
    client = MlflowClient(tracking_uri=server.uri)
    try:
        server.start()
        wait_for(warmed.exists)
        log(range(151, 201))
        wait_for(lambda: len(seen()) == 200)
        server.kill()
        log(range(201, 401))
        time.sleep(0.5)  # some calls fail
        assert len(read_points(tmp_path / "out" / "metrics.jsonl")) == 400
        server.start()
        log(range(401, 501))
        recorder.close()
        assert seen() == list(range(1, 501))
        server.kill()
        close_run(run, config, {"num_words": 1}, {})  # nobody answers
        assert not is_closed(run)
        server.start()
        again = describe_run(config, "build_vocab", out, {"manifest": "abc"})
        (tmp_path / "out" / f"metrics.jsonl.{json.loads(warmed.read_text())['run_id']}.sent").unlink()
        MlflowUploader(again, tmp_path / "out" / "metrics.jsonl").ship()  # all of them a second time
        close_run(again, config, {"num_words": 1}, {})
        assert is_closed(run)
        assert seen() == list(range(1, 501)), "a point that is sent twice is one point"
    finally:
        server.kill()
    assert longest < 5, "logging does not wait for the server"
