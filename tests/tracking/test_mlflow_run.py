"""Tracking against real MLflow stores and servers: nothing lost, nothing twice, nothing stopped."""

import json
import logging
import time
from pathlib import Path

import pytest

from evilm.config.stages import BuildVocab
from evilm.console import log_to_console
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.tracking.loss_figure import draw_losses
from evilm.tracking.metrics_file import MetricsFile
from evilm.tracking.mlflow_run import close_run, is_closed, open_run, tracking_uri
from evilm.tracking.mlflow_uploader import MetricsRecorder, MlflowUploader
from evilm.tracking.run_file import read_run_file, write_run_file
from evilm.tracking.track_run import track
from evilm.train.launch import catch_up, finish_tracking
from helpers.mlflow_server import free_port


def test_run_is_continued_with_parameters_metrics_and_figures(store: Path, tmp_path: Path, config: BuildVocab) -> None:
    from mlflow import MlflowClient

    out = str(tmp_path / "out")
    with Output(config, out, {}):
        pass
    run = open_run(config, "build_vocab", out, {"manifest": "abc"})
    assert run
    run_id = json.loads((tmp_path / "out" / "mlflow.json").read_text())["run_id"]
    open_run(config, "build_vocab", out, {})
    assert json.loads((tmp_path / "out" / "mlflow.json").read_text())["run_id"] == run_id, "a restart continues it"
    metrics = MetricsFile(tmp_path / "out" / "metrics.jsonl")
    for step in range(1, 251):
        metrics.log({"train/loss": 1 / step, "val/acc": step}, step)
    metrics.close()
    for _ in range(2):  # a second uploader has nothing left to send
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
    assert run.data.metrics["num_words"] == 12
    artifacts = {a.path for a in client.list_artifacts(run_id)} | {
        a.path for a in client.list_artifacts(run_id, "figures")
    }
    assert (tmp_path / "mlruns").is_dir(), "beside the store, not in the folder we were started from"
    assert artifacts >= {"config.yaml", "summary.json", "figures/losses.png"}


def test_run_that_is_interrupted_while_it_is_opened_ends(
    store: Path, tmp_path: Path, config: BuildVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = str(tmp_path / "out")
    with Output(config, out, {}):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_inputs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_run(config, "build_vocab", out, {"manifest": "abc"})
        patch.undo()
    known = read_run_file(out)
    client = MlflowClient(tracking_uri=known["uri"])
    assert client.get_run(known["run_id"]).info.status == "KILLED"


@pytest.mark.faults
def test_unreachable_server_costs_seconds_and_nothing_else(
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


def test_finished_outputs_ask_a_server_that_does_not_answer_once(
    store: Path, tmp_path: Path, config: BuildVocab, caplog: pytest.LogCaptureFixture
) -> None:
    dead = config.override({"tracking.uri": f"http://127.0.0.1:{free_port()}"})
    for name in ("a", "b"):
        with Output(dead, str(tmp_path / name), {}):
            pass
        write_run_file(str(tmp_path / name), {"uri": dead.tracking.uri, "run_id": "1", "closed": True})
        catch_up(dead, "build_vocab", str(tmp_path / name), {"num_words": 3})
    assert caplog.text.count("could not look for the run of a finished output") == 1


def test_unsent_metrics_are_sent_by_the_same_command_later(store: Path, tmp_path: Path, config: BuildVocab) -> None:
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
    known = read_run_file(str(out))
    client = MlflowClient(tracking_uri=known["uri"])
    found = client.get_run(known["run_id"])
    assert (found.info.status, found.data.metrics["num_words"]) == ("FINISHED", 3)
    assert [p.step for p in client.get_metric_history(known["run_id"], "train/loss")] == list(range(1, 151))
    catch_up(config, "build_vocab", str(out), {"num_words": 4})
    assert client.get_run(known["run_id"]).data.metrics["num_words"] == 3, "it is closed"


def test_run_with_unsent_metrics_stays_open(store: Path, tmp_path: Path, config: BuildVocab) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "out"
    with Output(config, str(out), {}):
        pass
    run = open_run(config, "build_vocab", str(out), {})
    assert run
    metrics = MetricsFile(out / "metrics.jsonl")
    metrics.log({"train/loss": 1.0}, 1)
    metrics.close()
    run_id = json.loads((out / "mlflow.json").read_text())["run_id"]
    sent = out / f"metrics.jsonl.{run_id}.sent"
    sent.mkdir()  # uploading fails, and nothing else
    finish_tracking(config, run, {"num_words": 3})
    assert not is_closed(run)
    sent.rmdir()
    sent.touch()  # as a kill leaves a write that is not atomic
    catch_up(config, "build_vocab", str(out), {"num_words": 3})
    assert is_closed(run)
    history = MlflowClient(tracking_uri=run.uri).get_metric_history(run_id, "train/loss")
    assert [point.step for point in history] == [1]
    assert int(sent.read_text()) == (out / "metrics.jsonl").stat().st_size


def test_retries_of_requests_are_not_logged() -> None:
    log_to_console()
    assert not logging.getLogger("urllib3.connectionpool").isEnabledFor(logging.WARNING)


def test_tracking_uri_defaults_to_a_store_beside_the_output(
    tmp_path: Path, config: BuildVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(config, str(tmp_path / "run" / "vocab")) == f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"
    assert tracking_uri(config, "s3://bucket/run/vocab") == "", "no store of our own on a bucket"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(config, "s3://bucket/run/vocab") == "http://server:5000"
    assert tracking_uri(config.override({"tracking.uri": "sqlite:////x.db"}), str(tmp_path)) == "sqlite:////x.db"
    assert tracking_uri(config.override({"tracking.enabled": False}), str(tmp_path)) == ""
