"""`ray job submit` on a real head node: the commands of the README, and what a wrong flag looks like."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from doors import ROOT

_RAY = Path(sys.executable).with_name("ray")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head node with a job server, in a temp dir of its own; ended by killing exactly the processes it started."""
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray puts sockets below it
    port, dashboard = _free_port(), _free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {
        "PATH": f"{_RAY.parent}:{environment['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    command = [str(_RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += [f"--temp-dir={temporary}", "--num-cpus=4", "--object-store-memory=200000000"]
    # Every port that has a fixed default is named, since the session's own cluster may hold it.
    ports = ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
    command += ["--node-ip-address=127.0.0.1", *(f"--{name}-port={_free_port()}" for name in ports)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while subprocess.run([_RAY, "job", "list"], env=environment, capture_output=True, check=False).returncode:
        assert process.poll() is None, "ray start ended"
        assert time.monotonic() < deadline, "the job server does not answer"
        time.sleep(1)
    yield environment
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=20)
    for child in alive:
        child.kill()
    shutil.rmtree(temporary, ignore_errors=True)


def _submit(head: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [str(_RAY), "job", "submit", "--working-dir", str(ROOT), "--", "python", *entrypoint]
    deadline = time.monotonic() + 120
    while True:
        job = subprocess.run(command, env=head, capture_output=True, text=True, timeout=500, check=False)
        starting = "No available agent" in job.stderr  # the job server answers before its agent is up
        if not starting or time.monotonic() > deadline:
            return job
        time.sleep(1)


@pytest.mark.slow
def test_a_wrong_flag_ends_a_job_with_one_clear_line(head: dict[str, str]) -> None:
    job = _submit(head, "pipelines/pretrain.py", "--preset", "tiny", "--optim.lrr", "3")
    log = job.stdout + job.stderr
    assert job.returncode == 1
    assert "failed" in log.lower()
    (line,) = {line for line in log.splitlines() if line.startswith("error: ")}
    assert "--optim.lrr" in line
    assert "Traceback" not in log


@pytest.mark.slow
def test_pretraining_runs_as_a_job(head: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    job = _submit(
        head, "pipelines/pretrain.py", "--preset", "tests/small.yaml", "--root", str(root), "--schedule.epochs", "1"
    )
    assert job.returncode == 0, (job.stdout + job.stderr)[-3000:]
    assert "succeeded" in (job.stdout + job.stderr).lower()
    assert (root / "model" / "summary.json").is_file()
    assert any(line.startswith("{") and '"parameters"' in line for line in job.stdout.splitlines())
