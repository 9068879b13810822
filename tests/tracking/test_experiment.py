"""The experiment of a project: its name, its deletion, the link to its table of runs."""

import json
import sys
from pathlib import Path

import pytest

from evilm.config.stages import BuildVocab
from evilm.tracking.experiment import print_runs_page, runs_page
from evilm.tracking.lineage import main_figures
from evilm.tracking.mlflow_run import close_run, ensure_run, is_closed
from helpers.tracked_output import claimed, run_of, store_client


def test_deleted_experiment_is_restored_for_earlier_and_later_runs(
    project: BuildVocab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, name = store_client(project.tracking.uri), project.tracking.experiment
    first = claimed(project, "build_vocab", str(tmp_path / "first"))
    run_id = ensure_run(first)
    experiment = client.get_experiment_by_name(name)
    assert experiment
    for out in ("second", "first"):  # a later run, and one that was there
        client.delete_experiment(experiment.experiment_id)
        run = claimed(project, "build_vocab", str(tmp_path / out))
        close_run(run, project, {"num_words": 3}, {})
        assert is_closed(run)
        assert run_of(client, name, run.out).info.status == "FINISHED"
    assert run_of(client, name, first.out).info.run_id == run_id, "continued, not made again"
    assert f"experiment {name!r} was deleted; it is restored with its runs" in caplog.text


def test_experiment_is_named_by_setting_variable_or_project(
    config: BuildVocab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claimed(config, "build_vocab", str(tmp_path / "a")).experiment == "evilm"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    assert claimed(config, "build_vocab", str(tmp_path / "a")).experiment == "films"
    named = config.override({"tracking.experiment": "clips"})
    assert claimed(named, "build_vocab", str(tmp_path / "a")).experiment == "clips"


def test_end_of_a_command_links_its_table_of_runs(
    project: BuildVocab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, uri = claimed(project, "build_vocab", str(tmp_path / "vocab")), project.tracking.uri
    ensure_run(run)
    print_runs_page({"out": run.out})
    experiment = store_client(uri).get_experiment_by_name(run.experiment)
    assert experiment
    page = runs_page(uri if uri.startswith("http") else "http://127.0.0.1:5000", experiment.experiment_id)
    printed = capsys.readouterr().err
    assert f"{page}\n" in printed
    assert ("evilm.tracking.dashboard --root" in printed) != uri.startswith("http")
    columns = json.loads(experiment.tags["mlflow.sharedViewState.evilm"])["selectedColumns"]
    assert {"tags.`evilm.stage`", "tags.`evilm.score`"} <= set(columns)
    print_runs_page({"out": str(tmp_path / "untracked")})
    print_runs_page({"root": "x"})
    assert not capsys.readouterr().err


def test_accuracies_are_described_beside_chance() -> None:
    summary = {"val": {"vtm_accuracy": 0.86, "vtm_chance": 0.5, "mvm_accuracy": 0.3, "loss": 2.0}}
    assert dict(main_figures(summary)) == {
        "val.loss": "2.0000",
        "val.vtm_accuracy": "86.0% (chance 50.0%)",
        "val.mvm_accuracy": "30.0%",
    }


def test_page_of_runs_names_the_server_of_any_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for database, wanted in {
        "mlflow.db": "evilm.tracking.dashboard --root ",
        "track.db": "mlflow server --back",
    }.items():
        record = {"uri": f"sqlite:///{tmp_path / database}", "run_id": "1", "experiment_id": "2"}
        (tmp_path / "mlflow.json").write_text(json.dumps(record))
        print_runs_page({"out": str(tmp_path)})
        assert f"{sys.executable} -m {wanted}" in capsys.readouterr().err
