"""LoggedModels: which model is best on which data set."""

import json
from pathlib import Path
from typing import Any

import pytest

from evilm.config.stages import Benchmark, BuildVocab, Finetune
from evilm.tracking.logged_models import find_model, log_scores
from evilm.tracking.mlflow_run import TrackedRun, close_run, is_closed
from helpers.tracked_output import claimed, store_client


def _tracking(project: BuildVocab) -> dict[str, str]:
    return {"tracking.uri": project.tracking.uri, "tracking.experiment": project.tracking.experiment}


def _publish(project: BuildVocab, root: Path, name: str) -> str:
    """Record a fine-tuning; the fingerprint of its model."""
    config = Finetune(task="msvd-qa").override(_tracking(project))
    run = claimed(config, "finetune", str(root / name), {"model": "base"})
    made = f"{name}-fingerprint"
    summary = {
        "task": "msvd-qa",
        "steps": 7,
        "published": {"step": 5},
        "fingerprint": made,
        "inputs": {"model": "base"},
    }
    close_run(run, config, summary, {})
    assert is_closed(run)
    return made


def _score(
    project: BuildVocab, root: Path, model: str, value: float, **facts: Any
) -> tuple[TrackedRun, dict[str, Any]]:
    """Record a benchmark of a model."""
    summary: dict[str, Any] = {"split": "test", "task": "msvd-qa", "leak": False, "model": model} | facts
    out = root / f"{model}-{summary['task']}-{value}"
    config = Benchmark(out=str(out)).override(_tracking(project))
    inputs = {"model": model, "frames": "f", "items": f"items of {summary['task']}"}
    run = claimed(config, "benchmark", str(out), inputs)
    summary |= {"inputs": inputs, "metrics": {"accuracy": {"value": value, "chance": 0.1, "sigmas_above_chance": 5}}}
    close_run(run, config, summary, {})
    log_scores(run, config, summary)
    return run, summary


def test_search_answers_which_model_is_best_on_which_data(
    project: BuildVocab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (_publish(project, tmp_path, name) for name in ("first", "second"))
    _score(project, tmp_path, first, 0.3)
    _score(project, tmp_path, second, 0.4)
    _score(project, tmp_path, first, 0.6, task="msrvtt-qa")
    _score(project, tmp_path, second, 0.5, task="msrvtt-qa")
    _score(project, tmp_path, first, 0.9, leak=True)
    import mlflow

    client = store_client(project.tracking.uri)
    experiment = client.get_experiment_by_name(project.tracking.experiment)
    assert experiment
    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(project.tracking.uri)
    try:
        best = {
            data: mlflow.search_logged_models(
                [experiment.experiment_id],
                order_by=[{"field_name": "metrics.accuracy", "ascending": False, "dataset_name": data}],
                output_format="list",
            )[0]
            for data in ("msvd-qa-test", "msrvtt-qa-test", "msvd-qa-test-leaked")
        }
    finally:
        mlflow.set_tracking_uri(before)
    assert {data: model.tags["evilm.made"] for data, model in best.items()} == {
        "msvd-qa-test": second,
        "msrvtt-qa-test": first,
        "msvd-qa-test-leaked": first,
    }
    assert {model.name for model in best.values()} == {"evilm-msvd-qa"}
    run = client.get_run(str(best["msvd-qa-test"].source_run_id))
    assert run.data.tags["evilm.out"] == str(tmp_path / "second")
    assert run.outputs
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [
        (best["msvd-qa-test"].model_id, 5)
    ]


def test_scores_are_logged_once_and_name_model_and_data(project: BuildVocab, tmp_path: Path) -> None:
    model = _publish(project, tmp_path, "first")
    run, summary = _score(project, tmp_path, model, 0.3)
    log_scores(run, Benchmark(out=run.out).override(_tracking(project)), summary)
    client = store_client(run.uri)
    run_id = json.loads((Path(run.out) / "mlflow.json").read_text())["run_id"]
    assert len(client.get_metric_history(run_id, "accuracy")) == 1
    found = client.get_run(run_id)
    assert found.inputs
    assert [item.model_id for item in found.inputs.model_inputs] == [find_model(client, model)]
    assert "msvd-qa-test" in {item.dataset.name for item in found.inputs.dataset_inputs}
    assert found.data.tags["evilm.score"] == "accuracy 30.0%"


def test_model_from_elsewhere_gets_a_logged_model_for_its_scores(project: BuildVocab, tmp_path: Path) -> None:
    run, _ = _score(project, tmp_path, "downloaded", 0.3)
    client = store_client(run.uri)
    model = client.get_logged_model(find_model(client, "downloaded"))
    assert {(metric.key, metric.value, metric.dataset_name) for metric in model.metrics or []} == {
        ("accuracy", 0.3, "msvd-qa-test")
    }
