"""The dependencies of the package can be installed on arm64 too."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from helpers.paths import ROOT


def _needed() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_decord_is_not_required_on_arm64() -> None:
    needed = [Requirement(text) for text in _needed()]
    arm = {"platform_machine": "aarch64", "sys_platform": "linux", "python_version": "3.11", "extra": ""}
    names = {each.name for each in needed if each.marker is None or each.marker.evaluate(arm)}
    assert {"av", "torch", "ray"} <= names
    assert "decord" not in names
    (decord,) = (each for each in needed if each.name == "decord")
    assert decord.marker is not None
    assert decord.marker.evaluate(arm | {"platform_machine": "x86_64"})


@pytest.mark.long
def test_all_dependencies_have_wheels_for_arm64(tmp_path: Path) -> None:
    """The resolver finds wheels of all that is needed; nothing is installed."""
    needed = [text for text in _needed() if not text.startswith("decord")]
    _resolve(tmp_path, "aarch64", *needed)


@pytest.mark.long
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_images_lock_resolves_on_both_machines(machine: str, tmp_path: Path) -> None:
    """Each package of `cluster/requirements.txt`, and all that it needs, has a listed wheel for the machine."""
    lines = (ROOT / "cluster" / "requirements.txt").read_text().replace("\\\n", " ").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    system = {"platform_machine": machine, "sys_platform": "linux", "python_version": "3.11"}
    # pip judges markers by the machine it runs on, so those that leave a package out on the other are judged here.
    kept = [text for text in listed if _applies(text.partition(" --hash")[0], system)]
    assert 100 < len(kept) <= len(listed)
    lock = tmp_path / "lock.txt"
    lock.write_text("\n".join(re.sub(r";.*?(?= --hash)", "", text) for text in kept))
    _resolve(tmp_path, machine, "--require-hashes", f"--requirement={lock}")


def _applies(text: str, system: dict[str, str]) -> bool:
    marker = Requirement(text).marker
    return marker is None or marker.evaluate({**system, "extra": ""})


def _resolve(folder: Path, machine: str, *needed: str) -> None:
    """Let pip choose wheels for a machine with Python 3.11; fail with its reason, or skip without a registry."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-"]
    command += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", f"--target={folder}"]
    command += [f"--platform=manylinux_2_{glibc}_{machine}" for glibc in range(5, 37)]
    command += [f"--platform=manylinux{name}_{machine}" for name in ("1", "2010", "2014")]
    environment = {**os.environ, "TMPDIR": str(folder)}  # of the wheels that pip fetches to read what they need
    done = subprocess.run([*command, *needed], capture_output=True, text=True, check=False, env=environment)
    if done.returncode and re.search(r"new connection|name resolution|service not known", done.stderr):
        pytest.skip("no package registry can be reached, which says nothing of the wheels")
    assert done.returncode == 0, done.stderr[-2000:]
