"""Fixtures of tests of the data."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

import psutil
import pytest


def _write_line(stream: IO[bytes]) -> None:
    stream.write(b"\n")
    stream.flush()


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """A cluster of a head and two worker nodes, or as many as asked for, in processes of its own; `add` adds one."""
    command = [sys.executable, "-m", "helpers.ray_nodes", str(getattr(request, "param", 2))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    family: list[psutil.Process] = []
    try:
        cluster = json.loads(process.stdout.readline()) | {"add": partial(_write_line, process.stdin)}
        family = psutil.Process(process.pid).children(recursive=True)
        yield cluster
    finally:
        family += psutil.Process(process.pid).children(recursive=True)
        process.communicate(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=10)
        for child in alive:
            child.kill()
