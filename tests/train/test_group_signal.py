"""SIGTERM to all processes of a job, as timeout, Slurm and systemd send it, ends in a checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from evilm.train.checkpoint_manager import newest_first
from helpers.commands import wait_for
from helpers.paths import ROOT, SMALL
from helpers.workflow import Workflow

pytestmark = [pytest.mark.long, pytest.mark.faults]


@pytest.mark.parametrize("to_all", [False, True], ids=["process group", "all processes"])
def test_sigterm_to_the_whole_job_keeps_a_checkpoint(small_workflow: Workflow, tmp_path: Path, to_all: bool) -> None:
    root, _ = small_workflow
    out = tmp_path / "model"
    places = [f"--{name}={root / name}" for name in ("frames", "vocab", "tokenizer", "codes")]
    command = [sys.executable, str(ROOT / "pipelines" / "pretrain.py"), "--preset", str(SMALL), *places]
    command += ["--out", str(out), "--schedule.epochs", "500", "--schedule.checkpoint-every-steps", "100000"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [*command, "--tracking.enabled", "false", "--schedule.eval-clips", "0"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT, start_new_session=True,
    ) as process:  # fmt: skip
        metrics = out / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("train/loss") > 2, process)
        began = time.monotonic()
        if to_all:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    said = errors.decode()
    assert process.returncode == 143, said[-3000:]
    assert "interrupted; checkpoint saved at step " in said
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    assert newest_first(str(out)), "a checkpoint of the last step"
    assert time.monotonic() - began < 30
