"""Commands as processes of their own, so that tests can kill them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from helpers.paths import ROOT


def start(stage: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Run a command with a private Ray of its own, unless `variables` of its environment name another."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    command = [sys.executable, str(ROOT / "pipelines" / f"{stage}.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 500) -> None:
    """Wait until `what` holds, while the process lives."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes], and_workers: bool = False) -> None:
    """SIGKILL the driver, and wait until the Ray processes it started are gone.

    Its workers go on for a while without it, which may be long enough to finish; `and_workers` kills them too.
    """
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family if and_workers else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    for child in alive:  # Ray's agents outlive a killed driver by a while
        child.kill()
    process.communicate()


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of the shard files and the manifest."""
    return {path.name: path.read_bytes() for path in [*sorted(folder.glob("*.parquet")), folder / "manifest.json"]}
