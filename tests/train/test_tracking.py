"""Tracking against real MLflow stores and servers: nothing lost, nothing twice, nothing stopped."""

import json
import logging
import time
from pathlib import Path

import pytest
from mlflow_server import Server, free_port, wait_for

from evilm.config.stages import BuildVocab
from evilm.console import log_to_console
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.tracking.loss_figure import draw_losses
from evilm.tracking.metrics_file import MetricsFile, read_points
from evilm.tracking.mlflow_run import close_run, describe_run, is_closed, open_run, tracking_uri
from evilm.tracking.mlflow_uploader import MetricsRecorder, MlflowUploader
from evilm.tracking.track_run import track
from evilm.train.launch import catch_up, finish_tracking


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> BuildVocab:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return BuildVocab()


def test_a_replayed_step_is_not_written_twice_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    spool = MetricsFile(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        spool.log({"a": step}, step)
    spool.log({"val/b": 7}, 3)
    spool.close()
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 4, "met')
    again = MetricsFile(tmp_path / "m.jsonl")
    for step in (2, 3, 4):
        again.log({"a": step}, step)
    again.close()
    points = [(p["step"], p["metrics"]) for p in read_points(tmp_path / "m.jsonl")]
    assert points == [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}), (3, {"val/b": 7}), (4, {"a": 4})]


def test_a_run_has_parameters_metrics_figures_and_is_continued(tmp_path: Path, config: BuildVocab) -> None:
    from mlflow import MlflowClient

    out = str(tmp_path / "out")
    with Output(config, out, {}):
        pass
    run = open_run(config, "build_vocab", out, {"manifest": "abc"})
    assert run
    run_id = json.loads((tmp_path / "out" / "mlflow.json").read_text())["run_id"]
    open_run(config, "build_vocab", out, {})
    assert json.loads((tmp_path / "out" / "mlflow.json").read_text())["run_id"] == run_id, "a restart continues it"
    spool = MetricsFile(tmp_path / "out" / "metrics.jsonl")
    for step in range(1, 251):
        spool.log({"train/loss": 1 / step, "val/acc": step}, step)
    spool.close()
    for _ in range(2):  # a second shipper has nothing left to send
        MlflowUploader(run, tmp_path / "out" / "metrics.jsonl").start().close()
    figure = tmp_path / "out" / "losses.png"
    figure.write_bytes(draw_losses(tmp_path / "out" / "metrics.jsonl"))
    assert not is_closed(run)
    close_run(run, config, {"num_words": 12}, {"figures": [str(figure)]})
    assert is_closed(run)
    client = MlflowClient(tracking_uri=tracking_uri(config, out))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["words.keep_ratio"] == "0.3"
    assert run.data.tags["evilm.input.manifest"] == "abc"
    assert run.inputs
    (made_from,) = run.inputs.dataset_inputs
    assert (made_from.dataset.name, made_from.dataset.digest) == ("manifest", "abc")
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == list(range(1, 251))
    assert run.data.metrics["summary/num_words"] == 12
    artifacts = {a.path for a in client.list_artifacts(run_id)} | {
        a.path for a in client.list_artifacts(run_id, "figures")
    }
    assert (tmp_path / "mlruns").is_dir(), "beside the store, not in the folder we were started from"
    assert artifacts >= {"config.yaml", "summary.json", "figures/losses.png"}


@pytest.mark.faults
def test_a_dead_server_costs_seconds_and_nothing_else(
    tmp_path: Path, config: BuildVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    out, began = str(tmp_path / "out"), time.monotonic()
    with Output(config, out, {}):
        pass

    def work(settings: BuildVocab) -> dict[str, object]:
        return {"out": out, "num_words": 3}

    assert track("build_vocab", work, config)["num_words"] == 3
    assert time.monotonic() - began < 60
    assert not storage.exists(storage.join(out, "mlflow.json"))


def test_what_could_not_be_sent_all_along_is_sent_by_the_same_command_later(tmp_path: Path, config: BuildVocab) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "out"
    with Output(config, str(out), {}):
        pass
    dead = config.override({"tracking.uri": f"http://127.0.0.1:{free_port()}"})
    run = open_run(dead, "build_vocab", str(out), {})
    assert run
    recorder = MetricsRecorder(str(out), run)
    for step in range(1, 151):
        recorder.log({"train/loss": 1 / step}, step)
    recorder.close()
    finish_tracking(dead, run, {"num_words": 3})
    assert not (out / "mlflow.json").exists()

    catch_up(config, "build_vocab", str(out), {"num_words": 3})
    known = json.loads((out / "mlflow.json").read_text())
    client = MlflowClient(tracking_uri=known["uri"])
    found = client.get_run(known["run_id"])
    assert (found.info.status, found.data.metrics["summary/num_words"]) == ("FINISHED", 3)
    assert [p.step for p in client.get_metric_history(known["run_id"], "train/loss")] == list(range(1, 151))
    catch_up(config, "build_vocab", str(out), {"num_words": 4})
    assert client.get_run(known["run_id"]).data.metrics["summary/num_words"] == 3, "it is closed"


def test_a_run_that_lacks_metrics_is_not_closed_and_a_torn_note_of_what_was_sent_is_passed_over(
    tmp_path: Path, config: BuildVocab
) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "out"
    with Output(config, str(out), {}):
        pass
    run = open_run(config, "build_vocab", str(out), {})
    assert run
    spool = MetricsFile(out / "metrics.jsonl")
    spool.log({"train/loss": 1.0}, 1)
    spool.close()
    run_id = json.loads((out / "mlflow.json").read_text())["run_id"]
    sent = out / f"metrics.jsonl.{run_id}.sent"
    sent.mkdir()  # shipping fails, and nothing else
    finish_tracking(config, run, {"num_words": 3})
    assert not is_closed(run)
    sent.rmdir()
    sent.touch()  # as a kill leaves a write that is not atomic
    catch_up(config, "build_vocab", str(out), {"num_words": 3})
    assert is_closed(run)
    history = MlflowClient(tracking_uri=run.uri).get_metric_history(run_id, "train/loss")
    assert [point.step for point in history] == [1]
    assert int(sent.read_text()) == (out / "metrics.jsonl").stat().st_size


def test_retries_of_a_dead_server_do_not_fill_the_log() -> None:
    log_to_console()
    assert not logging.getLogger("urllib3.connectionpool").isEnabledFor(logging.WARNING)


@pytest.mark.long
@pytest.mark.faults
def test_a_server_that_comes_late_is_killed_and_comes_back_gets_every_point_once(
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
        (known,) = client.search_runs([client.get_experiment_by_name("build_vocab").experiment_id])
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


def test_metrics_on_an_object_store_outlive_the_worker(s3_bucket: str) -> None:
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


def test_where_to_track(tmp_path: Path, config: BuildVocab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(config, str(tmp_path / "run" / "vocab")) == f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"
    assert tracking_uri(config, "s3://bucket/run/vocab") == "", "no store of our own on a bucket"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(config, "s3://bucket/run/vocab") == "http://server:5000"
    assert tracking_uri(config.override({"tracking.uri": "sqlite:////x.db"}), str(tmp_path)) == "sqlite:////x.db"
    assert tracking_uri(config.override({"tracking.enabled": False}), str(tmp_path)) == ""
