"""Tracking against real MLflow stores and servers: nothing lost, nothing twice, nothing stopped."""

import json
import socket
import time
from pathlib import Path

import pytest

from evilm import storage
from evilm.config.runs import BuildVocab
from evilm.outputs import open_output
from evilm.train.figure import draw_losses
from evilm.train.tracking import Shipper, Spool, close_run, open_run, read_points, track, tracking_uri


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> BuildVocab:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return BuildVocab()


def test_a_replayed_step_is_not_written_twice_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        spool.log({"a": step}, step)
    spool.log({"val/b": 7}, 3)
    spool.close()
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 4, "met')
    again = Spool(tmp_path / "m.jsonl")
    for step in (2, 3, 4):
        again.log({"a": step}, step)
    again.close()
    points = [(p["step"], p["metrics"]) for p in read_points(tmp_path / "m.jsonl")]
    assert points == [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}), (3, {"val/b": 7}), (4, {"a": 4})]


def test_a_run_has_parameters_metrics_figures_and_is_continued(tmp_path: Path, config: BuildVocab) -> None:
    from mlflow import MlflowClient

    out = str(tmp_path / "out")
    open_output(config, out, {})
    run_id = open_run(config, "build_vocab", out, {"manifest": "abc"})
    assert run_id
    assert open_run(config, "build_vocab", out, {}) == run_id, "a restart continues the same run"
    spool = Spool(tmp_path / "out" / "metrics.jsonl")
    for step in range(1, 251):
        spool.log({"train/loss": 1 / step, "val/acc": step}, step)
    spool.close()
    for _ in range(2):  # a second shipper has nothing left to send
        shipper = Shipper(tracking_uri(config, out), run_id, tmp_path / "out" / "metrics.jsonl").start()
        shipper.close()
    figure = draw_losses(tmp_path / "out" / "metrics.jsonl", tmp_path / "out" / "losses.png")
    close_run(config, out, run_id, {"num_words": 12}, {"figures": figure})
    client = MlflowClient(tracking_uri=tracking_uri(config, out))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["words.keep_ratio"] == "0.3"
    assert run.data.tags["evilm.input.manifest"] == "abc"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == list(range(1, 251))
    assert run.data.metrics["summary/num_words"] == 12
    artifacts = {a.path for a in client.list_artifacts(run_id)} | {
        a.path for a in client.list_artifacts(run_id, "figures")
    }
    assert (tmp_path / "mlruns").is_dir(), "beside the store, not in the folder we were started from"
    assert artifacts >= {"config.yaml", "summary.json", "figures/losses.png"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_dead_server_costs_seconds_and_nothing_else(
    tmp_path: Path, config: BuildVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{_free_port()}")
    out, began = str(tmp_path / "out"), time.monotonic()
    open_output(config, out, {})

    def work(settings: BuildVocab) -> dict[str, object]:
        return {"out": out, "num_words": 3}

    assert track("build_vocab", work, config)["num_words"] == 3
    assert time.monotonic() - began < 60
    assert not storage.exists(storage.join(out, "mlflow.json"))


def test_a_server_that_dies_and_comes_back_gets_every_point(tmp_path: Path, config: BuildVocab) -> None:
    from mlflow import MlflowClient

    out = str(tmp_path / "out")
    open_output(config, out, {})
    run_id, uri = open_run(config, "build_vocab", out, {}), tracking_uri(config, out)
    path = tmp_path / "out" / "metrics.jsonl"
    spool = Spool(path)
    spool.log({"a": 1.0}, 1)
    gone = Shipper(f"http://127.0.0.1:{_free_port()}", run_id, path, every_s=0.05).start()
    time.sleep(1.0)
    gone.close()
    spool.log({"a": 2.0}, 2)
    spool.close()
    back = Shipper(uri, run_id, path, every_s=0.05).start()
    back.close()
    assert [(m.step, m.value) for m in MlflowClient(tracking_uri=uri).get_metric_history(run_id, "a")] == [
        (1, 1),
        (2, 2),
    ]
    assert json.loads(path.read_text().splitlines()[0])["step"] == 1


def test_where_to_track(tmp_path: Path, config: BuildVocab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(config, str(tmp_path / "run" / "vocab")) == f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"
    assert tracking_uri(config, "s3://bucket/run/vocab") == "", "no store of our own on a bucket"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(config, "s3://bucket/run/vocab") == "http://server:5000"
    assert tracking_uri(config.override({"tracking.uri": "sqlite:////x.db"}), str(tmp_path)) == "sqlite:////x.db"
    assert tracking_uri(config.override({"tracking.enabled": False}), str(tmp_path)) == ""
