"""`make dashboard`: the address that it prints, and the server behind it."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from evilm.config.stages import BuildVocab
from evilm.tracking.experiment import runs_page
from evilm.tracking.mlflow_run import ensure_run
from helpers.commands import wait_for
from helpers.mlflow_server import free_port
from helpers.tracked_output import claimed

_COMMAND = [sys.executable, "-m", "evilm.tracking.dashboard", "--root"]


def test_dashboard_of_a_root_without_runs_says_what_to_do(tmp_path: Path) -> None:
    ended = subprocess.run([*_COMMAND, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {tmp_path}/mlflow.db is not there; run make demo first")
    assert ended.stderr.count("\n") == 1


@pytest.mark.long
def test_dashboard_serves_the_runs_at_the_printed_address(config: BuildVocab, tmp_path: Path) -> None:
    ensure_run(claimed(config, "build_vocab", str(tmp_path / "vocab")))
    server = f"http://127.0.0.1:{(port := free_port())}"
    command = [*_COMMAND, str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.stdout
        assert process.stdout.readline().decode() == f"Runs of evilm: {runs_page(server, '1')}\n"
        wait_for(lambda: _answers(f"{server}/ajax-api/2.0/mlflow/experiments/get?experiment_id=1"), timeout_s=180)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return b'"evilm"' in answer.read()
    except OSError:
        return False
