"""SIGTERM, as `ray job stop` sends it, at a command that does not train and at a sweep: one line, exit code 143."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evilm.config.command_line import parse
from evilm.config.sweep_space import check_score
from helpers.commands import kill, start, wait_for
from helpers.paths import SMALL
from helpers.workflow import Workflow

CONTINUE = "run the same command again to continue"
pytestmark = [pytest.mark.long, pytest.mark.faults]


def _ended(process: Any, timeout_s: float) -> list[str]:
    """Send SIGTERM to a process; the lines of its stderr."""
    process.send_signal(signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill(process, and_workers=True)
        raise
    said = errors.decode()
    assert process.returncode == 143, said[-3000:]
    assert "SIGABRT" not in said
    assert "Fatal" not in said
    assert said.count("interrupted") == 1, said[-3000:]
    return said.splitlines()


def test_sigterm_ends_a_command_in_one_line_and_it_continues(tmp_path: Path) -> None:
    command = ["--preset", str(SMALL), "--out", str(tmp_path / "corpus"), "--corpus.train-clips", "2000"]
    process = start("render_corpus", *command)
    wait_for(lambda: len(list(tmp_path.rglob("*.mp4"))) > 4, process)
    said = _ended(process, 90)
    assert said[-1] == f"interrupted; {CONTINUE}"
    assert not any(line.startswith("Traceback") for line in said)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    process = start("render_corpus", *command)
    wait_for(lambda: len(list(tmp_path.rglob("*.mp4"))) > len(made) + 4, process)
    _ended(process, 90)
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_sigterm_keeps_a_checkpoint_of_the_running_trial(small_workflow: Workflow, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    root, summary = small_workflow
    config = parse("masking_ratio", ["--preset", str(SMALL)])
    for score in summary["val"]:
        if not score.endswith("_chance"):  # the same for all models
            check_score(score, {}, config)
    places = [f"--{name}={root / name}" for name in ("frames", "vocab", "tokenizer", "codes")]
    out, store = tmp_path / "sweep", f"sqlite:///{tmp_path / 'tracked.db'}"
    command = ["--preset", str(SMALL), *places, "--out", str(out), "--tracking.uri", store, "--seeds", "1"]
    command += ["--values", "0.25,0.5", "--concurrent", "1", "--cluster.cpus-per-worker", "1"]
    command += ["--schedule.epochs", "500", "--schedule.checkpoint-every-steps", "100000"]
    process = start("../tune/masking_ratio", *command)
    wait_for(lambda: any(out.glob("trials/*/metrics.jsonl")), process, timeout_s=400)
    assert sum("interrupted" in line and CONTINUE in line for line in _ended(process, 120)) == 1
    (trial,) = (out / "trials").iterdir()
    assert list(trial.glob("checkpoints/step_*-*")), "the last step is kept"
    assert not list(trial.glob("st*.json")), "neither a note that it fell behind nor a wish to stop"
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("evilm")
    assert experiment
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"KILLED"}
    assert json.loads((out / "mlflow.json").read_text())["run_id"]
