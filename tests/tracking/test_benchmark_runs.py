"""Tables 1-4 from the benchmarks that an MLflow store has, whatever is left of their folders."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from evilm.config.stages import Benchmark, BuildVocab, Report
from evilm.errors import ConfigError
from evilm.eval.report import report
from evilm.tracking.mlflow_run import close_run
from helpers.tracked_output import claimed


def log_benchmark(project: BuildVocab, out: Path, task: str, value: float, **facts: Any) -> None:
    """Record a benchmark of a model and remove its folder."""
    config = Benchmark(out=str(out), task=task).override(
        {"tracking.uri": project.tracking.uri, "tracking.experiment": project.tracking.experiment}
    )
    run = claimed(config, "benchmark", str(out))
    summary = {
        "task": task, "model": "/gone/model", "split": "test", "zero_shot": False, "leak": False, "coverage": 1.0,
        "num_items": 40, "metrics": {"accuracy": {"value": value, "chance": 0.1, "sigmas_above_chance": 3.0}},
    }  # fmt: skip
    close_run(run, config, summary | facts, {})
    shutil.rmtree(out)


def test_tables_have_the_scores_of_a_store_by_root(
    project: BuildVocab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_benchmark(project, tmp_path / "first" / "msvd-qa-scores", "msvd-qa", 0.3)
    log_benchmark(project, tmp_path / "second" / "msvd-qa-scores", "msvd-qa", 0.4, from_scratch=True, leak=True)
    facts = {"zero_shot": True, "tuned_on": "msrvtt-retrieval"}
    log_benchmark(project, tmp_path / "first" / "msrvtt-mc-scores", "msrvtt-mc", 0.7, **facts)
    config = Report(root=str(tmp_path / "none"), tables=True, out=str(tmp_path / "tables"))
    assert report(config.override({"tracking.uri": project.tracking.uri}))["rows"] == 2
    shown = [line for line in capsys.readouterr().out.splitlines() if "**evilm, " in line]
    mc = "70.0, test, 40 items, fine-tuned on msrvtt-retrieval"
    assert shown[0].startswith("| **evilm, first** ")
    assert shown[0].endswith("| 30.0, test, 40 items | fine-tuned |")
    assert f"| {mc} |" in shown[0]
    assert shown[1].startswith("| **evilm, second** ")
    assert shown[1].endswith("| 40.0, test, 40 items, LEAKED | fine-tuned from scratch |")


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = Report(tables=True, out=str(tmp_path / "tables"))
    uri = f"sqlite:///{tmp_path}/none.db"
    with pytest.raises(ConfigError, match=r"tracking\.uri = sqlite.*: there is no .*none\.db; name the store"):
        report(config.override({"tracking.uri": uri}))
    assert not (tmp_path / "none.db").exists()
