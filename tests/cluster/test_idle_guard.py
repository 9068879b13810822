"""A machine on which Ray does not run ends itself: the script of the cluster files, in a real shell."""

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT

RAYLET = f"evlguard{os.getpid() % 1000}"
"""In place of `raylet`, since other Rays run on this machine."""


def _script(cloud: str) -> str:
    node = yaml.safe_load((ROOT / "cluster" / f"{cloud}.yaml").read_text())["available_node_types"]["cpu"][
        "node_config"
    ]
    if cloud == "aws":
        assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
        return str(node["UserData"])
    (script,) = [item["value"] for item in node["metadata"]["items"] if item["key"] == "startup-script"]
    return str(script)


@pytest.fixture(params=["aws", pytest.param("gcp", marks=pytest.mark.long)])
def ended(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The file that exists after the machine was shut down; the limit is 3 seconds in place of 45 minutes."""
    ended, bin = tmp_path / "ended", tmp_path / "bin"
    bin.mkdir()
    shutdown = bin / "shutdown"
    shutdown.write_text(f'#!/bin/sh\necho "$*" >> {ended}\n')
    shutdown.chmod(shutdown.stat().st_mode | stat.S_IEXEC)
    text = _script(request.param)
    for word, shorter in {"sleep 60": "sleep 0.2", "2700": "3", "raylet": RAYLET}.items():
        assert word in text
        text = text.replace(word, shorter)
    (tmp_path / "script").write_text(text)
    shell = subprocess.Popen(
        ["bash", tmp_path / "script"], env={"PATH": f"{bin}:{os.environ['PATH']}"}, start_new_session=True
    )
    assert shell.wait(5) == 0  # the boot goes on meanwhile
    yield ended
    subprocess.run(["pkill", "-g", str(shell.pid)], check=False)  # the session of the script only


def _wait(path: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return path.exists()


def test_machine_without_ray_shuts_down(ended: Path) -> None:
    assert _wait(ended, 20)
    assert ended.read_text().splitlines()[0] == "-h now"


def test_machine_with_ray_stays_until_ray_is_gone(ended: Path, tmp_path: Path) -> None:
    shutil.copy(shutil.which("sleep") or "", tmp_path / RAYLET)
    raylet = subprocess.Popen([tmp_path / RAYLET, "60"])
    try:
        assert not _wait(ended, 6)
    finally:
        raylet.kill()
        raylet.wait()
    assert _wait(ended, 20)
