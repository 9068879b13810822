"""The end of a run when something goes wrong: no access to its files, a signal, another server, a lost record."""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from evilm import cli
from evilm.config.stages import BuildVocab
from evilm.io.outputs import Output
from evilm.tracking.metrics_file import MetricsFile
from evilm.tracking.mlflow_run import close_run, end_on_error, is_closed
from evilm.tracking.track_run import track
from evilm.train.launch import catch_up, finish_tracking
from helpers.s3_faults import FaultyS3
from helpers.tracked_output import claimed, run_of, store_client


def _on_s3(project: BuildVocab, bucket: str) -> Any:
    """A client of the store; its experiment keeps files on S3, where clients bring them."""
    client = store_client(project.tracking.uri)
    client.create_experiment(project.tracking.experiment, f"{bucket}/files")
    return client


def _forget_clients() -> None:
    from mlflow.store.artifact import s3_artifact_repo

    s3_artifact_repo._cached_get_s3_client.cache_clear()


def test_run_ends_without_access_to_its_files_and_sends_them_later(
    project: BuildVocab, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run = _on_s3(project, s3_bucket), claimed(project, "build_vocab", str(tmp_path / "vocab"))
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path))  # nor in its files
        _forget_clients()
        close_run(run, project, {"num_words": 3}, {})
    assert not is_closed(run)
    found = run_of(client, run.experiment, run.out)
    assert (found.info.status, found.data.metrics["num_words"]) == ("FINISHED", 3)
    _forget_clients()
    close_run(run, project, {"num_words": 3}, {})
    assert is_closed(run)
    assert {item.path for item in client.list_artifacts(found.info.run_id)} == {"config.yaml", "summary.json"}


@pytest.mark.faults
def test_sigterm_while_closing_ends_the_run(
    project: BuildVocab, s3_bucket: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def hold(method: str, path: str) -> str:
        if method == "PUT" and path.partition("?")[0].endswith("config.yaml") and not go.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.5, go.set).start()
            go.wait()
        return ""

    client, run = _on_s3(project, s3_bucket), claimed(project, "build_vocab", str(tmp_path / "vocab"))
    before = signal.signal(signal.SIGTERM, cli._interrupt)
    try:
        with FaultyS3(s3_server, hold) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            _forget_clients()
            with pytest.raises(KeyboardInterrupt), end_on_error(run):
                close_run(run, project, {"num_words": 3}, {})
    finally:
        signal.signal(signal.SIGTERM, before)
        cli._received.clear()
        _forget_clients()
    assert run_of(client, run.experiment, run.out).info.status == "KILLED"
    assert not is_closed(run)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    close_run(run, project, {"num_words": 3}, {})
    assert run_of(client, run.experiment, run.out).info.status == "FINISHED"


def test_finished_run_is_brought_to_another_store_once(
    config: BuildVocab,
    project: BuildVocab,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "evilm")
    out, summary = tmp_path / "out", {"num_words": 3}
    here = claimed(config, "build_vocab", str(out))
    metrics = MetricsFile(out / "metrics.jsonl")
    metrics.log({"train/loss": 1.0}, 1)
    metrics.close()
    finish_tracking(config, here, summary)
    assert is_closed(here)
    there = claimed(project, "build_vocab", str(out))
    assert not is_closed(there)
    for settings in (project, config, project):
        catch_up(settings, "build_vocab", str(out), summary)
    for run in (here, there):
        client = store_client(run.uri)
        found = run_of(client, run.experiment, run.out)
        assert (found.info.status, found.data.metrics["num_words"]) == ("FINISHED", 3)
        assert [point.step for point in client.get_metric_history(found.info.run_id, "train/loss")] == [1]
        assert is_closed(run)
    assert caplog.text.count("has a new run in") == 1


@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_finished_run_that_was_deleted_comes_back(
    project: BuildVocab, deleted: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "evilm")
    run, summary = claimed(project, "build_vocab", str(tmp_path / "out")), {"num_words": 3}
    finish_tracking(project, run, summary)
    client = store_client(run.uri)
    found = run_of(client, run.experiment, run.out)
    if deleted == "run":
        client.delete_run(found.info.run_id)
    else:
        client.delete_experiment(found.info.experiment_id)
    catch_up(project, "build_vocab", run.out, summary)
    now = run_of(client, run.experiment, run.out)
    assert (now.info.run_id == found.info.run_id) == (deleted == "experiment")
    assert (now.info.status, now.data.metrics["num_words"]) == ("FINISHED", 3)
    assert ("was deleted; it is restored" in caplog.text) == (deleted == "experiment")


@pytest.mark.parametrize("lost", ["mlflow.db", "out/mlflow.json"])
def test_lost_record_is_made_again_for_a_reused_result(config: BuildVocab, tmp_path: Path, lost: str) -> None:
    out = str(tmp_path / "out")

    def work(settings: BuildVocab) -> dict[str, Any]:
        with Output(settings, out, {}) as output:
            if output.done:
                return output.done | {"reused": True}
            return output.close({"out": out, "inputs": {}, "num_words": 3, "fingerprint": "f"})

    track("build_vocab", work, config)
    (tmp_path / lost).unlink()
    assert track("build_vocab", work, config)["reused"]
    client = store_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evilm")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert {(run.info.status, run.data.metrics["num_words"]) for run in runs} == {("FINISHED", 3)}
