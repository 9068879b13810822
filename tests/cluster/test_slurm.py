"""The Slurm script with stand-ins of srun and scontrol: a Ray cluster for a command, SIGTERM before the time limit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.paths import ROOT

pytestmark = pytest.mark.long
_SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
_SCONTROL = '#!/bin/bash\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@" > requeued\n'
_COMMAND = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("address", os.environ["RAY_ADDRESS"], flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    for name, text in {"srun": _SRUN, "scontrol": _SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "command.py").write_text(_COMMAND)
    bin_folder = str(Path(sys.executable).parent)
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": str(os.getpid())}
    known = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return known | slurm | {"PATH": f"{tmp_path}:{bin_folder}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "2"}


def start(job: dict[str, str], folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = ["bash", str(ROOT / "cluster" / "slurm.sh"), sys.executable, str(folder / "command.py"), str(seconds)]
    return subprocess.Popen(command, env=job, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_command_runs_on_the_cluster_of_the_job(job: dict[str, str], tmp_path: Path) -> None:
    shown, _ = start(job, tmp_path, 0).communicate(timeout=200)
    assert f"address 127.0.0.1:{20000 + os.getpid() % 20000}" in shown, shown
    assert not (tmp_path / "requeued").exists()


def test_command_gets_sigterm_before_the_time_limit_and_the_job_is_queued_again(
    job: dict[str, str], tmp_path: Path
) -> None:
    with start(job, tmp_path, 300) as process:
        assert process.stdout
        while "address" not in (line := process.stdout.readline()):
            assert line, "it ended"
        time.sleep(1)
        process.send_signal(signal.SIGUSR1)
        rest = process.stdout.read()
    assert process.returncode == 143, rest
    assert "asking the command for a checkpoint" in rest
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
