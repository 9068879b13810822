"""The Slurm script with stand-ins of srun and scontrol: a Ray cluster for a command, SIGTERM before the time limit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.paths import ROOT

_SRUN = '#!/bin/bash\necho "$@" >> steps\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
_SCONTROL = '#!/bin/bash\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@" > requeued\n'
_RAY = '#!/bin/bash\nif [ "$1" = start ]; then exec sleep 300; fi\necho "$ANSWER"; exit "$HEALTH"\n'
_COMMAND = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if sys.argv[2:]:
    from evilm.cluster import connect
    connect()
print(*[os.environ[name] for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")], flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose user has a token of other clusters; Ray's own commands are the real ones."""
    for name, text in {"srun": _SRUN, "scontrol": _SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "command.py").write_text(_COMMAND)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("e" * 32)
    bin_folder = str(Path(sys.executable).parent)
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": str(os.getpid())}
    known = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_ADDRESS", "RAY_AUTH"))}
    slurm |= {"HOME": str(tmp_path), "SLURM_CPUS_PER_TASK": "2"}
    return known | slurm | {"PATH": f"{tmp_path}:{bin_folder}:{os.environ['PATH']}"}


@pytest.fixture
def quick(job: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same with a stand-in of Ray on three nodes, which answers at once."""
    (tmp_path / "ray").write_text(_RAY)
    (tmp_path / "ray").chmod(0o755)
    return job | {"SLURM_JOB_NUM_NODES": "3", "HEALTH": "0", "ANSWER": ""}


def start(job: dict[str, str], folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["bash", str(ROOT / "cluster" / "slurm.sh"), sys.executable, str(folder / "command.py"), *arguments]
    return subprocess.Popen(command, env=job, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def signalled(job: dict[str, str], folder: Path, number: int) -> tuple[int, str]:
    """Send a signal to a job whose command runs; return its exit code and what it said after the signal."""
    with start(job, folder, "300") as process:
        assert process.stdout
        while "127.0.0.1:" not in (line := process.stdout.readline()):
            assert line, "it ended"
        time.sleep(1)
        process.send_signal(number)
        rest = process.stdout.read()
    return process.returncode, rest


@pytest.mark.long
def test_command_runs_on_the_cluster_of_the_job_behind_a_token_of_its_own(job: dict[str, str], tmp_path: Path) -> None:
    shown, _ = start(job, tmp_path, "0", "connect").communicate(timeout=250)
    (line,) = [line for line in shown.splitlines() if line.startswith(f"127.0.0.1:{20000 + os.getpid() % 20000} ")]
    _, mode, token = line.split()
    assert mode == "token", shown
    assert len(token) == 32
    assert token != "e" * 32
    assert not (tmp_path / "requeued").exists()


def test_command_gets_sigterm_before_the_time_limit_and_the_job_is_queued_again(
    quick: dict[str, str], tmp_path: Path
) -> None:
    code, rest = signalled(quick, tmp_path, signal.SIGUSR1)
    assert code == 143, rest
    assert "asking the command for a checkpoint" in rest
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"


def test_cancelled_job_is_not_queued_again_and_leaves_no_files_on_any_node(
    quick: dict[str, str], tmp_path: Path
) -> None:
    code, rest = signalled(quick, tmp_path, signal.SIGTERM)
    assert code == 143, rest
    assert not (tmp_path / "requeued").exists()
    steps = (tmp_path / "steps").read_text().splitlines()
    assert steps[-1] == f"--export=ALL --overlap --nodes=3 --ntasks=3 rm -rf /tmp/ray-{os.getpid()}"
    assert sorted(step.split()[2] for step in steps) == ["--nodes=1", "--nodes=2", "--nodes=3"]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 32}, ["token", "f" * 32]),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, ["disabled", "x"]),
    ],
    ids=["token", "mode"],
)
def test_token_and_mode_of_the_user_are_kept(
    quick: dict[str, str], tmp_path: Path, own: dict[str, str], expected: list[str]
) -> None:
    shown, _ = start(quick | own, tmp_path, "0").communicate(timeout=60)
    assert shown.split()[1:] == expected


def test_head_that_does_not_answer_ends_the_job_in_one_line(quick: dict[str, str], tmp_path: Path) -> None:
    silent = quick | {"HEALTH": "1", "ANSWER": "Authentication required", "EVILM_RAY_START_S": "1"}
    with start(silent, tmp_path, "0") as process:
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert line == "error: Ray did not start on 127.0.0.1: no answer in 1 s; Authentication required"


def test_head_that_ends_ends_the_job_in_one_line(quick: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ray").write_text(_RAY.replace("exec sleep 300", "exit 1"))
    with start(quick | {"HEALTH": "1"}, tmp_path, "0") as process:
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: Ray did not start on 127.0.0.1: it ended, see above" in shown
