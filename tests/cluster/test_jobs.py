"""`ray job submit` on a head node that asks for a token: the commands of the README, and what mistakes look like."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from local import free_port

from helpers.paths import ROOT
from helpers.workflow import Workflow, copy_workflow

pytestmark = pytest.mark.long
_RAY = Path(sys.executable).with_name("ray")
_TOKEN = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head node with a job server, in a temp dir of its own; ended by killing exactly the processes it started."""
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray puts sockets below it
    port, dashboard = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {
        "PATH": f"{_RAY.parent}:{environment['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
    }
    command = [str(_RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += [f"--temp-dir={temporary}", "--num-cpus=4", "--object-store-memory=200000000"]
    # Every port that has a fixed default is named, since the session's own cluster may hold it.
    ports = ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
    command += ["--node-ip-address=127.0.0.1", *(f"--{name}-port={free_port()}" for name in ports)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 240
    try:
        while not _answers(f"http://127.0.0.1:{dashboard}/api/jobs/"):
            assert process.poll() is None, "ray start ended"
            assert time.monotonic() < deadline, "the job server does not answer"
            time.sleep(0.5)
        yield environment | {"TEST_GCS": f"127.0.0.1:{port}"}
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in [process, *family]:  # at once: asked politely, Ray drains for half a minute
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Authorization": f"Bearer {_TOKEN}"})
        ) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], env=variables, capture_output=True, text=True, timeout=500, check=False)


def _submit(head: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    deadline = time.monotonic() + 120
    while True:
        job = _run(_RAY, "job", "submit", "--working-dir", ROOT, "--", "python", *entrypoint, **head)
        starting = "No available agent" in job.stderr  # the job server answers before its agent is up
        if not starting or time.monotonic() > deadline:
            return job
        time.sleep(1)


def test_wrong_flag_fails_a_job_with_one_line(head: dict[str, str]) -> None:
    job = _submit(head, "pipelines/pretrain.py", "--preset", "tiny", "--optim.lrr", "3")
    log = job.stdout + job.stderr
    assert job.returncode == 1
    assert "failed" in log.lower()
    (line,) = {line for line in log.splitlines() if line.startswith("error: ")}
    assert "--optim.lrr" in line
    assert "Traceback" not in log
    assert "driver_exit_code=2" in _run(_RAY, "job", "list", **head).stdout


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Authentication required: Unauthorized: Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "f" * 32}, "Authentication failed: Forbidden: Invalid authentication token"),
    ],
)
def test_requests_without_the_token_are_rejected(head: dict[str, str], variables: dict[str, str], said: str) -> None:
    asked = _run(_RAY, "job", "list", **head | variables)
    assert asked.returncode != 0
    assert said in asked.stdout + asked.stderr


def test_command_without_the_token_says_what_to_check(head: dict[str, str], tmp_path: Path) -> None:
    outside = head | {"RAY_ADDRESS": head["TEST_GCS"], "RAY_AUTH_MODE": "disabled"}
    stage = ROOT / "pipelines" / "render_corpus.py"
    ended = _run(sys.executable, stage, "--preset", "tiny", "--out", tmp_path / "corpus", **outside)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith("check RAY_ADDRESS and RAY_AUTH_MODE")


def test_pretraining_runs_as_a_job(head: dict[str, str], small_workflow: Workflow, tmp_path: Path) -> None:
    # Frames, tokenizer and codes stand; the model is made.
    root, out = copy_workflow(small_workflow[0], tmp_path / "run"), tmp_path / "model"
    places = ["--root", str(root), "--out", str(out)]
    job = _submit(head, "pipelines/pretrain.py", "--preset", "tests/small.yaml", *places, "--schedule.epochs", "1")
    assert job.returncode == 0, (job.stdout + job.stderr)[-3000:]
    assert "succeeded" in (job.stdout + job.stderr).lower()
    assert (out / "summary.json").is_file()
    assert any(line.startswith("{") and '"parameters"' in line for line in job.stdout.splitlines())
